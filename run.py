"""Deep Q-learning on MountainCar, as the tutorial teaches it: train a policy, then watch it.

python run.py                        train; the log folder is named after the date
python run.py --model NAME-best.h5   watch a trained policy in a window
python run.py --help                 everything else
"""

import math
import os
import signal
import sys
import time

if __name__ == "__main__":  # Ctrl-C during the imports below: no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import numpy as np

import checkpoint
import commands
from arguments import Hyperparameter, UsageError, parse_arguments
from backend import FlatModel, compile_step, keras, start_tensorflow, tf
from checkpoint import Episode, Progress, StopSignal, TrainingError
from environments import make_environment
from files import ProgressBar, attempt, claimed, create_log_folder, save_json, say
from loggers import TensorBoardLogger, load_weights, save_policy
from replay_buffer import ReplayBuffer, split_columns
from viewer import watch

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

MANY = 10**9
HYPERPARAMETERS = {
    "gamma": Hyperparameter(DISCOUNT_FACTOR_GAMMA, 0, 1, "discount factor of future rewards"),
    "learning_rate": Hyperparameter(LEARNING_RATE, 1e-9, 10, "Adam's learning rate"),
    "clipnorm": Hyperparameter(1.0, 1e-9, MANY, "longest gradient of a layer's kernel or bias"),
    "hidden": Hyperparameter((32, 32), 1, 8192, "units of each hidden layer"),
    "batch_size": Hyperparameter(BATCH_SIZE, 1, 10**6, "transitions fitted at each step"),
    "buffer_size": Hyperparameter(REPLAY_BUFFER_SIZE, 1, 10**8, "transitions kept for replay"),
    "train_start": Hyperparameter(TRAIN_START, 1, MANY, "first step that fits a batch"),
    "target_update_every": Hyperparameter(TARGET_UPDATE_EVERY, 1, MANY, "steps per target copy"),
    "epsilon": Hyperparameter(TRAIN_EPSILON, 0, 1, "share of random actions in training"),
    "max_steps": Hyperparameter(MAX_STEPS, 1, MANY, "steps to train for"),
    "log_every": Hyperparameter(LOG_EVERY, 1, MANY, "steps between log lines"),
    "snapshot_every": Hyperparameter(SNAPSHOT_EVERY, 1, MANY, "steps between snapshots"),
    "eval_every": Hyperparameter(EVAL_EVERY, 0, MANY, "steps between evaluations, 0 for none"),
    "eval_steps": Hyperparameter(EVAL_STEPS, 1, MANY, "steps an evaluation plays"),
    "eval_epsilon": Hyperparameter(EVAL_EPSILON, 0, 1, "share of random actions in an evaluation"),
    "q_validation_size": Hyperparameter(Q_VALIDATION_SIZE, 1, 10**6, "states of avg_max_q_value"),
    "n_step": Hyperparameter(1, 1, 1000, "rewards summed before bootstrapping"),
    "ema": Hyperparameter(0.0, 0, 0.999999, "momentum of the weights' average, 0 for none"),
}
PRESETS = {
    "tutorial": {},
    "tuned": {"gamma": 0.999, "n_step": 10, "hidden": (64, 64)},
}


def create_model(env, hidden=(32, 32), learning_rate=LEARNING_RATE, clipnorm=1.0, ema=0.0):
    """The Q network: Q values of the actions that the mask lets through, zeros for the others.

    Args:
        env: gym environment, asked for the sizes of its observations and actions.
        hidden: tuple of int, the units of each hidden layer.
        clipnorm: the longest gradient of a kernel or bias; longer ones are shortened to it.
        ema: momentum of Adam's average of the weights (Keras' `ema_momentum`), 0 for no average.

    Returns:
        compiled keras.Model of float32 inputs (batch, *observation shape) and (batch, n_actions).
    """
    n_actions = int(env.action_space.n)
    observations = keras.layers.Input(env.observation_space.shape, name="observations")
    action_mask = keras.layers.Input((n_actions,), name="action_mask")
    layer = observations
    for number, units in enumerate(hidden, start=1):
        layer = keras.layers.Dense(units, activation="relu", name=f"hidden_{number}")(layer)
    output = keras.layers.Dense(n_actions, name="output")(layer)
    filtered_output = keras.layers.Multiply(name="filtered_output")([output, action_mask])
    model = keras.Model([observations, action_mask], filtered_output, name="q_network")
    average = {"use_ema": True, "ema_momentum": ema} if ema else {}
    optimizer = keras.optimizers.Adam(learning_rate, clipnorm=clipnorm, **average)
    model.compile(optimizer, loss="mean_squared_error")
    return model


