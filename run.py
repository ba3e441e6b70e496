"""Deep Q-learning on MountainCar, as the tutorial teaches it: train a policy, then watch it.

python run.py                        train; the log folder is named after the date
python run.py --model NAME-log       watch its best policy in a window
python run.py --help                 everything else
"""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from harness.program import prepare

    prepare("run.py")

import numpy as np

from harness import self_check, start, summary
from harness.arrays import Array
from harness.backend import compile_step, keras, start_tensorflow, tf
from harness.environments import PATIENCE, Environment
from harness.errors import TrainingError, diverged
from harness.network import (
    FlatModel,
    QFunction,
    check_network,
    compile_q_function,
    load_q_function,
    make_models,
    network_errors,
)
from harness.program import Program
from harness.settings import JUDGING, LEARNING, MANY, PlaySettings, RunSettings, setting
from harness.snapshots import Snapshot
from harness.terminal import log
from harness.training_run import TrainingRun
from harness.watching import watching
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


@dataclass(kw_only=True)
class Settings(RunSettings):
    """Every number of a run: a flag each, with its default, its bounds and what it means."""

    gamma: float = setting(DISCOUNT_FACTOR_GAMMA, 0, 1, "discount factor of future rewards")
    initial_gamma: float = setting(0.998, 0, 1, "gamma at the start of --gamma-decay-steps")
    gamma_decay_steps: int = setting(
        0, 0, MANY, "steps over which gamma changes, 0 for none; --gamma without this sets 0"
    )
    learning_rate: float = setting(LEARNING_RATE, 1e-9, 10, "Adam's learning rate")
    double_q: int = setting(0, 0, 1, "1: Double Q-learning, 0: the tutorial's")
    n_step: int = setting(1, 1, 1000, "rewards summed before bootstrapping")
    one_step: int = setting(0, 0, 1, "1: fit the mean of the n-step and the one-step return")
    hidden: tuple[int, ...] = setting((32, 32), 1, 8192, "units of each hidden layer")
    scale_inputs: float = setting(
        0.0,
        0,
        1000,
        "the first layer starts out as if each observed number were centred, scaled by its "
        "bounds and multiplied by this; 0: unchanged",
        LEARNING - {"continue"},  # weights that are trained further stay as they are
    )
    batch_size: int = setting(BATCH_SIZE, 1, 10**6, "transitions fitted at each step")
    target_update_every: int = setting(TARGET_UPDATE_EVERY, 1, MANY, "steps between target updates")
    epsilon: float = setting(TRAIN_EPSILON, 0, 1, "probability that a random action begins")
    initial_epsilon: float = setting(1.0, 0, 1, "epsilon at the start of --epsilon-decay-steps")
    epsilon_decay_steps: int = setting(0, 0, MANY, "steps over which epsilon falls, 0 for none")
    max_repeat: int = setting(1, 1, MANY, "most steps that one random action lasts")
    buffer_size: int = setting(REPLAY_BUFFER_SIZE, 1, 10**8, "transitions kept for replay")
    train_start: int = setting(TRAIN_START, 1, MANY, "first step that fits a batch")
    ema_momentum: float = setting(
        0.0, 0, 0.999999, "momentum of the running average of the weights, 0 for none"
    )
    clipnorm: float = setting(1.0, 1e-9, MANY, "norm to which longer gradients are shortened")
    max_steps: int = setting(
        MAX_STEPS, 1, MANY, "steps to train for; the last episode is finished", JUDGING | {"change"}
    )
    eval_every: int = setting(EVAL_EVERY, 0, MANY, "steps between evaluations, 0 for none", JUDGING)
    eval_steps: int = setting(
        EVAL_STEPS, 1, MANY, "minimum number of steps in an evaluation", JUDGING
    )
    eval_epsilon: float = setting(
        EVAL_EPSILON, 0, 1, "share of random actions in an evaluation", JUDGING
    )
    log_every: int = setting(LOG_EVERY, 1, MANY, "steps between log lines", JUDGING)
    snapshot_every: int = setting(
        SNAPSHOT_EVERY, 0, MANY, "steps between snapshots, 0 for the last one only", JUDGING
    )
    q_validation_size: int = setting(
        Q_VALIDATION_SIZE, 1, 10**6, "observations that avg_max_q_value averages over", JUDGING
    )


