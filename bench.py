"""How long a training step takes, part by part, beside Stable-Baselines3's DQN.

The last lines compare with Stable-Baselines3, where it is installed (requirements-bench.txt):
the same environment, network, batch and buffer, one fit after every step, taken in turns.
"""

import io
import os
import signal
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # Ctrl-C during the imports below: no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from harness.requirements import check_requirements

    check_requirements("bench.py")

import run
from harness.arguments import MANY, Parser, parse_threads, whole
from harness.backend import start_tensorflow
from harness.errors import UsageError
from harness.settings import training_settings
from harness.terminal import StopSignal, start_program
from replay_buffer import ReplayBuffer

STEPS = 1000  # of a turn
SETTINGS = {"seed": 1, "train_start": 100, "eval_every": 0}
SETTINGS |= {"log_every": MANY, "snapshot_every": MANY}
SIZES = "hidden", "batch_size", "buffer_size", "n_step", "max_repeat"


class Turns:
    """Stands in for the StopSignal that `run.train` asks once a step, and so times its real loop.

    After each turn the peer, if there is one, takes its own. The first turn doesn't count: in it,
    TensorFlow compiles.
    """

    def __init__(self, turns, peer, stop):
        self.ours, self.theirs, self.answers = [], [], self.take(turns, peer)
        self.stop = stop

    @property
    def number(self):
        """0 to train on, another number to stop."""
        return self.stop.number or next(self.answers)

    def take(self, turns, peer):
        """Yield an answer before each step."""
        for turn in range(turns + 1):
            start = time.perf_counter()
            yield from [0] * STEPS
            end = time.perf_counter()
            if peer:
                peer(STEPS)
            if turn:
                self.ours.append((end - start) / STEPS)
                self.theirs.append((time.perf_counter() - end) / STEPS)
        yield 1


def timed(function, seconds):
    """A function that does the same, and adds what each call took to a list of seconds."""

    def timed_function(*args):
        start = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - start)
        return result

    return timed_function


def time_parts():
    """From now on, time each part of a training step; what they take, a dict of lists."""
    from gym.wrappers import TimeLimit

    seconds = {name: [] for name in ("act", "environment step", "store", "sample", "fit")}
    compile_fit = run.compile_fit_and_predict
    run.exploring_action = timed(run.exploring_action, seconds["act"])
    TimeLimit.step = timed(TimeLimit.step, seconds["environment step"])
    ReplayBuffer.add = timed(ReplayBuffer.add, seconds["store"])
    ReplayBuffer.sample = timed(ReplayBuffer.sample, seconds["sample"])
    run.compile_fit_and_predict = lambda *args: timed(compile_fit(*args), seconds["fit"])
    return seconds


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


def main():
    """Measure and print; return the exit status."""
    start_program()
    parser = Parser(
        prog="bench.py", description="Measure how long a training step takes, part by part."
    )
    parser.add_argument("--turns", type=whole(1, 1000), default=9, metavar="N", help="default 9")
    parser.add_argument("--threads", type=parse_threads, metavar="N", help="default 1")
    parser.add_argument("--preset", choices=run.PRESETS, help="default tutorial")
    parser.add_hyperparameters({name: run.HYPERPARAMETERS[name] for name in SIZES})
    given = vars(parser.parse_args())
    turns = given.pop("turns")
    try:
        given |= SETTINGS | {"max_steps": STEPS * (turns + 1) + 1}
        settings = training_settings(given, run.HYPERPARAMETERS, run.PRESETS)
    except UsageError as error:
        parser.error(str(error))
    with StopSignal() as stop:
        start_tensorflow(settings.threads, settings.seed)
        seconds, peer = time_parts(), stable_baselines(settings)
        turns = Turns(turns, peer, stop)
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            run.train(settings, Path(folder), turns)
    if stop.number:
        return stop.exit_status
    seconds["whole step"] = turns.ours
    figures = {f"{name} (µs)": median(times) * 1e6 for name, times in seconds.items()}
    figures["steps per second"] = 1 / median(turns.ours)
    if peer:
        figures["Stable-Baselines3's step (µs)"] = median(turns.theirs) * 1e6
        figures["ratio"] = median(turns.theirs) / median(turns.ours)
    else:
        print("to compare with Stable-Baselines3: pip install -r requirements-bench.txt")
    for name, figure in figures.items():
        print(f"{name:30} {figure:9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
