"""How long a training step takes, part by part, beside Stable-Baselines3's DQN.

python bench.py --preset tuned

Stable-Baselines3 takes turns with this program where it is installed (requirements-bench.txt), with
the same environment, network, batch and buffer, and fits after every step, too.
"""

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":
    from harness.program import prepare

    prepare("bench.py")

import numpy as np

import run
from harness.backend import start_tensorflow
from harness.command_line import Parser
from harness.environments import make_environment
from harness.network import compile_q_function, make_models
from harness.program import Program, installation
from harness.settings import flags_of, training_settings
from replay_buffer import ReplayBuffer

STEPS = 3000  # of a turn
WARM_STEPS = 1000  # of them; TensorFlow compiles in these
SIZES = (
    "hidden",
    "batch_size",
    "buffer_size",
    "n_step",
    "one_step",
    "double_q",
    "max_repeat",
    "ema_momentum",
)
NO_PEER = f"to compare with Stable-Baselines3: {installation('requirements-bench.txt')}"


def time_parts(settings: run.Settings, turns: int, stop: Any) -> dict[str, float]:
    """The median time of each part of a training step, alone and warm, in µs."""
    env = make_environment(settings.env)
    keras_model = run.make_network(env, settings)
    model, target_model = make_models(keras_model, env, settings.scale_inputs, None)
    fit = run.compile_fit_and_predict(
        model,
        target_model,
        settings.batch_size,
        bool(settings.double_q),
        bool(settings.one_step),
    )
    q_function = compile_q_function(run.predict, model, env)(model.get_weights())
    rng = np.random.default_rng(1)
    exploration = run.Exploration(settings, rng)
    buffer = ReplayBuffer(
        settings.buffer_size,
        env.observation_size,
        settings.gamma,
        settings.n_step,
        rng,
        one_step=bool(settings.one_step),
    )
    observation, _ = env.reset(seed=1)
    q_values = q_function(observation)

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
        "evaluation's Q values": lambda: q_function(observation),
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


def run_points(settings: run.Settings, stop: Any) -> list[float]:
    """What a step of a real run takes in µs, episode by episode, as its own plots tell it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            log_folder = run.train(settings, stop, place=Path(folder)).folder
        if stop.number:
            return []
        points = EventAccumulator(str(log_folder)).Reload().Scalars("steps_per_second")
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


def same_work(settings: run.Settings) -> dict[str, Any]:
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


def measure_steps(settings: run.Settings, turns: int, stop: Any) -> None:
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
    with Program("bench.py") as program:
        parser = Parser(prog="bench.py", description="Measure how long a training step takes.")
        parser.add_argument("--turns", type=int, default=9, metavar="N", help="default 9")
        flags = flags_of(run.Settings, presets=run.PRESETS)
        parser.add_flags({name: flags[name] for name in ("threads", "preset", *SIZES)})
        given = {"seed": 1, **parser.parse(argv)}
        turns = max(1, given.pop("turns"))
        given |= {"max_steps": STEPS, "train_start": 500, "eval_every": 0, "log_every": 1}
        settings = training_settings(run.Settings, {**given, "snapshot_every": 0}, run.PRESETS)
        measure_steps(settings, turns, program.stop)
    return program.status


if __name__ == "__main__":
    sys.exit(main())
