"""The results of runs: a row for each, and the statistics of each configuration."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap, trim_mean

from harness.settings import as_text
from harness.sweeps.grid import Trial
from harness.sweeps.runs import is_finished, read_evaluations

# The mean of the middle half (Agarwal et al. 2021, "… at the Edge of the … Precipice").
interquartile_mean = partial(trim_mean, proportiontocut=0.25)
Samples = Any  # what NumPy makes an array of

FINISHED, FAILED, STOPPED, UNFINISHED = "finished", "failed", "stopped early", "unfinished"
EVALUATION = ["step", "episode_return_avg", "lower_quartile", "upper_quartile", "seconds"]


@dataclass(frozen=True)
class Run:
    """A trial, and where its run is.

    Attributes:
        label: what names its configuration in tables and pictures.
        status: if it isn't finished.
    """

    trial: Trial
    log_folder: Path
    label: str
    status: str = UNFINISHED


def runs_of(folder: Path, trials: Sequence[Trial], statuses: dict[str, str]) -> list[Run]:
    """The runs of a sweep's trials; `statuses` has those that aren't finished, by their names."""
    return [
        Run(t, folder / t.log_folder, t.configuration, statuses.get(t.name, UNFINISHED))
        for t in trials
    ]


def evaluations_of(run: Run) -> pd.DataFrame:
    """A run's evaluations so far, a DataFrame of the columns EVALUATION."""
    return pd.DataFrame(read_evaluations(run.log_folder), columns=EVALUATION, dtype=float)


def make_row(run: Run, judged: Collection[str] = (FINISHED, STOPPED)) -> dict[str, Any]:
    """A run's row of results.csv; it is judged by its last evaluation if its status is `judged`."""
    trial, evaluations = run.trial, evaluations_of(run)
    averages = evaluations["episode_return_avg"]
    last = evaluations.iloc[-1] if len(evaluations) else pd.Series(math.nan, EVALUATION)
    status = FINISHED if is_finished(run.log_folder) else run.status
    solved, first_solved = None, math.nan
    if trial.solved_from is not None:
        at_end = status in judged and status != STOPPED
        solved = at_end and bool(last["episode_return_avg"] >= trial.solved_from)
        first_solved = evaluations["step"][averages >= trial.solved_from].min()
    return {
        "configuration": run.label,
        **{name: as_text(value) for name, value in {**trial.flags, **trial.others}.items()},
        "seed": trial.seed,
        "status": status,
        "step": last["step"],
        "episode_return_avg": last["episode_return_avg"] if status in judged else math.nan,
        "best": averages.max(),
        "solved": solved,
        "first_solved_step": first_solved,
        "seconds": last["seconds"],
        "folder": run.log_folder.name,
    }


def interval(statistic: Callable, *samples: Samples, level: float = 0.95) -> tuple[float, float]:
    """The bootstrap's interval of a statistic of samples, NaN if it has none."""
    arrays = [np.asarray(sample, float) for sample in samples]
    if any(len(array) < 2 or np.isnan(array).any() for array in arrays):
        return math.nan, math.nan
    options = {"method": "percentile", "rng": np.random.default_rng(0), "confidence_level": level}
    # In batches, which take less memory.
    found = bootstrap(arrays, statistic, batch=500, **options).confidence_interval
    return float(found.low), float(found.high)


def gain(finals: Samples, others: Samples, axis: int = 0) -> Samples:
    """By how much the interquartile mean of `finals` along an axis is the higher one.

    SciPy takes all samples of the bootstrap at once if it can name the axis.
    """
    return interquartile_mean(finals, axis=axis) - interquartile_mean(others, axis=axis)


def statistics(judged: pd.DataFrame, failed: int = 0) -> dict[str, Any]:
    """The statistics of a configuration, from the rows of its runs that are judged.

    Failed ones count as not solved, and nowhere else. Where nobody knows what solves the
    environment, nothing is said of it.
    """
    finals = judged["episode_return_avg"]
    low, high = interval(interquartile_mean, finals)
    solved = {"solved": math.nan, "solved_low": math.nan, "solved_high": math.nan}
    first_solved = math.nan
    if judged["solved"].notna().all():
        share = binomtest(int(judged["solved"].sum()), len(judged) + failed)
        exact = share.proportion_ci(method="exact")  # Clopper and Pearson 1934
        solved = {"solved": share.statistic, "solved_low": exact.low, "solved_high": exact.high}
        first_solved = judged["first_solved_step"].fillna(math.inf).median()
    return {
        "runs": len(judged),
        "failed": failed,
        **solved,
        "interquartile_mean": interquartile_mean(finals) if len(finals) else math.nan,
        "interval_low": low,
        "interval_high": high,
        "mean": finals.mean(skipna=False),
        "standard_deviation": finals.std(skipna=False),
        "best": judged["best"].max(),
        "median_first_solved_step": first_solved,
        "seconds": judged["seconds"].mean(),
    }


def summarise(
    results: pd.DataFrame, settings: Sequence[str], judged_statuses: Collection[str] = (FINISHED,)
) -> pd.DataFrame:
    """The DataFrame of summary.csv: a row for each configuration that has ended runs.

    Args:
        results: rows of `make_row`.
        settings: columns that all runs of a configuration have in common.
    """
    rows = []
    for _, group in results.groupby("configuration", sort=False):
        judged = group[group["status"].isin(judged_statuses)]
        failed = (group["status"] == FAILED).sum()
        if len(judged) or failed:
            common = group.iloc[0][["configuration", *settings]]
            rows.append({**common, **statistics(judged, int(failed))})
    return pd.DataFrame(rows)
