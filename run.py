"""Deep Q-learning on MountainCar, as the tutorial teaches it: train a policy, then watch it.

python run.py                        train; the log folder is named after the date
python run.py --model NAME-log       watch its best policy in a window
python run.py --help                 everything else
"""

import math
import os
import shlex
import signal
import sys

if __name__ == "__main__":  # Ctrl-C during the imports below: no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from harness.requirements import check_requirements

    check_requirements("run.py")

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from harness.arrays import Array, Arrays, Weights
from harness.backend import compile_step, keras, start_tensorflow, tf
from harness.environments import PATIENCE, Environment, make_pair, observation_bounds
from harness.errors import EnvironmentFault, TrainingError, UsageError, diverged, report_crash
from harness.flags import ANY_TASK, FLAGS, JUDGING, MANY, Flag, Parser, Use, preset_flag
from harness.log_folder import create_log_folder, find_log_folder, locked
from harness.network import FlatModel, q_function
from harness.self_check import self_check
from harness.settings import changes, refuse_useless, task_of, warnings
from harness.start import policy_to_play, run_to_resume, run_to_start
from harness.state import Episode, Parts, Progress, State, replayed, restore
from harness.summary import summarise
from harness.terminal import ProgressBar, StopSignal, log, start_program
from harness.training_run import Listener, TrainingRun
from harness.viewer import watching
from loggers import TensorBoardLogger
from replay_buffer import ReplayBuffer, row_width, split_columns

DISCOUNT_FACTOR_GAMMA = 0.99
LEARNING_RATE = 0.001
BATCH_SIZE = 64
TARGET_UPDATE_EVERY = 1000
TRAIN_START = 2000
REPLAY_BUFFER_SIZE = 50000
MAX_STEPS = 200000
LOG_EVERY = 2000
SNAPSHOT_EVERY = 50000
EVAL_EVERY = 20000
EVAL_STEPS = 10000
EVAL_EPSILON = 0.0
TRAIN_EPSILON = 0.01
Q_VALIDATION_SIZE = 10000

HYPERPARAMETERS = {
    "gamma": Flag(DISCOUNT_FACTOR_GAMMA, 0, 1, "discount factor of future rewards"),
    "learning_rate": Flag(LEARNING_RATE, 1e-9, 10, "Adam's learning rate"),
    "n_step": Flag(1, 1, 1000, "rewards summed before bootstrapping"),
    "hidden": Flag((32, 32), 1, 8192, "units of each hidden layer"),
    "scale_inputs": Flag(
        0.0,
        0,
        1000,
        "first layer's initial weights: divided by the observations' bounds, times this; 0: as is",
        Use.HYPERPARAMETER & ~Use.CONTINUE,
    ),
    "batch_size": Flag(BATCH_SIZE, 1, 10**6, "transitions fitted at each step"),
    "target_update_every": Flag(TARGET_UPDATE_EVERY, 1, MANY, "steps between target updates"),
    "epsilon": Flag(TRAIN_EPSILON, 0, 1, "probability of a random action"),
    "initial_epsilon": Flag(1.0, 0, 1, "epsilon at the start of --epsilon-decay-steps"),
    "epsilon_decay_steps": Flag(0, 0, MANY, "steps over which epsilon falls, 0 for none"),
    "max_repeat": Flag(1, 1, MANY, "most steps that one random action lasts"),
    "buffer_size": Flag(REPLAY_BUFFER_SIZE, 1, 10**8, "transitions kept for replay"),
    "train_start": Flag(TRAIN_START, 1, MANY, "first step that fits a batch"),
    "ema_momentum": Flag(0.0, 0, 0.999999, "of the running average of the weights, 0 for none"),
    "clipnorm": Flag(1.0, 1e-9, MANY, "norm to which longer gradients are shortened"),
    "max_steps": Flag(MAX_STEPS, 1, MANY, "steps to train for", JUDGING | Use.CHANGE),
    "eval_every": Flag(EVAL_EVERY, 0, MANY, "steps between evaluations, 0 for none", JUDGING),
    "eval_steps": Flag(EVAL_STEPS, 1, MANY, "least number of steps in an evaluation", JUDGING),
    "eval_epsilon": Flag(EVAL_EPSILON, 0, 1, "share of random actions in an evaluation", JUDGING),
    "log_every": Flag(LOG_EVERY, 1, MANY, "steps between log lines", JUDGING),
    "snapshot_every": Flag(
        SNAPSHOT_EVERY, 0, MANY, "steps between snapshots, 0 for the last one only", JUDGING
    ),
    "q_validation_size": Flag(
        Q_VALIDATION_SIZE, 1, 10**6, "states that avg_max_q_value averages over", JUDGING
    ),
}
PRESETS: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "tuned": {
        "gamma": 0.998,
        "learning_rate": 0.002,
        "n_step": 10,
        "hidden": (64, 64),
        "scale_inputs": 4.4,
        "batch_size": 96,
        "target_update_every": 400,
        "epsilon_decay_steps": 7000,
        "max_repeat": 50,
        "ema_momentum": 0.999,
        "max_steps": 100000,
        "eval_every": 1000,
        "eval_steps": 2000,
    },
}
ALL_FLAGS = {**FLAGS, "preset": preset_flag(PRESETS), **HYPERPARAMETERS}
CONFIRMING_EPISODES = 100  # that `--until` needs beside the evaluation that reaches it
# Each purpose draws random numbers of its own, so that none disturbs another. Those of
# EXPLORATION also seed the episodes of training.
EXPLORATION, REPLAY, VALIDATION, EVALUATION, CONFIRMATION = range(5)


