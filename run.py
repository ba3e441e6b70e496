"""Deep Q-learning on MountainCar, as the tutorial teaches it: train a policy, then watch it.

python run.py                        train; the log folder is named after the date
python run.py --model NAME-log       watch its best policy in a window
python run.py --help                 everything else
"""

import math
import os
import signal
import sys

if __name__ == "__main__":  # Ctrl-C during the imports below: no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import numpy as np

from harness.arguments import MANY, Hyperparameter, parse_arguments
from harness.backend import compile_step, keras, start_tensorflow, tf
from harness.environments import make_environment, observation_bounds
from harness.errors import TrainingError, UsageError, finite
from harness.log_folder import locked
from harness.network import FlatModel, q_function
from harness.report import report
from harness.self_check import self_check
from harness.settings import refuse_others
from harness.start import policy_to_play, starting_point
from harness.terminal import ProgressBar, StopSignal
from harness.training_run import TrainingRun
from harness.viewer import play
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
    "gamma": Hyperparameter(DISCOUNT_FACTOR_GAMMA, 0, 1, "discount factor of future rewards"),
    "learning_rate": Hyperparameter(LEARNING_RATE, 1e-9, 10, "Adam's learning rate"),
    "n_step": Hyperparameter(1, 1, 1000, "rewards summed before bootstrapping"),
    "hidden": Hyperparameter((32, 32), 1, 8192, "units of each hidden layer"),
    "scale_inputs": Hyperparameter(0, 0, 1, "1: scale first weights to the observations' bounds"),
    "batch_size": Hyperparameter(BATCH_SIZE, 1, 10**6, "transitions fitted at each step"),
    "target_update_every": Hyperparameter(TARGET_UPDATE_EVERY, 1, MANY, "steps per target copy"),
    "epsilon": Hyperparameter(TRAIN_EPSILON, 0, 1, "probability of a random action"),
    "initial_epsilon": Hyperparameter(1.0, 0, 1, "epsilon at the start of --epsilon-decay-steps"),
    "epsilon_decay_steps": Hyperparameter(0, 0, MANY, "steps over which epsilon falls, 0 for none"),
    "max_repeat": Hyperparameter(1, 1, MANY, "most steps that a random action is repeated for"),
    "buffer_size": Hyperparameter(REPLAY_BUFFER_SIZE, 1, 10**8, "transitions kept for replay"),
    "train_start": Hyperparameter(TRAIN_START, 1, MANY, "first step that fits a batch"),
    "ema_momentum": Hyperparameter(0.0, 0, 0.999999, "share of the average that a step keeps"),
    "clipnorm": Hyperparameter(1.0, 1e-9, MANY, "longest gradient of all weights together"),
    "max_steps": Hyperparameter(MAX_STEPS, 1, MANY, "steps to train for"),
    "eval_every": Hyperparameter(EVAL_EVERY, 0, MANY, "steps between evaluations, 0 for none"),
    "eval_steps": Hyperparameter(EVAL_STEPS, 1, MANY, "steps an evaluation plays"),
    "eval_epsilon": Hyperparameter(EVAL_EPSILON, 0, 1, "share of random actions in an evaluation"),
    "log_every": Hyperparameter(LOG_EVERY, 1, MANY, "steps between log lines"),
    "snapshot_every": Hyperparameter(SNAPSHOT_EVERY, 1, MANY, "steps between snapshots"),
    "q_validation_size": Hyperparameter(Q_VALIDATION_SIZE, 1, 10**6, "states of avg_max_q_value"),
}
PRESETS = {
    "tutorial": {},
    "tuned": {"gamma": 0.999, "n_step": 7, "hidden": (64, 64), "scale_inputs": 1, "max_repeat": 40}
    | {"target_update_every": 500, "initial_epsilon": 0.3, "epsilon_decay_steps": 50000}
    | {"ema_momentum": 0.9995},
}