def predict(model, observations):
    """Q values of every action, a tensor (batch, n_actions): a mask of ones lets all through."""
    action_mask = tf.ones((observations.shape[0], model.output_shape[-1]))
    return model([tf.convert_to_tensor(observations), action_mask])


def fit_batch(model, target_model, batch):
    """Fit `model` (FlatModel) to the Bellman equation on a batch of transitions.

    Q(s, a) = r + γ max Q(s', a') over a', with Q(s', ·) from `target_model` (Mnih et al. 2015,
    "Human-level control through deep reinforcement learning", algorithm 1).

    Args:
        batch: float32 tensor (batch_size, row_width) of ReplayBuffer.sample.

    Returns:
        the loss, a float32 scalar.
    """
    observations, actions, rewards, next_observations, discounts = split_columns(
        batch, model.input_shape[0][1:]
    )
    next_q_values = predict(target_model, next_observations)
    # The discount behind a terminated transition is 0: its next state has no value.
    q_values = rewards + discounts * tf.reduce_max(next_q_values, axis=1)
    one_hot_actions = tf.one_hot(tf.cast(actions, tf.int32), model.output_shape[-1])
    return model.fit([observations, one_hot_actions], one_hot_actions * q_values[:, None])


def compile_fit_and_predict(model, target_model, batch_shape, observation_shape):
    """Compile all that a training step asks of TensorFlow into one call.

    Returns:
        function of a batch and of the next observation, float32 arrays, that fits the batch and
        returns a float32 array (1 + n_actions,): the loss, then the observation's Q values.
    """

    def fit_and_predict(batch, observation):
        loss = fit_batch(model, target_model, batch)
        return tf.concat([[loss], predict(model, observation[None])[0]], axis=0)

    return compile_step(fit_and_predict, batch_shape, observation_shape)


def q_function(weights, observations):
    """Q values as `predict` gives them, in NumPy: 6 µs for one observation, TensorFlow needs 80.

    Args:
        weights: list of float32 arrays, the layers' kernels and biases.
        observations: float32 array (n,) of one observation, or (batch, n).

    Returns:
        float32 array (n_actions,), or (batch, n_actions).
    """
    layer = observations
    for kernel, bias in zip(weights[0:-2:2], weights[1:-2:2]):  # noqa: B905, strict costs time
        layer = layer.dot(kernel)
        layer += bias
        np.maximum(layer, 0, out=layer)
    return layer.dot(weights[-2]) + weights[-1]


def greedy_action(q_values):
    """The action with the largest of the Q values, an array (n_actions,)."""
    return int(q_values.argmax())


def epsilon_greedy_action(q_values, epsilon, rng):
    """A random action with probability `epsilon`, else the greedy one."""
    if rng.random() < epsilon:
        return int(rng.integers(len(q_values)))
    return greedy_action(q_values)


def new_seed(rng):
    """A seed for an episode: with it, `env.reset` starts the same episode again."""
    return int(rng.integers(2**31))


def evaluate(env, weights, eval_steps, epsilon, seed, stop=None):
    """Play `eval_steps` steps on an environment that training doesn't use.

    Args:
        seed: list of int, seeds the episodes and the random actions.
        stop: StopSignal, cuts the evaluation short.

    Returns:
        the mean return over the episodes completed within those steps, NaN if there are none;
        None if it was cut short.
    """
    rng = np.random.default_rng(seed)
    returns, episode_return = [], 0.0
    observation, _ = env.reset(seed=new_seed(rng))
    with ProgressBar(eval_steps, "steps", desc="evaluation ", delay=1, leave=False) as bar:
        for step in range(1, eval_steps + 1):
            if stop and stop.number:
                return None
            action = epsilon_greedy_action(q_function(weights, observation), epsilon, rng)
            observation, reward, terminated, truncated, _ = env.step(action)
            episode_return += float(reward)
            if terminated or truncated:
                returns.append(episode_return)
                episode_return = 0.0
                observation, _ = env.reset(seed=new_seed(rng))
                bar.reach(step)
    return sum(returns) / len(returns) if returns else math.nan