def create_model(
    env: Environment,
    hidden: Sequence[int] = (32, 32),
    learning_rate: float = LEARNING_RATE,
    clipnorm: float = 1.0,
    scale_inputs: float = 0.0,
    ema_momentum: float = 0.0,
) -> Any:
    """The Q network: Q values of the actions that the mask lets through, zeros for the others.

    Args:
        env: asked for the sizes of its observations and actions.
        hidden: the units of each hidden layer.
        clipnorm: the longest gradient of all weights together; longer ones are shortened to it.
        scale_inputs: unless it is 0, the first layer's initial weights are multiplied by it and
            divided by the observations' bounds (1 where there is none). With 1 the network begins
            as if all observed numbers ranged from -1 to 1, as LeCun et al. 1998 advise ("Efficient
            BackProp", section 4.3): a velocity is at most 0.07.
        ema_momentum: unless it is 0, Adam keeps a running average of the weights.

    Returns:
        compiled keras.Model of float32 inputs (batch, observation_size) and (batch, n_actions).
    """
    observations = keras.layers.Input((env.observation_size,), name="observations")
    action_mask = keras.layers.Input((env.n_actions,), name="action_mask")
    layer = observations
    for number, units in enumerate(hidden, start=1):
        layer = keras.layers.Dense(units, activation="relu", name=f"hidden_{number}")(layer)
    output = keras.layers.Dense(env.n_actions, name="output")(layer)
    filtered_output = keras.layers.Multiply(name="filtered_output")([output, action_mask])
    model = keras.Model([observations, action_mask], filtered_output, name="q_network")
    if scale_inputs:
        kernel, *others = model.get_weights()
        model.set_weights([kernel * scale_inputs / observation_bounds(env)[:, None], *others])
    optimizer = keras.optimizers.Adam(
        learning_rate,
        global_clipnorm=clipnorm,
        use_ema=ema_momentum > 0,
        ema_momentum=ema_momentum,
    )
    model.compile(optimizer, loss="mean_squared_error")
    return model


def predict(model: Any, observations: Any) -> Any:
    """Q values of every action, a tensor (batch, n_actions): a mask of ones lets all through."""
    action_mask = tf.ones((observations.shape[0], model.output_shape[-1]))
    return model([tf.convert_to_tensor(observations), action_mask])


def fit_batch(model: FlatModel, target_model: FlatModel, batch: Any) -> Any:
    """Fit `model` to the Bellman equation on a batch of transitions.

    Q(s, a) = r + γ max Q(s', a') over a', with Q(s', ·) from `target_model` (Mnih et al. 2015,
    "Human-level control through deep reinforcement learning", algorithm 1).

    Args:
        batch: float32 tensor (batch_size, row_width) of ReplayBuffer.sample.

    Returns:
        the loss, a float32 scalar.
    """
    columns = split_columns(batch, model.input_shape[0][-1])
    observations, actions, rewards, next_observations, discounts = columns
    next_q_values = predict(target_model, next_observations)
    # The discount of a terminated transition is 0: its next state has no value.
    q_values = rewards + discounts * tf.reduce_max(next_q_values, axis=1)
    one_hot_actions = tf.one_hot(tf.cast(actions, tf.int32), model.output_shape[-1])
    return model.fit([observations, one_hot_actions], one_hot_actions * q_values[:, None])


