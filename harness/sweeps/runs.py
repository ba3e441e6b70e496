"""What a run leaves in its log folder, as a sweep reads it."""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path

from harness.log_folder import EVALUATIONS_FILE, RESULT_FILE

Rows = list[dict[str, float]]


def is_finished(log_folder: Path) -> bool:
    """Whether a run has reached its end: it says so itself, when all is saved."""
    try:
        result = json.loads((log_folder / RESULT_FILE).read_text(encoding="utf-8"))
        return result["status"] == "finished"
    except (OSError, ValueError, LookupError, TypeError):
        return False


def read_evaluations(log_folder: Path) -> Rows:
    """A run's evaluations so far, a dict of numbers for each; empty before the first."""
    try:
        text = (log_folder / EVALUATIONS_FILE).read_text(encoding="utf-8")
    except OSError:
        return []
    return [
        {name: float(value) for name, value in row.items()}
        for row in csv.DictReader(text.splitlines())
    ]


def last_step(log_folder: Path) -> int:
    """The step of a run's last evaluation, 0 before the first."""
    return max((int(row["step"]) for row in read_evaluations(log_folder)), default=0)


def common_scores(runs: Iterable[dict[int, float]]) -> dict[int, float]:
    """The mean of several runs' scores, by steps, at each step that all of them have."""
    first, *others = runs
    shared = [step for step in first if all(step in other for other in others)]
    return {
        step: math.fsum(run[step] for run in (first, *others)) / (1 + len(others))
        for step in shared
    }
