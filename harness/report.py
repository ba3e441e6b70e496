"""What a run was started with, and what it came to."""

import importlib.metadata
import math
import platform

from harness.log_folder import run_name
from harness.settings import plain
from harness.terminal import command, log


def configuration(settings):
    """What config.json says of a run: its settings, its first command, what it runs on."""
    packages = ("tensorflow", "keras", "gym", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions["python"] = platform.python_version()
    return {**plain(settings), "versions": versions}


def report(run):
    """Print how a TrainingRun went, and the command for what to do next."""
    settings, folder, progress = run.settings, run.folder, run.progress
    steps, seconds = progress.step - run.first_step, progress.seconds - run.first_seconds
    log(f"{steps} steps in {seconds:.1f}s, {steps / seconds:.1f} steps/s")
    if not run.finished:
        log(f"Stopped at step {progress.step}, to go on:")
        log(command("run.py", "--resume", folder))
        return
    if progress.step < settings.train_start:
        log(f"warning: nothing is learned before step {settings.train_start}, see --train-start")
    reached = settings.until is not None and progress.best_average >= settings.until
    best = max(progress.best_return, progress.best_average)
    if -math.inf < best <= progress.worst_return < math.inf and not reached:
        advice = "--preset tuned" if settings.preset != "tuned" else "a larger --initial-epsilon"
        log(f"Every episode returned {best:.1f}: try {advice}, or another --seed")
        return
    snapshot = folder / f"{run_name(folder)}-best.h5"
    if progress.best_step:
        log(f"Best episode_return_avg {progress.best_average:.3f} at step {progress.best_step}")
    if not progress.best_step or not snapshot.exists():
        snapshot = folder / f"{run_name(folder)}-{progress.step}.h5"
    log("Watch it:")
    log(command("run.py", "--model", snapshot))