PRESETS: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "tuned": {
        "gamma": 0.995,
        "initial_gamma": 0.998,
        "gamma_decay_steps": 100000,
        "learning_rate": 0.003,
        "double_q": 1,
        "n_step": 10,
        "one_step": 1,
        "hidden": (64, 64),
        "scale_inputs": 4.4,
        "target_update_every": 200,
        "epsilon_decay_steps": 7000,
        "max_repeat": 50,
        "buffer_size": 25000,
        "ema_momentum": 0.999,
        "max_steps": 100000,
        "eval_every": 1000,
        "eval_steps": 2000,
    },
}
MIN_EPISODES = 10  # of an evaluation: fewer say little about a policy
CONFIRMING_EPISODES = 100  # that must reach `--until`, too, after an evaluation has reached it
# Each purpose draws random numbers of its own, so that none disturbs another. Those of
# EXPLORATION also seed the episodes of training.
EXPLORATION, REPLAY, VALIDATION, EVALUATION, CONFIRMATION = range(5)


def create_model(
    env: Any,
    hidden: Sequence[int] = (32, 32),
    learning_rate: float = LEARNING_RATE,
    clipnorm: float = 1.0,
    ema_momentum: float = 0.0,
) -> Any:
    """The Q network: Q values of the actions that the mask lets through, zeros for the others.

    Whatever it returns is the network that is trained, evaluated, saved and played.

    Args:
        env: anything with an `observation_size` and `n_actions`.
        hidden: the units of each hidden layer.
        clipnorm: the largest norm of the gradient of all weights together; a longer gradient is
            shortened to it.
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
    optimizer = keras.optimizers.Adam(
        learning_rate,
        global_clipnorm=clipnorm,
        use_ema=ema_momentum > 0,
        ema_momentum=ema_momentum,
    )
    model.compile(optimizer, loss="mean_squared_error")
    return model


def make_network(env: Environment, settings: Settings) -> Any:
    """The network that `create_model` makes for these settings; UsageError if it can't."""
    with network_errors():
        return create_model(
            env,
            hidden=settings.hidden,
            learning_rate=settings.learning_rate,
            clipnorm=settings.clipnorm,
            ema_momentum=settings.ema_momentum,
        )


def predict(model: Any, observations: Any) -> Any:
    """Q values of every action, a tensor (batch, n_actions): a mask of ones lets all through."""
    action_mask = tf.ones((observations.shape[0], model.output_shape[-1]))
    return model([tf.convert_to_tensor(observations), action_mask])


def fit_batch(model: FlatModel, target_model: FlatModel, batch: Any, double_q: bool = False) -> Any:
    """Fit `model` to the Bellman equation on a batch of transitions.

    Q(s, a) = r + γ max Q(s', a') over a', with Q(s', ·) from `target_model` (Mnih et al. 2015,
    "Human-level control through deep reinforcement learning", algorithm 1). Where the replay buffer
    sums n rewards, r is their discounted sum and γ stands for γⁿ, without a correction for actions
    that the present policy wouldn't take. Where it also holds each transition's own reward, Q(s, a)
    is the mean of both returns: a compound update (Sutton and Barto 2018, "Reinforcement Learning",
    section 12.1).

    Args:
        batch: float32 tensor (batch_size, row_width) of ReplayBuffer.sample.
        double_q: whether `model` chooses a', and `target_model` only values it. A network that does
            both tends to choose the action that it overrates most (van Hasselt et al. 2016, "Deep
            Reinforcement Learning with Double Q-learning", equation 4).

    Returns:
        the loss, a float32 scalar.
    """
    observations, actions, returns = split_columns(batch, model.input_shape[0][-1])
    # Where transitions have two returns, both are estimated in one go: first all n-step returns of
    # the batch, then all one-step returns.
    rewards, next_observations, discounts = (
        tf.concat(column, 0) for column in zip(*returns, strict=True)
    )
    next_q_values = predict(target_model, next_observations)
    if double_q:
        next_actions = tf.argmax(predict(model, next_observations), axis=1)
        next_values = tf.gather(next_q_values, next_actions, batch_dims=1)
    else:
        next_values = tf.reduce_max(next_q_values, axis=1)
    # The discount of a terminated transition is 0: its next state has no value.
    estimates = rewards + discounts * next_values
    # A row for each kind of return again, of which the mean is taken.
    targets = tf.reduce_mean(tf.reshape(estimates, (len(returns), -1)), axis=0)
    one_hot_actions = tf.one_hot(tf.cast(actions, tf.int32), model.output_shape[-1])
    return model.fit([observations, one_hot_actions], one_hot_actions * targets[:, None])