def compile_fit_and_predict(
    model: FlatModel, target_model: FlatModel, batch_size: int
) -> Callable[[Array, Array], Array]:
    """Compile all that a training step asks of TensorFlow into one call.

    Returns:
        function of a batch and of the next observation, float32 arrays, that fits the batch and
        returns a float32 array (1 + n_actions,): the loss, then the observation's Q values.
    """

    def fit_and_predict(batch: Any, observation: Any) -> Any:
        loss = fit_batch(model, target_model, batch)
        return tf.concat([[loss], predict(model, observation[None])[0]], axis=0)

    size = model.input_shape[0][-1]
    return compile_step(fit_and_predict, (batch_size, row_width(size)), (size,))


def greedy_action(q_values: Array) -> int:
    """The action with the largest of the Q values, an array (n_actions,)."""
    return int(q_values.argmax())


def epsilon_greedy_action(q_values: Array, epsilon: float, rng: np.random.Generator) -> int:
    """A random action with probability `epsilon`, else the greedy one."""
    if rng.random() < epsilon:
        return int(rng.integers(len(q_values)))
    return greedy_action(q_values)


def epsilon_at(step: int, settings: Namespace) -> float:
    """Epsilon, which falls linearly from its initial value (Mnih et al. 2015, table 1)."""
    if step >= settings.epsilon_decay_steps:
        return settings.epsilon
    left = 1 - step / settings.epsilon_decay_steps
    return settings.epsilon + left * (settings.initial_epsilon - settings.epsilon)


class Exploration:
    """Chooses the actions of training: epsilon-greedy, but a random action may last.

    That is εz-greedy (Dabney et al. 2021, algorithm 1): a random action lasts for a number of
    steps drawn from a zeta distribution with exponent 2, cut at `max_repeat` and at the episode's
    end. With a `max_repeat` of 1, actions are those of `epsilon_greedy_action`.
    """

    def __init__(self, settings: Namespace, rng: np.random.Generator) -> None:
        self.settings, self.rng = settings, rng
        self.repeated_action = self.repeats_left = 0

    def action(self, q_values: Array, step: int) -> int:
        """The action for the Q values (n_actions,) of an observation, at a step of the run."""
        epsilon = epsilon_at(step, self.settings)
        if self.settings.max_repeat == 1:
            return epsilon_greedy_action(q_values, epsilon, self.rng)
        if not self.repeats_left:
            if self.rng.random() >= epsilon:
                return greedy_action(q_values)
            self.repeated_action = int(self.rng.integers(len(q_values)))
            self.repeats_left = min(int(self.rng.zipf(2)), self.settings.max_repeat)
        self.repeats_left -= 1
        return self.repeated_action

    def end_episode(self) -> None:
        """Let no action last into the next episode."""
        self.repeats_left = 0

    def get_state(self) -> Arrays:
        """What `set_state` needs to go on; the generator isn't part of it."""
        return {"repeat": np.array([self.repeated_action, self.repeats_left])}

    def set_state(self, state: Arrays) -> None:
        """Take over what `get_state` returned."""
        self.repeated_action, self.repeats_left = map(int, state["repeat"])


def draw_seed(rng: np.random.Generator) -> int:
    """A seed for an episode: with it, `env.reset` starts the same episode again."""
    return int(rng.integers(2**31))


def evaluate(
    env: Any,
    weights: Weights,
    seed: int | Sequence[int],
    steps: int = 0,
    episodes: int = 1,
    epsilon: float = EVAL_EPSILON,
    bar: ProgressBar | None = None,
) -> list[float]:
    """Play whole episodes: at least so many of them, and at least so many steps.

    The last episode is always finished, so that no short one is preferred.

    Args:
        env: Environment that training doesn't use, or one that is watched.
        weights: of the network whose greedy policy plays.
        seed: it alone decides the episodes and the random actions.
        epsilon: probability of a random action.
        bar: shows how many of the steps are played, or of the episodes.

    Returns:
        the return of each episode. Where the environment sets no time limit, an episode that
        doesn't end in PATIENCE steps, or in `steps` if that is more, ends the evaluation and isn't
        counted: the list may be empty.
    """
    rng = np.random.default_rng(seed)
    (action_rng,) = rng.spawn(1)
    longest = math.inf if env.time_limit else max(PATIENCE, steps)
    returns: list[float] = []
    played = 0
    while played < steps or len(returns) < episodes:
        observation, _ = env.reset(seed=draw_seed(rng))
        began, episode_return, ended = played, 0.0, False
        while not ended:
            q_values = q_function(weights, observation)
            action = epsilon_greedy_action(q_values, epsilon, action_rng)
            observation, reward, terminated, truncated, _ = env.step(action)
            episode_return += reward
            ended = terminated or truncated
            played += 1
            if played - began > longest:
                return returns
        returns.append(episode_return)
        if bar is not None:
            bar.reach(min(played, steps) if steps else len(returns))
    return returns


