"""How long a training step takes, part by part, beside Stable-Baselines3's DQN.

The last lines compare with Stable-Baselines3, where it is installed (requirements-bench.txt):
the same environment, network, batch and buffer, one fit after every step, taken in turns.
"""

import contextlib
import io
import os
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # Ctrl-C during the imports below: no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from harness.requirements import check_requirements

    check_requirements("bench.py")

import numpy as np

import run
from harness.backend import start_tensorflow
from harness.environments import make_environment
from harness.errors import UsageError
from harness.flags import Flag, Parser, Use
from harness.network import FlatModel
from harness.settings import training_settings
from harness.terminal import StopSignal, start_program
from replay_buffer import ReplayBuffer

STEPS = 3000  # of a turn
WARM_STEPS = 1000  # of them; TensorFlow compiles in these
SIZES = ("hidden", "batch_size", "buffer_size", "n_step", "max_repeat", "ema_momentum")


def time_parts(settings: Namespace, turns: int, stop: StopSignal) -> dict[str, float]:
    """The median time of each part of a training step, alone and warm, in µs."""
    env = make_environment(settings.env)
    keras_model = run.create_model(env, settings.hidden, ema_momentum=settings.ema_momentum)
    model = FlatModel(keras_model, keras_model.optimizer)
    fit = run.compile_fit_and_predict(model, FlatModel(keras_model), settings.batch_size)
    rng = np.random.default_rng(1)
    exploration = run.Exploration(settings, rng)
    buffer = ReplayBuffer(
        settings.buffer_size, env.observation_size, settings.gamma, settings.n_step, rng
    )
    observation, _ = env.reset(seed=1)
    q_values = run.q_function(model.get_weights(), observation)

    def step_environment() -> None:
        *_, terminated, truncated, _ = env.step(1)
        if terminated or truncated:
            env.reset()

    def store() -> None:
        buffer.add(observation, 1, -1.0, observation, False, False)

    while len(buffer) < settings.batch_size:
        store()
    batch = buffer.sample(settings.batch_size)
    parts: dict[str, Callable[[], object]] = {
        "act": lambda: exploration.action(q_values, 1),
        "environment step": step_environment,
        "store": store,
        "sample": lambda: buffer.sample(settings.batch_size),
        "fit and predict": lambda: fit(batch, observation),
    }
    microseconds = {}
    for name, part in parts.items():
        part()
        times = []
        for _ in range(turns):
            if stop.number:
                return {}
            started = time.perf_counter()
            for _ in range(WARM_STEPS):
                part()
            times.append((time.perf_counter() - started) / WARM_STEPS * 1e6)
        microseconds[name] = median(times)
    return microseconds


def run_points(settings: Namespace, stop: StopSignal) -> list[float]:
    """What a step of a real run takes in µs, episode by episode, as its own plots tell it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            run.train(settings, Path(folder), stop)
        if stop.number:
            return []
        points = EventAccumulator(folder).Reload().Scalars("steps_per_second")
    return [1e6 / point.value for point in points if point.step > WARM_STEPS]


def stable_baselines(settings: Namespace) -> Callable[[int], object] | None:
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
        gymnasium.make(settings.env),
        buffer_size=settings.buffer_size,
        batch_size=settings.batch_size,
        train_freq=1,
        target_update_interval=settings.target_update_every,
        exploration_initial_eps=settings.epsilon,
        exploration_final_eps=settings.epsilon,
        policy_kwargs={"net_arch": list(settings.hidden)},
        device="cpu",
    )
    return lambda steps: model.learn(steps, reset_num_timesteps=False)


def measure(settings: Namespace, turns: int, stop: StopSignal) -> None:
    """Take the turns, and print what they took, unless they are stopped."""
    start_tensorflow(settings.threads, settings.seed)
    peer = stable_baselines(settings)
    ours, theirs = [], []
    for _ in range(turns):
        points = run_points(settings, stop)
        if stop.number:
            return
        ours.append(median(points))
        if peer:
            started = time.perf_counter()
            peer(STEPS)
            theirs.append((time.perf_counter() - started) / STEPS * 1e6)
    figures = time_parts(settings, turns, stop)
    if stop.number:
        return
    figures["whole step"] = median(ours)
    if theirs:
        figures["Stable-Baselines3's step"] = median(theirs)
    for name, figure in figures.items():
        print(f"{name:30} {figure:9.2f} µs")
    print(f"{'steps per second':30} {1e6 / median(ours):9.0f}")
    if theirs:
        ratio = median(their / our for our, their in zip(ours, theirs, strict=True))
        print(f"{'ratio':30} {ratio:9.2f}")
    else:
        print("to compare with Stable-Baselines3: pip install -r requirements-bench.txt")


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    start_program()
    parser = Parser(
        prog="bench.py", description="Measure how long a training step takes, part by part."
    )
    turns_flag = Flag(9, 1, 1000, "")
    parser.add_argument("--turns", type=turns_flag.parse, default=9, metavar="N", help="default 9")
    names = ("threads", "preset", *SIZES)
    parser.add_flags({name: run.ALL_FLAGS[name] for name in names}, Use.TRAIN)
    given = parser.parse(argv)
    turns = given.pop("turns")
    given |= {"seed": 1, "max_steps": STEPS, "train_start": 500, "eval_every": 0, "log_every": 1}
    given["snapshot_every"] = 0
    try:
        settings = training_settings(given, run.ALL_FLAGS, run.PRESETS)
    except UsageError as error:
        parser.error(str(error))
    with StopSignal() as stop:
        measure(settings, turns, stop)
    return stop.exit_status


if __name__ == "__main__":
    sys.exit(main())