def compile_fit_and_predict(
    model: FlatModel,
    target_model: FlatModel,
    batch_size: int,
    double_q: bool = False,
    one_step: bool = False,
) -> Callable[[Array, Array], Array]:
    """Compile all that a training step asks of TensorFlow into one call.

    Returns:
        function of a batch and of the next observation, float32 arrays, that fits the batch and
        returns a float32 array (1 + n_actions,): the loss, then the observation's Q values.
    """

    def fit_and_predict(batch: Any, observation: Any) -> Any:
        loss = fit_batch(model, target_model, batch, double_q)
        return tf.concat([[loss], predict(model, observation[None])[0]], axis=0)

    size = model.input_shape[0][-1]
    return compile_step(fit_and_predict, (batch_size, row_width(size, one_step)), (size,))


def greedy_action(q_values: Array) -> int:
    """The action with the largest of the Q values, an array (n_actions,)."""
    return int(q_values.argmax())


def epsilon_greedy_action(q_values: Array, epsilon: float, rng: np.random.Generator) -> int:
    """A random action with probability `epsilon`, else the greedy one."""
    if rng.random() < epsilon:
        return int(rng.integers(len(q_values)))
    return greedy_action(q_values)


def epsilon_at(step: int, settings: Settings) -> float:
    """Epsilon, which falls linearly from its initial value (Mnih et al. 2015, table 1)."""
    return _between(settings.initial_epsilon, settings.epsilon, step, settings.epsilon_decay_steps)


def gamma_at(step: int, settings: Settings) -> float:
    """Gamma, which changes linearly from its initial value."""
    return _between(settings.initial_gamma, settings.gamma, step, settings.gamma_decay_steps)


def _between(first: float, last: float, step: int, steps: int) -> float:
    """What falls or rises linearly from `first` to `last` in `steps`, and then stays."""
    return last if step >= steps else last + (1 - step / steps) * (first - last)


class Exploration:
    """Chooses the actions of training: epsilon-greedy, but a random action may last.

    That is εz-greedy (Dabney et al. 2021, algorithm 1): a random action lasts for a number of
    steps drawn from a zeta distribution with exponent 2, cut at `max_repeat` and at the episode's
    end. With a `max_repeat` of 1, actions are those of `epsilon_greedy_action`.
    """

    def __init__(self, settings: Settings, rng: np.random.Generator) -> None:
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

    def begin_episode(self) -> None:
        """Let no action last from one episode into the next."""
        self.repeats_left = 0


def draw_seed(rng: np.random.Generator) -> int:
    """A seed for an episode: with it, `env.reset` starts the same episode again."""
    return int(rng.integers(2**31))