def create_model(env, hidden=(32, 32), learning_rate=LEARNING_RATE, clipnorm=1.0, scale_inputs=0):
    """The Q network: Q values of the actions that the mask lets through, zeros for the others.

    Args:
        env: gym environment, asked for the sizes of its observations and actions.
        hidden: tuple of int, the units of each hidden layer.
        clipnorm: the longest gradient of all weights together; longer ones are shortened to it.
        scale_inputs: 1 to begin as if all observed numbers ranged from -1 to 1, as LeCun et al.
            1998 advise ("Efficient BackProp", section 4.3): a velocity is at most 0.07.

    Returns:
        compiled keras.Model of float32 inputs (batch, *observation shape) and (batch, n_actions).
    """
    n_actions = int(env.action_space.n)
    layer = observations = keras.layers.Input(env.observation_space.shape, name="observations")
    action_mask = keras.layers.Input((n_actions,), name="action_mask")
    for number, units in enumerate(hidden, start=1):
        layer = keras.layers.Dense(units, activation="relu", name=f"hidden_{number}")(layer)
    output = keras.layers.Dense(n_actions, name="output")(layer)
    filtered_output = keras.layers.Multiply(name="filtered_output")([output, action_mask])
    model = keras.Model([observations, action_mask], filtered_output, name="q_network")
    if scale_inputs:
        kernel, *others = model.get_weights()
        model.set_weights([kernel / observation_bounds(env)[:, None], *others])
    optimizer = keras.optimizers.Adam(learning_rate, global_clipnorm=clipnorm)
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
    columns = split_columns(batch, model.input_shape[0][-1])
    observations, actions, rewards, next_observations, discounts = columns
    next_q_values = predict(target_model, next_observations)
    # The discount of a terminated transition is 0: its next state has no value.
    q_values = rewards + discounts * tf.reduce_max(next_q_values, axis=1)
    one_hot_actions = tf.one_hot(tf.cast(actions, tf.int32), model.output_shape[-1])
    return model.fit([observations, one_hot_actions], one_hot_actions * q_values[:, None])


def compile_fit_and_predict(model, target_model, batch_size):
    """Compile all that a training step asks of TensorFlow into one call.

    Returns:
        function of a batch and of the next observation, float32 arrays, that fits the batch and
        returns a float32 array (1 + n_actions,): the loss, then the observation's Q values.
    """

    def fit_and_predict(batch, observation):
        loss = fit_batch(model, target_model, batch)
        return tf.concat([[loss], predict(model, observation[None])[0]], axis=0)

    size = model.input_shape[0][-1]
    return compile_step(fit_and_predict, (batch_size, row_width(size)), (size,))


def greedy_action(q_values):
    """The action with the largest of the Q values, an array (n_actions,)."""
    return int(q_values.argmax())


def epsilon_greedy_action(q_values, epsilon, rng):
    """A random action with probability `epsilon`, else the greedy one."""
    if rng.random() < epsilon:
        return int(rng.integers(len(q_values)))
    return greedy_action(q_values)


def epsilon_at(step, settings):
    """Epsilon, which falls linearly from its initial value (Mnih et al. 2015, table 1)."""
    steps = settings.epsilon_decay_steps
    left = max(1 - step / steps, 0) if steps else 0
    return settings.epsilon + left * (settings.initial_epsilon - settings.epsilon)


def exploring_action(q_values, epsilon, rng, max_repeat, progress):
    """Epsilon-greedy, but a random action may last: εz-greedy (Dabney et al. 2021, algorithm 1).

    It lasts for a number of steps drawn from a zeta distribution with exponent 2, cut at
    `max_repeat`; `progress` (Progress) holds it. With 1, this is `epsilon_greedy_action`.
    """
    if max_repeat == 1:
        return epsilon_greedy_action(q_values, epsilon, rng)
    if not progress.repeats_left:
        if rng.random() >= epsilon:
            return greedy_action(q_values)
        progress.repeated_action = int(rng.integers(len(q_values)))
        progress.repeats_left = min(int(rng.zipf(2)), max_repeat)
    progress.repeats_left -= 1
    return progress.repeated_action


def evaluate(env, weights, settings, step):
    """Play `settings.eval_steps` steps on an environment that training doesn't use.

    Args:
        weights: list of arrays, the network's kernels and biases.
        step: of the training; it and the run's seed fix the episodes and the random actions.

    Returns:
        the mean return over the episodes completed within those steps, NaN if there are none.
    """
    eval_steps, epsilon = settings.eval_steps, settings.eval_epsilon
    rng = np.random.default_rng([settings.seed, 3, step])
    returns, episode_return = [], 0.0
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    with ProgressBar(eval_steps, "steps", desc="evaluation ", delay=1, leave=False) as bar:
        for played in range(1, eval_steps + 1):
            action = epsilon_greedy_action(q_function(weights, observation), epsilon, rng)
            observation, reward, terminated, truncated, _ = env.step(action)
            episode_return += float(reward)
            if terminated or truncated:
                returns.append(episode_return)
                episode_return = 0.0
                observation, _ = env.reset(seed=int(rng.integers(2**31)))
                bar.reach(played)
    return sum(returns) / len(returns) if returns else math.nan


