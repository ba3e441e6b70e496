"""How long a training step takes, part by part, beside Stable-Baselines3's DQN.

    python bench.py                 a table of medians, in microseconds
    python bench.py --json FILE     the same figures as JSON, too

The last lines compare with Stable-Baselines3, where it is installed (requirements-bench.txt):
the same environment, network, batch and buffer, one fit after every step, taken in turns.
"""

import io
import json
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from timeit import timeit

import numpy as np

import run
from harness.arguments import Parser, parse_threads, whole
from harness.backend import start_tensorflow
from harness.environments import ENVIRONMENT, make_environment
from harness.errors import UsageError, reason
from harness.network import FlatModel
from harness.settings import plain, training_settings
from replay_buffer import ReplayBuffer

CALLS = 300  # of a part, in each of its turns
STEPS = 1000  # of a program, in each of its turns
SETTINGS = {"seed": 1, "train_start": 100, "eval_every": 0, "max_steps": 10**9}
SETTINGS |= {"log_every": 10**9, "snapshot_every": 10**9}


def time_parts(settings, turns):
    """The seconds that each part of a step takes when it is called alone: dict of lists."""
    env = make_environment(ENVIRONMENT)
    observation, _ = env.reset(seed=0)
    rng, q_values = np.random.default_rng(0), np.zeros(3, np.float32)
    replay_buffer = ReplayBuffer(settings.buffer_size, 2, settings.gamma, seed=1)
    keras_model = run.create_model(env, settings.hidden)
    model, target_model = FlatModel(keras_model), FlatModel(keras_model)
    fit_and_predict = run.compile_fit_and_predict(model, target_model, settings.batch_size)

    def step():
        *_, terminated, truncated, _ = env.step(1)
        if terminated or truncated:
            env.reset()

    def store():
        replay_buffer.add(observation, 1, -1.0, observation, False, False)

    timeit(store, number=settings.buffer_size)
    batch = replay_buffer.sample(settings.batch_size)
    fit_and_predict(batch, observation)  # compiles
    parts = {
        "act": lambda: run.epsilon_greedy_action(q_values, 0.01, rng),
        "step": step,
        "store": store,
        "sample": lambda: replay_buffer.sample(settings.batch_size),
        "fit": lambda: fit_and_predict(batch, observation),
    }
    seconds = {name: [] for name in parts}
    for _ in range(turns):
        for name, part in parts.items():
            seconds[name].append(timeit(part, number=CALLS) / CALLS)
    return seconds


class Turns:
    """Stands in for the StopSignal that `run.train` asks once a step, and so times its real loop.

    After each turn the peer, if there is one, takes its own. The first turns don't count: they
    compile.
    """

    def __init__(self, turns, peer):
        self.ours, self.theirs, self.answers = [], [], self.take(turns, peer)

    @property
    def number(self):
        """0 to train on, 1 to stop."""
        return next(self.answers)

    def take(self, turns, peer):
        """Yield the answers before each step."""
        for turn in range(turns + 1):
            start = time.perf_counter()
            yield from [0] * STEPS
            middle = time.perf_counter()
            if peer:
                peer(STEPS)
            if turn:
                self.ours.append((middle - start) / STEPS)
                self.theirs.append((time.perf_counter() - middle) / STEPS)
        yield 1


def stable_baselines(settings):
    """A function that trains Stable-Baselines3's DQN for some steps; None without it."""
    try:
        import gymnasium
        import torch
        from stable_baselines3 import DQN
    except ImportError:
        return None
    torch.set_num_threads(1)
    model = DQN(
        "MlpPolicy",
        gymnasium.make(ENVIRONMENT),
        learning_rate=settings.learning_rate,
        buffer_size=settings.buffer_size,
        learning_starts=settings.train_start,
        batch_size=settings.batch_size,
        gamma=settings.gamma,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=settings.target_update_every,
        exploration_initial_eps=settings.epsilon,
        exploration_final_eps=settings.epsilon,
        max_grad_norm=1.0,
        policy_kwargs={"net_arch": list(settings.hidden)},
        device="cpu",
    )
    model.learn(200)  # past learning_starts
    return lambda steps: model.learn(steps, reset_num_timesteps=False)


def main():
    """Measure and print."""
    parser = Parser(prog="bench.py", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="save the figures")
    parser.add_argument("--turns", type=whole(1, 1000), default=9, metavar="N", help="default 9")
    parser.add_argument("--threads", type=parse_threads, metavar="N", help="default 1")
    sizes = "hidden", "batch_size", "buffer_size"
    parser.add_hyperparameters({name: run.HYPERPARAMETERS[name] for name in sizes})
    given = vars(parser.parse_args())
    path, turns = given.pop("json"), given.pop("turns")
    try:
        settings = training_settings({**SETTINGS, **given}, run.HYPERPARAMETERS, run.PRESETS)
        if path:
            path.touch()
    except UsageError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--json {path}: {reason(error).lower()}")
    start_tensorflow(settings.threads, settings.seed)

    seconds, peer = time_parts(settings, turns), stable_baselines(settings)
    stop = Turns(turns, peer)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        run.train(settings, Path(folder), stop)
    seconds["whole step"] = stop.ours
    if peer:
        seconds["Stable-Baselines3's step"] = stop.theirs
    figures = {f"{name} (µs)": median(times) * 1e6 for name, times in seconds.items()}
    if peer:
        figures["ratio"] = median(stop.theirs) / median(stop.ours)
    else:
        print("to compare with Stable-Baselines3: pip install -r requirements-bench.txt")
    for name, figure in figures.items():
        print(f"{name:30} {figure:9.2f}")
    if path:
        path.write_text(json.dumps(plain(settings) | figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
