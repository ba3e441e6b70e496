"""What a run came to, and what to do next."""

import contextlib
import math

from harness.errors import UsageError
from harness.log_folder import run_name, snapshot_of
from harness.terminal import command, log
from harness.training_run import TrainingRun

FEW_EPISODES = 3  # so few may all return the same by chance


def summarise(run: TrainingRun) -> None:
    """Print how a run went, and the command for what to do next."""
    settings, folder, progress = run.settings, run.folder, run.progress
    steps, seconds = progress.step - run.first_step, progress.seconds - run.first_seconds
    log(f"{steps} steps in {seconds:.1f}s, {steps / seconds:.1f} steps/s")
    # An environment that is code of the user's needs to be allowed again.
    env = ["--env", settings.env] if ":" in settings.env else []
    if not run.finished:
        log(f"Stopped at step {progress.step}. Resume with:")
        log(command("run.py", "--resume", folder, *env))
        return
    reached = settings.until is not None and progress.confirmed_average >= settings.until
    best = max(progress.best_return, progress.best_average)
    learned = settings.train_start <= progress.step
    several = progress.episode.number > FEW_EPISODES
    if learned and several and not reached and -math.inf < best <= progress.worst_return < math.inf:
        advice = "--preset tuned" if settings.preset != "tuned" else "more --max-steps"
        log(f"Every episode returned {best:.1f}: try {advice}, or another --seed")
        return
    snapshot = folder / f"{run_name(folder)}-{progress.step}.h5"
    if math.isfinite(progress.best_average):
        log(f"Best episode_return_avg {progress.best_average:.3f} at step {progress.best_step}")
        with contextlib.suppress(UsageError):  # it couldn't be saved
            snapshot = snapshot_of(folder)
    drawn = {"human", "rgb_array"} & set(run.env.metadata.get("render_modes") or ())
    log("Watch it:" if drawn else "Play it:")
    log(command("run.py", "--model", snapshot, *env, *([] if drawn else ["--eval"])))