def train(settings, folder, stop, weights=None, state=None):
    """Train a policy; leave snapshots, TensorBoard's events and the run's state in `folder`.

    Args:
        settings: Namespace of every hyperparameter, and of `env`, `set` and `seed`.
        folder: Path of the log folder, `NAME-log`.
        stop: StopSignal; training ends behind the step in which it is set.
        weights: list of arrays to start from, instead of random weights.
        state: what `load_state` returned of a run to go on with.

    Returns:
        Progress: the step reached and the best evaluation.

    Raises:
        TrainingError: if the loss or the weights stop being finite, or the last save fails.
    """
    env = make_environment(settings.env, settings.set)
    eval_env = make_environment(settings.env, settings.set)
    keras_model = create_model(
        env, settings.hidden, settings.learning_rate, settings.clipnorm, settings.ema
    )
    if weights:
        keras_model.set_weights(weights)
    model, target_model = FlatModel(keras_model), FlatModel(keras_model)
    shape = env.observation_space.shape
    replay_buffer = ReplayBuffer(
        settings.buffer_size, shape, settings.gamma, settings.n_step, seed=[settings.seed, 1]
    )
    batch_shape = (settings.batch_size, replay_buffer.rows.shape[1])
    fit_and_predict = compile_fit_and_predict(model, target_model, batch_shape, shape)

    rng = np.random.default_rng([settings.seed, 0])
    progress = Progress(Episode(1, new_seed(rng)))
    observation = progress.episode.replay(env)
    fitted = np.full(1 + int(env.action_space.n), math.nan, np.float32)
    q_validation_observations = np.zeros((0, *shape), np.float32)
    parts = {"rng": rng, "replay_rng": replay_buffer.rng, "replay_buffer": replay_buffer}
    parts |= {"model": model, "target_model": target_model}
    if state:
        restored = checkpoint.restore(state, parts, env)
        progress, observation, fitted, q_validation_observations = restored
    loss, q_values = fitted[0], fitted[1:]
    untrained = model.get_weights()

    # Drawn at the latest when the first evaluation needs them, but not from an empty buffer.
    q_validation_step = min(settings.q_validation_size, settings.eval_every or settings.max_steps)
    q_validation_step = max(q_validation_step, settings.n_step)

    keras_model.summary(print_fn=lambda text: say(text.rstrip()))
    say(f"Resumed {folder} at step {progress.step}" if state else f"Created {folder}")
    configuration = commands.config(settings)
    attempt(save_json, folder / "config.json", configuration)

    def save_run():
        arrays = {"fitted": fitted, "q_validation_observations": q_validation_observations}
        state = commands.plain(settings), progress, parts, arrays
        saved = save_policy(folder, progress.step, model, progress.step)
        return attempt(checkpoint.save_state, folder / checkpoint.STATE_FILE, *state) and saved

    def evaluate_and_log(episode):
        weights = model.get_average()
        seed = [settings.seed, 3, progress.step]
        steps, epsilon = settings.eval_steps, settings.eval_epsilon
        average = evaluate(eval_env, weights, steps, epsilon, seed, stop)
        progress.evaluation_due = average is None
        if progress.evaluation_due:
            return
        max_q_values = q_function(weights, q_validation_observations).max(axis=1)
        logger.log_evaluation(episode, progress.step, average, float(max_q_values.mean()))
        bar.reach(progress.step, "evaluation", average)
        logger.log_policy(progress.step, eval_env, lambda states: q_function(weights, states))
        if average > progress.best_average and save_policy(folder, "best", model, progress.step):
            progress.best_average, progress.best_step = average, progress.step
            logger.log_best(progress.step, average)

    bar = ProgressBar(settings.max_steps, "steps", initial=progress.step)
    with bar, TensorBoardLogger(folder, progress.step) as logger:
        logger.log_configuration(configuration, commands.plain(settings))
        steps = range(progress.step + 1, settings.max_steps + 1)
        if progress.evaluation_due:  # Ctrl-C cut it short
            evaluate_and_log(progress.episode)
            saved = save_run()
            steps = () if stop.number else steps
        for step in steps:
            if step <= settings.train_start:
                q_values = q_function(untrained, observation)
            action = epsilon_greedy_action(q_values, settings.epsilon, rng)
            next_observation, reward, terminated, truncated, _ = env.step(action)
            replay_buffer.add(observation, action, reward, next_observation, terminated, truncated)
            episode = progress.episode
            episode.add(action, reward)
            if terminated or truncated:
                bar.reach(step, "return", episode.episode_return)
                progress.episode = Episode(episode.number + 1, new_seed(rng))
                next_observation, _ = env.reset(seed=progress.episode.seed)
            observation = np.asarray(next_observation, np.float32)

            if step >= settings.train_start:
                if step % settings.target_update_every == 0:
                    target_model.set_weights(model.get_weights())
                batch = replay_buffer.sample(settings.batch_size)
                fitted = checkpoint.finite(fit_and_predict(batch, observation), step)
                loss, q_values = fitted[0], fitted[1:]

            progress.step = step
            progress.log_due |= step % settings.log_every == 0
            if progress.log_due and (terminated or truncated):
                progress.log_due = False
                episode.stop_clock()
                logger.log_episode(episode, step, loss)
            if step == q_validation_step:
                q_validation_observations = replay_buffer.draw_observations(
                    settings.q_validation_size, seed=[settings.seed, 2]
                )
            if settings.eval_every and step % settings.eval_every == 0:
                with progress.episode.paused():
                    evaluate_and_log(episode)
            last = stop.number or step == settings.max_steps  # one look: it may change any time
            if last or step % settings.snapshot_every == 0:
                with progress.episode.paused():
                    saved = save_run()
            if last:
                break
        bar.reach(progress.step)

    if not saved:
        raise TrainingError(f"the last snapshot or state couldn't be saved in {folder}")
    return progress


