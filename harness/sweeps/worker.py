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
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import ray

from harness.backend import keras
from harness.log_folder import EVALUATIONS_FILE, STATE_FILE
from harness.sweeps.cluster import on_node, read_files, write_files
from harness.sweeps.grid import Trial
from harness.sweeps.runs import is_finished, last_step
from harness.whole_files import unseal


@dataclass(frozen=True)
class Place:
    """Where a sweep is at home.

    Attributes:
        here: the folder that its user stands in: there, relative paths mean what they say.
        folder: of the sweep, absolute or relative to `here`.
        node: id of the cluster's node whose disk has them.
    """

    here: Path
    folder: Path
    node: str


def train_trial(main: Callable[..., int], trial: Trial, place: Place, pause: float) -> bool:
    """Train a trial, or resume it where it stopped; return whether it is finished.

    Args:
        main: run.py's `main`.
        pause: the trial saves its state and ends at its first evaluation from this step on.

    Raises:
        RuntimeError: if the run fails.
    """
    with at_home(trial, place) as (folder, send_evaluations):
        log_folder = folder / trial.log_folder
        # Its node may have been lost when it was done.
        if is_finished(log_folder) or last_step(log_folder) >= pause:
            return is_finished(log_folder)
        stop = SimpleNamespace(number=0, exit_status=0)

        def after_evaluation(step: int, _: float) -> None:
            send_evaluations()
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
def at_home(trial: Trial, place: Place) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Stand where the sweep's user stands.

    On another node than theirs, a copy of the trial's files is made, which are sent home at the
    end, and the same folder is stood in if it is there, too.

    Yields:
        the folder of the sweep, or of its copy; and what to call after an evaluation.
    """
    if ray.get_runtime_context().get_node_id() == place.node:
        os.chdir(place.here)  # Ray may have replaced the folder that its worker comes from
        yield place.folder, lambda: None
        return
    home = place.here / place.folder
    with tempfile.TemporaryDirectory(prefix="sweep-") as temporary:
        folder = Path(temporary)
        write_files(folder, on_node(place.node, read_files, home, trial.name))

        def send_evaluations() -> None:  # the table of the running trials reads them
            path = Path(trial.log_folder) / EVALUATIONS_FILE
            if (folder / path).exists():
                on_node(place.node, write_files, home, {path: (folder / path).read_bytes()})

        os.chdir(place.here if place.here.is_dir() else folder)
        try:
            yield folder, send_evaluations
        finally:
            os.chdir(tempfile.gettempdir())
            on_node(place.node, write_files, home, read_files(folder, trial.name))


def run_program(
    main: Callable[..., int],
    folder: Path,
    trial: Trial,
    stop: SimpleNamespace,
    after_evaluation: Callable[[int, float], None],
) -> int:
    """Do what run.py would do for the trial, with its log folder in `folder`; return its status."""
    log_folder = folder / trial.log_folder
    resumed = can_be_resumed(log_folder)
    if resumed:
        arguments = ["--resume", str(log_folder)]
        if "env" in trial.flags:  # an environment of the user's own needs to be allowed again
            arguments += ["--env", trial.flags["env"]]
    else:
        shutil.rmtree(log_folder, ignore_errors=True)
        arguments = ["--name", trial.name, "--seed", str(trial.seed), *trial.arguments]
    with output_to(folder / f"{trial.name}.txt", "a" if resumed else "w"):
        try:
            return main(arguments, stop, after_evaluation, folder)
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


def release_memory() -> None:
    """Give back what a run leaves in the process that trained it."""
    if "keras" in sys.modules:
        keras.utils.clear_session(free_memory=False)
    gc.collect()
