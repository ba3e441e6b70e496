"""How long a training step takes, part by part, beside Stable-Baselines3's DQN.

    python bench.py                 a table of medians, in microseconds
    python bench.py --json FILE     the same figures as JSON

The last line compares with Stable-Baselines3, where it is installed (requirements-bench.txt):
the same environment, network, batch and buffer, one fit after every step, taken in turns.
"""

import io
import json
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

import run
from harness.arguments import Parser, whole
from harness.backend import start_tensorflow
from harness.environments import ENVIRONMENT, make_environment
from harness.errors import reason
from harness.network import FlatModel
from harness.settings import training_settings
from replay_buffer import ReplayBuffer


class Parts:
    """The parts of a training step, each to be called over and over."""

    def __init__(self, hidden, batch_size, buffer_size):
        self.env = make_environment(ENVIRONMENT)
        self.observation, _ = self.env.reset(seed=0)
        self.buffer = ReplayBuffer(buffer_size, 2, 0.99, seed=1)
        for _ in range(buffer_size):
            self.store()
        self.rng, self.q_values = np.random.default_rng(0), np.zeros(3, np.float32)
        self.batch_size, self.batch = batch_size, self.buffer.sample(batch_size)
        keras_model = run.create_model(self.env, hidden)
        model, target_model = FlatModel(keras_model), FlatModel(keras_model)
        self.fit_and_predict = run.compile_fit_and_predict(model, target_model, batch_size)

    def act(self):
        """Choose an action."""
        run.epsilon_greedy_action(self.q_values, 0.01, self.rng)

    def step(self):
        """One step of gym's environment."""
        *_, terminated, truncated, _ = self.env.step(1)
        if terminated or truncated:
            self.env.reset()

    def store(self):
        """Store a transition."""
        self.buffer.add(self.observation, 1, -1.0, self.observation, False, False)

    def sample(self):
        """Draw a batch."""
        self.buffer.sample(self.batch_size)

    def fit(self):
        """Fit a batch, and predict the next action's Q values."""
        self.fit_and_predict(self.batch, self.observation)


class Turns:
    """Stands in for `run.train`'s StopSignal, which it asks once a step: times the real loop.

    After every `steps` steps the peer takes its turn; after `turns` turns training is stopped.
    The first turn of each isn't counted: it compiles.
    """

    def __init__(self, steps, turns, peer=None):
        self.steps, self.turns, self.peer = steps, turns, peer
        self.asked, self.ours, self.theirs = 0, [], []

    @property
    def number(self):
        """0 to train on, 1 to stop."""
        self.asked += 1
        if self.asked % self.steps:
            return 0
        now = time.perf_counter()
        if self.asked > self.steps:
            self.ours.append((now - self.start) / self.steps * 1e6)
            if self.peer:
                self.peer(self.steps)
                self.theirs.append((time.perf_counter() - now) / self.steps * 1e6)
        self.start = time.perf_counter()
        return int(len(self.ours) == self.turns)


def stable_baselines(hidden, batch_size, buffer_size):
    """Stable-Baselines3's DQN on the same work; a function that trains it for some steps."""
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
        learning_rate=run.LEARNING_RATE,
        buffer_size=buffer_size,
        learning_starts=100,
        batch_size=batch_size,
        gamma=run.DISCOUNT_FACTOR_GAMMA,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=run.TARGET_UPDATE_EVERY,
        exploration_initial_eps=run.TRAIN_EPSILON,
        exploration_final_eps=run.TRAIN_EPSILON,
        max_grad_norm=1.0,
        policy_kwargs={"net_arch": list(hidden)},
        device="cpu",
    )
    model.learn(200)  # past learning_starts
    return lambda steps: model.learn(steps, reset_num_timesteps=False)


def time_parts(hidden, batch_size, buffer_size, repeats=9, calls=300):
    """Medians over `repeats` of the microseconds that each part takes, called in turns."""
    parts = Parts(hidden, batch_size, buffer_size)
    times = {part: [] for part in ("act", "step", "store", "sample", "fit")}
    for _ in range(repeats):
        for part, measured in times.items():
            call, start = getattr(parts, part), time.perf_counter()
            for _ in range(calls):
                call()
            measured.append((time.perf_counter() - start) / calls * 1e6)
    return {part: statistics.median(measured) for part, measured in times.items()}


def time_loop(turns, **given):
    """Run `run.train` itself for some turns, without evaluations and lines on the screen."""
    quiet = {"eval_every": 0, "log_every": 10**9, "snapshot_every": 10**9, "max_steps": 10**9}
    given = {**quiet, "train_start": 100, "seed": 1, **given}
    settings = training_settings(given, run.HYPERPARAMETERS, run.PRESETS)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        run.train(settings, Path(folder), turns)


def main():
    """Measure and print."""
    parser = Parser(prog="bench.py", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    parser.add_argument("--turns", type=whole(1, 1000), metavar="N", help="default 9")
    parser.add_argument("--threads", type=whole(0, 1024), metavar="N", help="default 1")
    table = {name: run.HYPERPARAMETERS[name] for name in ("hidden", "batch_size", "buffer_size")}
    parser.add_hyperparameters(table)
    given = vars(parser.parse_args())
    if "json" in given:
        try:
            given["json"].touch()
        except OSError as error:
            parser.error(f"--json {given['json']}: {reason(error).lower()}")
    sizes = {name: given.get(name, row.default) for name, row in table.items()}
    start_tensorflow(given.get("threads", 1), seed=1)

    figures = {f"{part} (µs)": time for part, time in time_parts(**sizes).items()}
    turns = Turns(1000, given.get("turns", 9), stable_baselines(**sizes))
    time_loop(turns, **sizes)
    ours = statistics.median(turns.ours)
    figures |= {"whole step (µs)": ours, "steps per second": 1e6 / ours}
    if turns.theirs:
        theirs = statistics.median(turns.theirs)
        figures["stable-baselines3's step (µs)"] = theirs
        figures["ratio to stable-baselines3"] = theirs / ours
    else:
        print("to compare with Stable-Baselines3: pip install -r requirements-bench.txt")
    for name, figure in figures.items():
        ratio = name.startswith("ratio")
        print(f"{name}: {figure:.2f}" if ratio else f"{name:32} {figure:10.1f}")
    if "json" in given:
        given["json"].write_text(json.dumps({**sizes, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
