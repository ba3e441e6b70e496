"""What the trials of a sweep came to: a row for each, and the statistics of each configuration."""

import math
from argparse import Namespace
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap, trim_mean

from harness.arguments import as_text
from harness.errors import UsageError
from harness.state import STATE_FILE, load_state
from harness.training_run import EVALUATIONS_FILE

# The mean of the middle half (Agarwal et al. 2021, "… at the Edge of the … Precipice").
interquartile_mean = partial(trim_mean, proportiontocut=0.25)
EVALUATION = ["step", "episode_return_avg", "seconds"]


def is_finished(log_folder):
    """Whether a run has reached its end; None if there is no state to go on from."""
    try:
        state = load_state(log_folder / STATE_FILE)
    except UsageError:
        return None
    return state["progress"].finished(Namespace(**state["settings"]))


def read_evaluations(log_folder):
    """A run's evaluations so far, a DataFrame of step, episode_return_avg and seconds."""
    path = log_folder / EVALUATIONS_FILE
    if not path.exists():
        return pd.DataFrame(columns=EVALUATION, dtype=float)
    return pd.read_csv(path, usecols=EVALUATION)


def make_row(folder, trial, failed=False):
    """A trial's row of results.csv, a dict; a finished run is judged by its last evaluation."""
    log_folder = folder / f"{trial.name}-log"
    evaluations = read_evaluations(log_folder)
    averages = evaluations["episode_return_avg"]
    last = evaluations.iloc[-1] if len(evaluations) else pd.Series(math.nan, EVALUATION)
    finished = not failed and is_finished(log_folder)
    final = last["episode_return_avg"] if finished else math.nan
    return {
        "configuration": trial.configuration,
        **{name: as_text(value) for name, value in (trial.flags | trial.others).items()},
        "seed": trial.seed,
        "status": "failed" if failed else "finished" if finished else "unfinished",
        "step": last["step"],
        "episode_return_avg": final,
        "best": averages.max(),
        "solved": bool(final >= trial.solved_from),
        "first_solved_step": evaluations["step"][averages >= trial.solved_from].min(),
        "seconds": last["seconds"],
        "folder": log_folder.name,
    }


def interval(values, statistic):
    """The bootstrap's 95 % interval of a statistic along axis 0, NaN if it has none."""
    values = np.asarray(values, float)
    if len(values) < 2 or np.isnan(values).any():
        return np.full((2, *values.shape[1:]), math.nan)
    options = {"method": "percentile", "rng": np.random.default_rng(0)}
    # In batches, which take less memory.
    return bootstrap((values,), statistic, batch=500, **options).confidence_interval


def summarise(rows):
    """The statistics of a configuration, a dict, from the rows of its finished and failed trials.

    A failed one counts as not solved, and nowhere else.
    """
    finished = rows[rows["status"] == "finished"]
    finals = finished["episode_return_avg"]
    solved = binomtest(finished["solved"].sum(), len(rows))
    solved_low, solved_high = solved.proportion_ci(method="exact")  # Clopper and Pearson 1934
    low, high = interval(finals, interquartile_mean)
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


def make_tables(folder, trials, failed):
    """The DataFrames of results.csv, summary.csv and evaluations.csv; `failed`: set of names."""
    results = pd.DataFrame(make_row(folder, trial, trial.name in failed) for trial in trials)
    judged = results[results["status"] != "unfinished"]
    summary = pd.DataFrame(
        {
            **group.iloc[0][["configuration", *trials[0].flags, *trials[0].others]],
            **summarise(group),
        }
        for _, group in judged.groupby("configuration", sort=False)
    )
    evaluations = pd.concat(
        read_evaluations(folder / f"{trial.name}-log").assign(
            configuration=trial.configuration, seed=trial.seed
        )
        for trial in trials
    )
    return results, summary, evaluations[["configuration", "seed", "step", "episode_return_avg"]]
