"""How far the runs of a sweep are, read from what each leaves in its log folder."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

from harness.log_folder import CONFIG_FILE, EVALUATIONS_FILE, run_name
from harness.sweeps.grid import Trial

STOPPED = "stopped early"  # the status of a run whose proposal looked hopeless

Evaluations = dict[int, float]  # step: episode_return_avg


def read_evaluations(log_folder: Path) -> Evaluations:
    """A run's evaluations so far, in their order; empty before the first."""
    path = log_folder / EVALUATIONS_FILE
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {int(row["step"]): float(row["episode_return_avg"]) for row in csv.DictReader(file)}


def is_finished(log_folder: Path) -> bool:
    """Whether a run has reached its end: its last evaluation was due then, and all was saved.

    A run evaluates at its last step, and then saves a snapshot of it, whole or not at all. One that
    was killed in between is not finished.
    """
    evaluations = read_evaluations(log_folder)
    if not evaluations:
        return False
    step = list(evaluations)[-1]
    config = json.loads((log_folder / CONFIG_FILE).read_text(encoding="utf-8"))
    reached = config.get("until_reached", False)
    snapshot = log_folder / f"{run_name(log_folder)}-{step}.h5"
    return (reached or step >= config["max_steps"]) and snapshot.exists()


def common_evaluations(folder: Path, trials: Sequence[Trial]) -> Evaluations:
    """The mean episode_return_avg at each step that all trials have evaluated."""
    runs = [read_evaluations(folder / trial.log_folder) for trial in trials]
    shared = [step for step in runs[0] if all(step in run for run in runs)]
    return {step: math.fsum(run[step] for run in runs) / len(runs) for step in shared}
