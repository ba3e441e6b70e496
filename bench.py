"""How long a training step takes, or a solved policy, beside Stable-Baselines3's DQN.

python bench.py --preset tuned
python bench.py --preset tuned --until -110

Stable-Baselines3 takes turns with this program where it is installed (requirements-bench.txt). For
a step, it has the same environment, network, batch and buffer, and fits after every step. For a
policy, it has the settings that RL Zoo found for MountainCar.
"""

import contextlib
import io
import math
import os
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

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
from harness.requirements import installation
from harness.settings import training_settings
from harness.terminal import StopSignal, start_program
from replay_buffer import ReplayBuffer

STEPS = 3000  # of a turn
WARM_STEPS = 1000  # of them; TensorFlow compiles in these
SIZES = ("hidden", "batch_size", "buffer_size", "n_step", "max_repeat", "ema_momentum")
# RL Zoo's DQN on MountainCar-v0: github.com/DLR-RM/rl-baselines3-zoo, hyperparams/dqn.yml
ZOO: dict[str, Any] = {
    "learning_rate": 0.004,
    "batch_size": 128,
    "buffer_size": 10_000,
    "learning_starts": 1000,
    "gamma": 0.98,
    "target_update_interval": 5000,
    "train_freq": 16,
    "gradient_steps": 8,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.07,
    "policy_kwargs": {"net_arch": [256, 256]},
}
ZOO_STEPS = 120_000
NO_PEER = f"to compare with Stable-Baselines3: {installation('requirements-bench.txt')}"
JUDGED_EVERY, JUDGING_EPISODES = 5000, 15  # its evaluations are slow; more often costs it more


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
        "act": lambda: exploration.action(q_values, settings.epsilon_decay_steps),
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


def stable_baselines(env_id: str, **options: Any) -> Any:
    """Stable-Baselines3's DQN on one core; None where it isn't installed."""
    try:
        import gymnasium
        import torch
        from stable_baselines3 import DQN
    except ImportError:
        return None
    torch.set_num_threads(1)
    return DQN("MlpPolicy", gymnasium.make(env_id), device="cpu", **options)


def same_work(settings: Namespace) -> dict[str, Any]:
    """Stable-Baselines3's options that let it do what a step of ours does."""
    return {
        "buffer_size": settings.buffer_size,
        "batch_size": settings.batch_size,
        "train_freq": 1,
        "target_update_interval": settings.target_update_every,
        "exploration_initial_eps": settings.epsilon,
        "exploration_final_eps": settings.epsilon,
        "policy_kwargs": {"net_arch": list(settings.hidden)},
    }


def seconds_to_solve(settings: Namespace, stop: StopSignal) -> float:
    """How long training takes until a policy is confirmed at `until`; infinity if none is."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        ended = run.train(settings, Path(folder), stop)
    reached = ended.progress.confirmed_average >= settings.until
    return time.perf_counter() - started if reached else math.inf


def peers_seconds_to_solve(settings: Namespace, stop: StopSignal) -> float:
    """The same of Stable-Baselines3, whose policy is confirmed in the same way."""
    from stable_baselines3.common.evaluation import evaluate_policy

    started, solved = time.perf_counter(), False
    model = stable_baselines(settings.env, seed=settings.seed, **ZOO)
    env = stable_baselines(settings.env).get_env()

    def go_on(scope: dict[str, Any], _: object) -> bool:
        nonlocal solved
        if scope["self"].num_timesteps % JUDGED_EVERY == 0:
            solved = all(
                evaluate_policy(model, env, episodes)[0] >= settings.until
                for episodes in (JUDGING_EPISODES, run.CONFIRMING_EPISODES)
            )
        return not (solved or stop.number)

    model.learn(ZOO_STEPS, callback=go_on)
    return time.perf_counter() - started if solved else math.inf


def measure_policies(settings: Namespace, turns: int, stop: StopSignal) -> None:
    """Take the turns, one for each seed from 1 on, and print how long a solved policy took."""
    start_tensorflow(settings.threads, settings.seed)
    programs = {"this program": seconds_to_solve}
    if stable_baselines(settings.env):
        programs["Stable-Baselines3"] = peers_seconds_to_solve
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for seed in range(1, turns + 1):
        for name, solve in programs.items():
            took = solve(Namespace(**vars(settings) | {"seed": seed}), stop)
            if stop.number:
                return
            seconds[name].append(took)
            print(f"seed {seed:<5} {name:19} " + (f"{took:7.1f} s" if took < math.inf else "never"))
    for name, all_seconds in seconds.items():
        solved = sorted(took for took in all_seconds if took < math.inf)
        print(f"{name:30} {len(solved)} of {turns} solved", end="")
        print(f", in {solved[0]:.1f} to {solved[-1]:.1f} s" if solved else "")
    if len(programs) == 1:
        print(NO_PEER)


def measure_steps(settings: Namespace, turns: int, stop: StopSignal) -> None:
    """Take the turns, and print what they took, unless they are stopped."""
    start_tensorflow(settings.threads, settings.seed)
    peer = stable_baselines(settings.env, **same_work(settings))
    ours, theirs = [], []
    for _ in range(turns):
        points = run_points(settings, stop)
        if stop.number:
            return
        ours.append(median(points))
        if peer:
            started = time.perf_counter()
            peer.learn(STEPS, reset_num_timesteps=False)
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
        print(NO_PEER)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    start_program()
    parser = Parser(
        prog="bench.py", description="Measure how long a training step takes, or a solved policy."
    )
    turns_flag = Flag(9, 1, 1000, "")
    parser.add_argument("--turns", type=turns_flag.parse, default=9, metavar="N", help="default 9")
    names = ("threads", "preset", "until", *SIZES)
    parser.add_flags({name: run.ALL_FLAGS[name] for name in names}, Use.TRAIN)
    given = {"seed": 1, **parser.parse(argv)}
    turns = given.pop("turns")
    if "until" not in given:
        given |= {"max_steps": STEPS, "train_start": 500, "eval_every": 0, "log_every": 1}
        given["snapshot_every"] = 0
    try:
        settings = training_settings(given, run.ALL_FLAGS, run.PRESETS)
    except UsageError as error:
        parser.error(str(error))
    with StopSignal() as stop:
        (measure_steps if settings.until is None else measure_policies)(settings, turns, stop)
    return stop.exit_status


if __name__ == "__main__":
    sys.exit(main())