def begin_episode(number: int, env: Environment, rng: np.random.Generator) -> tuple[Episode, Array]:
    """Begin an episode of training; return it and its first observation."""
    episode = Episode(number, draw_seed(rng))
    observation, _ = env.reset(seed=episode.seed)
    return episode, observation


def first_progress(env: Environment, model: FlatModel, rng: np.random.Generator) -> Progress:
    """Begin the first episode of a new run."""
    episode, observation = begin_episode(1, env, rng)
    q_values = q_function(model.get_weights(), observation)
    no_states = np.zeros((0, env.observation_size), np.float32)
    command = shlex.join(["python", *sys.argv])
    return Progress(episode, observation, q_values, no_states, command)


def take_up(
    state: State,
    parts: Parts,
    env: Environment,
    model: FlatModel,
    replay_buffer: ReplayBuffer,
    exploration: Exploration,
) -> Progress:
    """Bring a stopped run's parts and its environment to where they were.

    An environment that ignores its seed can't be brought there: then a new episode begins.
    """
    progress = restore(state, parts, env)
    if not replayed(env, progress.episode, progress.observation):
        number = progress.episode.number
        log(
            f"{env.id} ignores its seed: episode {number} can't be taken up where it was; "
            f"episode {number + 1} begins"
        )
        replay_buffer.forget_pending()
        exploration.end_episode()
        progress.episode, observation = begin_episode(number + 1, env, exploration.rng)
        progress.observation = observation
        progress.q_values = q_function(model.get_weights(), observation)
    return progress


def validation_step(settings: Namespace) -> int:
    """The step at which the states of avg_max_q_value are drawn from the replay buffer.

    The first evaluation needs them; before the first n-step return, the buffer is empty.
    """
    first_evaluation = min(settings.eval_every or settings.max_steps, settings.max_steps)
    return max(min(settings.q_validation_size, first_evaluation), settings.n_step)