def evaluate(
    env: Environment,
    q_function: QFunction,
    seed: int | Sequence[int],
    steps: int = 0,
    episodes: int = 1,
    epsilon: float = EVAL_EPSILON,
    listener: start.Listener | None = None,
) -> list[float]:
    """Play whole episodes greedily, at least `episodes` of them, until `steps` steps are taken.

    The last episode is always finished, so that no short one is preferred.

    Args:
        env: one that training doesn't use.
        q_function: gives the Q values (n_actions,) of an observation (observation_size,).
        seed: it alone decides the episodes and the random actions.
        epsilon: probability of a random action.
        listener: is told of each episode and each step.

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
        if listener:
            listener.reset()
        began, episode_return, ended = played, 0.0, False
        while not ended:
            action = epsilon_greedy_action(q_function(observation), epsilon, action_rng)
            observation, reward, terminated, truncated, _ = env.step(action)
            episode_return += reward
            ended = terminated or truncated
            played += 1
            if listener:
                listener.step(action, reward, ended)
            if played - began > longest:
                return returns
        returns.append(episode_return)
    return returns


def validation_step(settings: Settings) -> int:
    """The step at which the states of avg_max_q_value are drawn from the replay buffer.

    The first evaluation needs them; before the first n-step return, the buffer is empty.
    """
    first_evaluation = min(settings.eval_every or settings.max_steps, settings.max_steps)
    return max(min(settings.q_validation_size, first_evaluation), settings.n_step)


def evaluate_policy(run: TrainingRun, env: Environment) -> None:
    """Evaluate what a run has learned so far, and keep the snapshot if it is the best.

    Where the mean return reaches `--until`, fresh episodes must confirm it: the best of many
    evaluations is partly luck.

    Args:
        env: one that training doesn't use.
    """
    settings, progress, q_function = run.settings, run.progress, run.q_function()

    def play_episodes(purpose: int, steps: int, episodes: int) -> list[float]:
        seed = settings.seed, purpose, progress.step
        with run.evaluation_bar(steps, episodes) as bar:
            return evaluate(env, q_function, seed, steps, episodes, settings.eval_epsilon, bar)

    returns = play_episodes(EVALUATION, settings.eval_steps, MIN_EPISODES)
    episode_return_avg = float(np.mean(returns)) if returns else math.nan
    avg_max_q_value = math.nan
    if len(progress.q_validation_observations):
        q_values = q_function(progress.q_validation_observations)
        avg_max_q_value = float(q_values.max(axis=1).mean())
    run.log_evaluation(returns, episode_return_avg, avg_max_q_value)
    if episode_return_avg > progress.best_average:
        run.save_best(episode_return_avg)
    # At step 0, before any training, it is a snapshot's policy: that ends no run.
    if progress.step and settings.until is not None and episode_return_avg >= settings.until:
        returns = play_episodes(CONFIRMATION, 0, CONFIRMING_EPISODES)
        run.log_confirmation(returns, CONFIRMING_EPISODES)


def train(
    settings: Settings,
    stop: Any = None,
    snapshot: Snapshot | None = None,
    resumed: start.Resumed | None = None,
    on_evaluation: Callable[[int, float], None] | None = None,
    place: Path | None = None,
    command: str | None = None,
) -> TrainingRun:
    """Train a policy; leave snapshots, TensorBoard's events and the run's state in a log folder.

    Args:
        settings: what `training_settings(Settings, {}, PRESETS)` returns.
        stop: a StopSignal; training ends after the episode in which it receives a signal.
        snapshot: its weights are those to start from, instead of random ones.
        resumed: a stopped run that is to continue.
        on_evaluation: called with the step and the mean return of each evaluation.
        place: the folder in which the log folder is made, by default the current one.
        command: that repeats the run, kept in config.json; by default one of all its settings.

    Returns:
        the run, at its end.

    Raises:
        UsageError: if the network can't be trained, or isn't the snapshot's.
        TrainingError: if the loss or the weights stop being finite, or the last save fails.
        EnvironmentFault: if the environment breaks its contract.
    """
    if not resumed:
        start.refuse_taken_names(settings, place)
    start_tensorflow(settings.threads, settings.seed)
    with ExitStack() as stack:
        env, eval_env = stack.enter_context(start.environments(settings))
        keras_model = make_network(env, settings)
        check_network(keras_model, env)
        if not resumed:
            keras_model.summary(print_fn=lambda text: log(text.rstrip()))
        model, target_model = make_models(keras_model, env, settings.scale_inputs, snapshot)
        fit_and_predict = compile_fit_and_predict(
            model,
            target_model,
            settings.batch_size,
            bool(settings.double_q),
            bool(settings.one_step),
        )
        q_function_of = compile_q_function(predict, model, env)
        rng, replay_rng, validation_rng = (
            np.random.default_rng([settings.seed, purpose])
            for purpose in (EXPLORATION, REPLAY, VALIDATION)
        )
        exploration = Exploration(settings, rng)
        replay_buffer = ReplayBuffer(
            settings.buffer_size,
            env.observation_size,
            settings.gamma,
            settings.n_step,
            replay_rng,
            one_step=bool(settings.one_step),
        )
        run = TrainingRun(
            settings,
            env,
            parts={
                "model": model,
                "target_model": target_model,
                "replay_buffer": replay_buffer,
                "rng": rng,
                "replay_rng": replay_rng,
            },
            q_function=lambda: q_function_of(model.averaged_weights()),
            make_logger=TensorBoardLogger,
            evaluate=evaluate,
            stop=stop,
            resumed=resumed,
            on_evaluation=on_evaluation,
            place=place,
            command=command,
        )
        stack.enter_context(run)
        progress = run.progress
        drawing_step = validation_step(settings)
        episode_ended = True
        if snapshot and settings.eval_every:
            evaluate_policy(run, eval_env)
        for step in run.steps():
            if episode_ended:
                progress.episode += 1
                observation, _ = env.reset(seed=draw_seed(rng))
                exploration.begin_episode()
                # Training plays the weights of now; evaluations play their running average.
                q_function = q_function_of(model.get_weights())
                q_values = q_function(observation)

            action = exploration.action(q_values, step)
            next_observation, reward, terminated, truncated, _ = env.step(action)
            replay_buffer.gamma = gamma_at(step, settings)  # of the returns that are stored now
            replay_buffer.add(observation, action, reward, next_observation, terminated, truncated)
            observation, episode_ended = next_observation, terminated or truncated

            if step < settings.train_start:
                q_values = q_function(observation)
            else:
                if step == settings.train_start:  # where bounds are unknown, these tell the scale
                    model.scale_unbounded_inputs(replay_buffer.observations[: len(replay_buffer)])
                if step % settings.target_update_every == 0 or step == settings.train_start:
                    target_model.set_weights(model.get_weights())
                batch = replay_buffer.sample(settings.batch_size)
                fitted = fit_and_predict(batch, observation)
                progress.loss, q_values = float(fitted[0]), fitted[1:]
                # Weights that aren't finite numbers spoil the Q values of all actions alike.
                if not (math.isfinite(progress.loss) and math.isfinite(fitted[1])):
                    raise TrainingError(diverged(step))

            run.log_step(reward, episode_ended)
            if step == drawing_step and not len(progress.q_validation_observations):
                progress.q_validation_observations = replay_buffer.draw_observations(
                    settings.q_validation_size, validation_rng
                )
            if run.is_due(settings.eval_every):
                evaluate_policy(run, eval_env)
            if run.is_due(settings.snapshot_every):
                run.save()
    return run


def play(
    settings: PlaySettings,
    snapshot: Snapshot,
    trained: Settings | None = None,
    stop: Any = None,
) -> list[float]:
    """Play a snapshot's policy, in a window, as pictures or in numbers; return the returns.

    Args:
        trained: settings of the policy's run. `create_model` makes its network with them, unless
            that is a chain of Dense layers.
        stop: a StopSignal; playing ends when it has received a signal.
    """
    with watching(settings, stop) as (env, watcher):
        make_model = partial(make_network, env, trained or Settings())
        q_function = load_q_function(snapshot, env, predict, make_model)
        returns = evaluate(
            env, q_function, settings.seed, episodes=settings.episodes, listener=watcher
        )
        if len(returns) < settings.episodes:
            watcher.give_up()
    return watcher.returns


def main(
    argv: list[str] | None = None,
    stop: Any = None,
    on_evaluation: Callable[[int, float], None] | None = None,
    place: Path | None = None,
) -> int:
    """Do what the command line says; return the exit status.

    Args:
        argv: the words after `run.py`, by default the program's own.
        stop: ends training when its `number` is set, by default at Ctrl-C and other signals.
        on_evaluation: called with the step and the mean return of each evaluation in training.
        place: the folder in which a log folder is made, by default the current one.
    """
    with Program("run.py", stop) as program:
        command, given = start.read_command_line(argv, Settings, PRESETS)
        if command == "test":
            self_check.run(main, given, program.stop)
        elif command == "play":
            playing, policy, trained = start.policy_to_play(given, Settings)
            play(playing, policy, trained, program.stop)
        elif command == "resume":
            with start.run_to_resume(given, Settings) as resumed:
                ended = train(resumed.settings, program.stop, None, resumed, on_evaluation)
                summary.summarise(ended)
        else:
            settings, snapshot = start.run_to_start(given, Settings, PRESETS)
            words = start.repeating(sys.argv[1:] if argv is None else argv, settings)
            ended = train(settings, program.stop, snapshot, None, on_evaluation, place, words)
            summary.summarise(ended)
    return program.status


if __name__ == "__main__":
    sys.exit(main())
