"""What the trials of a sweep came to: a row for each, and the statistics of each configuration."""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap, trim_mean

from harness.flags import as_text
from harness.log_folder import EVALUATIONS_FILE
from harness.sweeps.grid import Trial
from harness.sweeps.progress import STOPPED, is_finished

# The mean of the middle half (Agarwal et al. 2021, "… at the Edge of the … Precipice").
interquartile_mean = partial(trim_mean, proportiontocut=0.25)
Samples = Any  # what NumPy makes an array of
JUDGED = ("finished", STOPPED)
EVALUATION = ["step", "episode_return_avg", "seconds"]


def evaluations_table(log_folder: Path) -> pd.DataFrame:
    """A run's evaluations so far, a DataFrame of step, episode_return_avg and seconds."""
    path = log_folder / EVALUATIONS_FILE
    if not path.exists():
        return pd.DataFrame(columns=EVALUATION, dtype=float)
    return pd.read_csv(path, usecols=EVALUATION)


def make_row(folder: Path, trial: Trial, status: str | None = None) -> dict:
    """A trial's row of results.csv, a dict; a run is judged by its last evaluation.

    `status` is that of a trial which isn't finished; by default it is unfinished.
    """
    log_folder = folder / trial.log_folder
    evaluations = evaluations_table(log_folder)
    averages = evaluations["episode_return_avg"]
    last = evaluations.iloc[-1] if len(evaluations) else pd.Series(math.nan, EVALUATION)
    finished = is_finished(log_folder)
    status = "finished" if finished else status or "unfinished"
    return {
        "configuration": trial.configuration,
        **{name: as_text(value) for name, value in (trial.flags | trial.others).items()},
        "seed": trial.seed,
        "status": status,
        "step": last["step"],
        "episode_return_avg": last["episode_return_avg"] if status in JUDGED else math.nan,
        "best": averages.max(),
        "solved": bool(finished and last["episode_return_avg"] >= trial.solved_from),
        "first_solved_step": evaluations["step"][averages >= trial.solved_from].min(),
        "seconds": last["seconds"],
        "folder": log_folder.name,
    }


def interval(statistic: Callable, *samples: Samples, level: float = 0.95) -> Samples:
    """The bootstrap's interval of a statistic of samples along axis 0, NaN if it has none."""
    arrays = [np.asarray(sample, float) for sample in samples]
    if any(len(array) < 2 or np.isnan(array).any() for array in arrays):
        return np.full((2, *arrays[0].shape[1:]), math.nan)
    options = {"method": "percentile", "rng": np.random.default_rng(0), "confidence_level": level}
    # In batches, which take less memory.
    return bootstrap(arrays, statistic, batch=500, **options).confidence_interval


def gain(finals: Samples, others: Samples, axis: int = 0) -> Samples:
    """By how much the interquartile mean of `finals` along an axis is the higher one.

    SciPy takes all samples of the bootstrap at once if it can name the axis.
    """
    return interquartile_mean(finals, axis=axis) - interquartile_mean(others, axis=axis)


def summarise(rows: pd.DataFrame) -> dict:
    """The statistics of a configuration, a dict, from the rows of its finished and failed trials.

    A failed one counts as not solved, and nowhere else.
    """
    finished = rows[rows["status"] == "finished"]
    finals = finished["episode_return_avg"]
    solved = binomtest(finished["solved"].sum(), len(rows))
    solved_low, solved_high = solved.proportion_ci(method="exact")  # Clopper and Pearson 1934
    low, high = interval(interquartile_mean, finals)
    return {
        "runs": len(finished),
        "failed": len(rows) - len(finished),
        "solved": solved.statistic,
        "solved_low": solved_low,
        "solved_high": solved_high,
        "interquartile_mean": interquartile_mean(finals) if len(finals) else math.nan,
        "interval_low": low,
        "interval_high": high,
        "mean": finals.mean(skipna=False),
        "standard_deviation": finals.std(skipna=False),
        "median_first_solved_step": finished["first_solved_step"].fillna(math.inf).median(),
        "seconds": finished["seconds"].mean(),
    }


def make_tables(
    folder: Path,
    trials: Sequence[Trial],
    statuses: dict[str, str],
    seeds: Collection[int] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The DataFrames of results.csv, summary.csv and evaluations.csv.

    Args:
        statuses: dict of a trial's name: its status if it isn't finished.
        seeds: of the trials that the summary compares; by default all.
    """
    rows = [make_row(folder, trial, statuses.get(trial.name)) for trial in trials]
    settings = dict.fromkeys(name for trial in trials for name in trial.flags | trial.others)
    results = pd.DataFrame(rows)
    results = results[list(dict.fromkeys(["configuration", *settings, *results]))]
    compared = results["status"].isin(["finished", "failed"])
    if seeds is not None:
        compared &= results["seed"].isin(seeds)
    summary = pd.DataFrame(
        {**group.iloc[0][["configuration", *settings]], **summarise(group)}
        for _, group in results[compared].groupby("configuration", sort=False)
    )
    evaluations = pd.concat(
        evaluations_table(folder / trial.log_folder).assign(
            configuration=trial.configuration, seed=trial.seed
        )
        for trial in trials
    )
    return results, summary, evaluations[["configuration", "seed", "step", "episode_return_avg"]]