def train(
    settings: Namespace,
    folder: Path,
    stop: StopSignal,
    weights: Weights | None = None,
    state: State | None = None,
    on_evaluation: Listener | None = None,
) -> TrainingRun:
    """Train a policy; leave snapshots, TensorBoard's events and the run's state in `folder`.

    Args:
        settings: what `training_settings({}, ALL_FLAGS, PRESETS)` returns: every hyperparameter,
            and `env`, `set`, `seed`, `until`, `threads`, `preset` and `name`.
        folder: the log folder, `NAME-log`, which exists.
        stop: training ends after the step in which its `number` is set.
        weights: those to start from, instead of random ones.
        state: of a run to go on with.
        on_evaluation: called with the step and the mean return of each evaluation.

    Returns:
        the run, at its end.

    Raises:
        TrainingError: if the loss or the weights stop being finite, or the last save fails.
        EnvironmentFault: if the environment breaks its contract.
    """
    start_tensorflow(settings.threads, settings.seed)
    env, eval_env = make_pair(settings.env, settings.set)
    keras_model = create_model(
        env,
        settings.hidden,
        settings.learning_rate,
        settings.clipnorm,
        settings.scale_inputs,
        settings.ema_momentum,
    )
    if weights:
        keras_model.set_weights(weights)
    if not state:
        keras_model.summary(print_fn=lambda text: log(text.rstrip()))
    model = FlatModel(keras_model, keras_model.optimizer)
    target_model = FlatModel(keras_model)
    fit_and_predict = compile_fit_and_predict(model, target_model, settings.batch_size)
    rng, replay_rng, validation_rng = (
        np.random.default_rng([settings.seed, purpose])
        for purpose in (EXPLORATION, REPLAY, VALIDATION)
    )
    exploration = Exploration(settings, rng)
    replay_buffer = ReplayBuffer(
        settings.buffer_size, env.observation_size, settings.gamma, settings.n_step, replay_rng
    )
    parts: Parts = {
        "model": model,
        "target_model": target_model,
        "replay_buffer": replay_buffer,
        "exploration": exploration,
        "rng": rng,
        "replay_rng": replay_rng,
    }
    if state:
        progress = take_up(state, parts, env, model, replay_buffer, exploration)
    else:
        progress = first_progress(env, model, rng)
    first_weights = model.get_weights()  # until the first batch is fitted
    drawing_step = validation_step(settings)
    logger = TensorBoardLogger(folder)

    def play(purpose: int, steps: int = 0, episodes: int = 1) -> list[float]:
        seed = settings.seed, purpose, progress.step
        policy, epsilon = model.averaged_weights(), settings.eval_epsilon
        total, unit = (steps, "steps") if steps else (episodes, "episodes")
        with ProgressBar(total, unit, desc="evaluation ", delay=1, leave=False) as bar:
            return evaluate(eval_env, policy, seed, steps, episodes, epsilon, bar)

    with (
        closing(env),
        closing(eval_env),
        TrainingRun(settings, ALL_FLAGS, folder, stop, logger, on_evaluation) as run,
    ):
        run.start(env, model, progress, parts, resumed=state is not None)
        if weights and settings.eval_every:
            run.log_evaluation(play(EVALUATION, settings.eval_steps), progress.episode.number)
        for step in run.steps():
            episode, observation = progress.episode, progress.observation
            action = exploration.action(progress.q_values, step)
            next_observation, reward, terminated, truncated, _ = env.step(action)
            replay_buffer.add(observation, action, reward, next_observation, terminated, truncated)
            episode.add(action, reward)
            episode_ended = terminated or truncated
            if episode_ended:
                progress.episode, next_observation = begin_episode(episode.number + 1, env, rng)
                exploration.end_episode()
            progress.observation = next_observation

            if step < settings.train_start:
                progress.q_values = q_function(first_weights, next_observation)
            else:
                if step % settings.target_update_every == 0:
                    target_model.set_weights(model.get_weights())
                batch = replay_buffer.sample(settings.batch_size)
                fitted = fit_and_predict(batch, next_observation)
                progress.loss, progress.q_values = float(fitted[0]), fitted[1:]
                # Weights that aren't finite numbers spoil the Q values of all actions alike.
                if not (math.isfinite(progress.loss) and math.isfinite(fitted[1])):
                    raise TrainingError(diverged(step))

            run.log_step(episode, episode_ended)
            if step == drawing_step and not len(progress.q_validation_observations):
                states = replay_buffer.draw_observations(settings.q_validation_size, validation_rng)
                progress.q_validation_observations = states
            if run.is_due(settings.eval_every):
                returns = play(EVALUATION, settings.eval_steps)
                average = run.log_evaluation(returns, episode.number)
                if settings.until is not None and average >= settings.until:
                    returns = play(CONFIRMATION, episodes=CONFIRMING_EPISODES)
                    run.log_confirmation(returns, CONFIRMING_EPISODES)
            if run.is_due(settings.snapshot_every):
                run.save()
        run.finish()
    return run


def main(
    argv: list[str] | None = None,
    stop: StopSignal | None = None,
    on_evaluation: Listener | None = None,
) -> int:
    """Do what the command line says; return the exit status.

    Args:
        argv: the words after `run.py`, by default the program's own.
        stop: ends training when its `number` is set, by default at Ctrl-C and other signals.
        on_evaluation: called with the step and the mean return of each evaluation in training.
    """
    start_program()
    if stop is None:
        with StopSignal() as new:
            return main(argv, new, on_evaluation)
    parser = Parser(
        prog="run.py", description="Train a deep Q-learning policy on MountainCar, or watch one."
    )
    parser.add_flags(ALL_FLAGS, ANY_TASK)
    given = parser.parse(argv)
    task = task_of(given)
    try:
        refuse_useless(given, ALL_FLAGS, task)
        if "set" in given:
            given["set"] = changes(given["set"])
        if task is Use.TEST:
            self_check(main, stop)
        elif task is Use.PLAY:
            settings, policy = policy_to_play(given, ALL_FLAGS)
            with watching(settings, stop) as env:
                evaluate(env, policy, settings.seed, episodes=settings.episodes)
        elif task is Use.RESUME:
            folder = find_log_folder(given["resume"])
            with locked(folder):
                settings, state = run_to_resume(folder, given, ALL_FLAGS)
                summarise(train(settings, folder, stop, None, state, on_evaluation))
        else:
            settings, weights = run_to_start(given, ALL_FLAGS, PRESETS)
            folder = create_log_folder(settings.name)
            for warning in warnings(settings):
                log(f"warning: {warning}")
            with locked(folder):
                summarise(train(settings, folder, stop, weights, None, on_evaluation))
    except EnvironmentFault as error:
        report_crash("run.py", error)
        return 1
    except (UsageError, TrainingError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return stop.exit_status


if __name__ == "__main__":
    sys.exit(main())
