"""A trial of a sweep, trained in one of Ray's worker processes, which may train many."""

import contextlib
import gc
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import ray

from harness import PROJECT
from harness.backend import keras
from harness.log_folder import STATE_FILE
from harness.sweeps.cluster import on_node, read_files, write_files
from harness.sweeps.grid import Trial
from harness.sweeps.progress import is_finished, read_evaluations
from harness.whole_files import unseal


def train_trial(
    main: Callable[..., int],
    trial: Trial,
    home: Path,
    home_node: str,
    pause: float,
    on_evaluation: Callable[[int, float], None],
) -> bool:
    """Train a trial, or go on with it where it stopped; return whether it is finished.

    Args:
        main: run.py's `main`.
        home: folder of the sweep, on the node of the cluster whose id is `home_node`.
        pause: the trial saves its state and ends at its first evaluation from this step on.
        on_evaluation: called with the step and episode_return_avg of each evaluation.

    Raises:
        RuntimeError: if the run fails.
    """
    with at_home(trial, home, home_node) as folder:
        log_folder = folder / trial.log_folder
        # Its node may have been lost when it was done.
        if is_finished(log_folder) or max(read_evaluations(log_folder), default=0) >= pause:
            return is_finished(log_folder)
        stop = SimpleNamespace(number=0, exit_status=0)

        def after_evaluation(step: int, episode_return_avg: float) -> None:
            on_evaluation(step, episode_return_avg)
            if step >= pause:
                stop.number = signal.SIGTERM

        # ray.cancel interrupts the main thread.
        former = signal.signal(signal.SIGINT, lambda number, _: setattr(stop, "number", number))
        try:
            status = run_program(main, folder, trial, stop, after_evaluation)
        finally:
            signal.signal(signal.SIGINT, former)
            release_memory()
        finished = is_finished(log_folder)
        if not (finished or stop.number):
            raise RuntimeError(f"run.py ended with exit status {status}")
        return finished


@contextlib.contextmanager
def at_home(trial: Trial, home: Path, home_node: str) -> Iterator[Path]:
    """The folder to train in: the sweep's; on another node a copy, whose files are sent home."""
    if ray.get_runtime_context().get_node_id() == home_node:
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="sweep-") as temporary:
        folder = Path(temporary)
        write_files(folder, on_node(home_node, read_files, home, trial.name))
        try:
            yield folder
        finally:
            on_node(home_node, write_files, home, read_files(folder, trial.name))


def run_program(
    main: Callable[..., int],
    folder: Path,
    trial: Trial,
    stop: SimpleNamespace,
    after_evaluation: Callable[[int, float], None],
) -> int:
    """Do what run.py would do in `folder` for the trial; return the exit status."""
    resumed = can_be_resumed(folder / trial.log_folder)
    if resumed:
        arguments = ["--resume", trial.log_folder]
        if "env" in trial.flags:  # an environment of the user's own needs to be allowed again
            arguments += ["--env", trial.flags["env"]]
    else:
        shutil.rmtree(folder / trial.log_folder, ignore_errors=True)
        arguments = ["--name", trial.name, "--seed", str(trial.seed), *trial.arguments]
    with (
        inside(folder),
        output_to(folder / f"{trial.name}.txt", "a" if resumed else "w"),
        command_line([str(PROJECT / "run.py"), *arguments]),
    ):
        try:
            return main(arguments, stop, after_evaluation)
        except SystemExit as refused:  # by argparse
            return int(refused.code or 0)
        except Exception:  # of any kind: the user's environment has failed, say
            traceback.print_exc()
            return 1


def can_be_resumed(log_folder: Path) -> bool:
    """Whether a whole state was saved there."""
    try:
        return unseal((log_folder / STATE_FILE).read_bytes()) is not None
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder. Ray may have replaced the one that its worker comes from."""
    former = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        yield
    finally:
        os.fchdir(former)
        os.close(former)


@contextlib.contextmanager
def output_to(path: Path, mode: str) -> Iterator[None]:
    """Let the process write to a file what it would show, its compiled code and crashes too."""
    with open(path, mode, buffering=1, encoding="utf-8") as file:
        screens = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in screens:
                os.dup2(file.fileno(), number)
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            for number, screen in screens.items():
                os.dup2(screen, number)
                os.close(screen)


@contextlib.contextmanager
def command_line(words: list[str]) -> Iterator[None]:
    """Let the process believe that it was started with these words: config.json tells them."""
    former, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = former


def release_memory() -> None:
    """Give back what a run leaves in the process that trained it."""
    if "keras" in sys.modules:
        keras.utils.clear_session(free_memory=False)
    gc.collect()
