"""How a run went, and the command for what to do next."""

import contextlib
import math

from harness.diagnosis import diagnose, learned_nothing
from harness.errors import UsageError
from harness.log_folder import STATE_FILE, run_name, snapshot_of
from harness.terminal import command, log
from harness.training_run import TrainingRun
from harness.watching import how_to_watch


def summarise(run: TrainingRun) -> None:
    """Print how a run went, and the command for what to do next."""
    settings, folder, progress = run.settings, run.shown, run.progress
    last = run.saved_step or progress.step
    steps, seconds = last - run.first_step, progress.seconds - run.first_seconds
    log(f"{steps} steps in {seconds:.1f}s, {steps / seconds:.1f} steps/s")
    # An environment that is code of the user's needs to be allowed again.
    env = ["--env", settings.env] if ":" in settings.env else []
    snapshot = folder / f"{run_name(folder)}-{run.saved_step}.h5"
    if not run.finished and not (folder / STATE_FILE).exists():
        log(f"Stopped at step {progress.step}, before an episode ended. Train on from there with:")
        log(command("run.py", "--model", snapshot, "--train", *env))
        return
    if not run.finished:
        earlier = f" from step {run.state_step}" if run.state_step < progress.step else ""
        log(f"Stopped at step {progress.step}. Resume{earlier} with:")
        log(command("run.py", "--resume", folder, *env))
        return
    threshold = run.env.reward_threshold
    for line in diagnose(progress, settings, threshold, run.env.time_limit):
        log(line)
    if learned_nothing(progress, settings, threshold):
        return
    if math.isfinite(progress.best_average):
        log(f"Best episode_return_avg {progress.best_average:.3f} at step {progress.best_step}")
        with contextlib.suppress(UsageError):  # it couldn't be saved
            snapshot = snapshot_of(folder)
    shown = how_to_watch(run.env, snapshot)
    log("Play it:" if "--eval" in shown else "Watch it:")
    log(command("run.py", "--model", snapshot, *env, *shown))