def play(given, stop):
    """Watch or evaluate a snapshot's policy."""
    env_id, changes, seed, options = commands.playing_options(given)
    weights = load_weights(given["model"], make_environment(env_id, changes))
    say(f"Loaded {given['model']}")

    def choose_action(observation, rng):
        return greedy_action(q_function(weights, observation))

    watch(env_id, changes, choose_action, stop, seed, **options)


def start(given, stop):
    """Train a new run, from random weights or from a snapshot's."""
    settings = commands.training_settings(given, HYPERPARAMETERS, PRESETS)
    weights = None
    if "model" in given:
        weights = load_weights(settings.model, make_environment(settings.env, settings.set))
        commands.take_layers(settings, given, weights)
    train_and_report(settings, create_log_folder(settings.name), stop, weights=weights)


def resume(given, stop):
    """Go on with an interrupted run, from its folder's state."""
    folder = given["resume"]
    flags = {"resume", *commands.RESUMING, *HYPERPARAMETERS}
    commands.refuse_others(given, flags, "when a run is resumed")
    state = checkpoint.load_state(folder / checkpoint.STATE_FILE)
    settings = commands.resumed_settings(given, state, HYPERPARAMETERS)
    train_and_report(settings, folder, stop, state=state)


def train_and_report(settings, folder, stop, **options):
    """Train as `settings` say; print how it went, and the command for what to do next."""
    with claimed(folder):
        start_tensorflow(settings.threads, settings.seed)
        started = time.perf_counter()
        progress = train(settings, folder, stop, **options)
    commands.report(settings, folder, progress, time.perf_counter() - started)


def main(argv=None, stop=None):
    """Do what the command line says; return the exit status."""
    stop = stop or StopSignal()
    given = parse_arguments(argv, HYPERPARAMETERS, PRESETS)
    try:
        if "test" in given:
            commands.refuse_others(given, {"test"}, "with --test")
            commands.self_check(main, stop)
        elif "resume" in given:
            resume(given, stop)
        elif "model" in given and "train" not in given:
            play(given, stop)
        else:
            start(given, stop)
    except (UsageError, TrainingError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return stop.exit_status


if __name__ == "__main__":
    sys.exit(main())