def train(settings, folder, stop, weights=None, state=None, on_evaluation=None):
    """Train a policy; leave snapshots, TensorBoard's events and the run's state in `folder`.

    Args:
        settings: Namespace of every hyperparameter, and of `env`, `set` and `seed`.
        folder: Path of the log folder, `NAME-log`.
        stop: StopSignal; training ends after the step in which it is set.
        weights: list of arrays to start from, instead of random weights.
        state: what `load_state` returned of a run to go on with.
        on_evaluation: called with the step and the average of each evaluation.

    Returns:
        TrainingRun, at its end.

    Raises:
        TrainingError: if the loss or the weights stop being finite, or the last save fails.
    """
    env = make_environment(settings.env, settings.set)
    eval_env = make_environment(settings.env, settings.set)
    keras_model = create_model(
        env, settings.hidden, settings.learning_rate, settings.clipnorm, settings.scale_inputs
    )
    model = FlatModel(keras_model, weights, settings.ema_momentum)
    target_model = FlatModel(keras_model, weights)
    size, seed = env.observation_space.shape[0], [settings.seed, 1]
    replay_buffer = ReplayBuffer(settings.buffer_size, size, settings.gamma, settings.n_step, seed)
    fit_and_predict = compile_fit_and_predict(model, target_model, settings.batch_size)
    rng = np.random.default_rng([settings.seed, 0])
    parts = {"model": model, "target_model": target_model, "replay_buffer": replay_buffer}
    parts |= {"rng": rng, "replay_rng": replay_buffer.rng}

    with TrainingRun(settings, folder, stop, TensorBoardLogger(folder), parts) as run:
        observation, q_values = run.start(env, state)
        weights, loss = model.get_weights(), run.progress.loss
        for step in run.steps():
            epsilon = epsilon_at(step, settings)
            action = exploring_action(q_values, epsilon, rng, settings.max_repeat, run.progress)
            next_observation, reward, terminated, truncated, _ = env.step(action)
            replay_buffer.add(observation, action, reward, next_observation, terminated, truncated)
            if terminated or truncated:
                next_observation, _ = env.reset(seed=run.draw_seed())
            observation = np.asarray(next_observation, np.float32)

            if step < settings.train_start:
                q_values = q_function(weights, observation)
            else:
                if step % settings.target_update_every == 0:
                    target_model.set_weights(model.get_weights())
                batch = replay_buffer.sample(settings.batch_size)
                fitted = finite(fit_and_predict(batch, observation), step)
                loss, q_values = fitted[0], fitted[1:]

            run.log_step(action, reward, terminated or truncated, loss, q_values)
            if run.is_due(settings.eval_every):
                average = evaluate(eval_env, model.averaged_weights(), settings, step)
                run.log_evaluation(average)
                if on_evaluation:
                    on_evaluation(step, average)
            if run.is_due(settings.snapshot_every):
                run.save()
        run.finish()
    return run


def main(argv=None, stop=None, on_evaluation=None):
    """Do what the command line says; return the exit status."""
    stop = stop or StopSignal()
    given = parse_arguments(argv, HYPERPARAMETERS, PRESETS)
    try:
        if "test" in given:
            refuse_others(given, {"test"}, "with --test")
            self_check(main, stop)
        elif "model" in given and not {"train", "resume"} & given.keys():
            settings, weights = policy_to_play(given, HYPERPARAMETERS)
            play(settings, stop, lambda seen: greedy_action(q_function(weights, seen)))
        else:
            settings, folder, start = starting_point(given, HYPERPARAMETERS, PRESETS)
            with locked(folder):
                start_tensorflow(settings.threads, settings.seed)
                report(train(settings, folder, stop, on_evaluation=on_evaluation, **start))
    except (UsageError, TrainingError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return stop.exit_status


if __name__ == "__main__":
    sys.exit(main())
