"""What the trials of a sweep came to: a row for each, and the statistics of each configuration."""

import math

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap, trim_mean

from harness.training_run import EVALUATIONS_FILE
from harness.whole_files import attempt, write_file

FINISHED_FILE = "finished"  # in a log folder: the run ended with exit status 0
EVALUATION = ["step", "episode_return_avg", "seconds"]


def read_evaluations(log_folder):
    """A run's evaluations so far, a DataFrame of step, episode_return_avg and seconds."""
    path = log_folder / EVALUATIONS_FILE
    if not path.exists():
        return pd.DataFrame(columns=EVALUATION, dtype=float)
    return pd.read_csv(path, usecols=EVALUATION)


def last_line(folder, name):
    """The last line that a trial printed."""
    path = folder / f"{name}.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return (text.strip().splitlines() or ["nothing"])[-1]


def make_row(folder, trial, failed=False):
    """A trial's row of results.csv, a dict, from its log folder in the sweep's.

    A finished run is judged by its last evaluation; another one isn't judged.
    """
    log_folder = folder / f"{trial.name}-log"
    evaluations = read_evaluations(log_folder)
    finished = len(evaluations) and (log_folder / FINISHED_FILE).exists()
    averages = evaluations["episode_return_avg"]
    threshold = math.inf if trial.solved_from is None else trial.solved_from
    last = evaluations.iloc[-1] if len(evaluations) else pd.Series(math.nan, EVALUATION)
    final = last["episode_return_avg"] if finished else math.nan
    return {
        "configuration": trial.configuration,
        **trial.columns,
        "seed": trial.seed,
        "status": "finished" if finished else "failed" if failed else "unfinished",
        "step": last["step"],
        "episode_return_avg": final,
        "best": averages.max(),
        "solved": bool(final >= threshold),
        "first_solved_step": evaluations["step"][averages >= threshold].min(),
        "seconds": last["seconds"],
        "steps_per_second": last["step"] / last["seconds"],
        "folder": log_folder.name,
    }


def interquartile_mean(values, axis=0):
    """The mean of the middle half (Agarwal et al. 2021, "… at the Edge of the … Precipice")."""
    return trim_mean(values, 0.25, axis=axis)


def interval(values, statistic):
    """The percentile bootstrap's 95 % interval of a statistic of `values` along axis 0.

    Returns:
        its two ends, arrays of the shape of values[0]; NaN unless there are two or more numbers.
    """
    values = np.asarray(values, float)
    if len(values) < 2 or np.isnan(values).any():
        return np.full((2, *values.shape[1:]), math.nan)
    rng = np.random.default_rng(0)
    # In batches, which take less memory.
    found = bootstrap((values,), statistic, method="percentile", batch=500, rng=rng)
    return found.confidence_interval


def summarise(rows):
    """The statistics of a configuration, a dict, from its trials' rows (a DataFrame).

    They are of its finished runs; but a failed one counts as not solved. The interval of the
    share solved is the exact one (Clopper and Pearson 1934).
    """
    finished, failed = rows[rows["status"] == "finished"], sum(rows["status"] == "failed")
    solved = binomtest(sum(finished["solved"]), len(finished) + failed)
    solved_low, solved_high = solved.proportion_ci(method="exact")
    finals = finished["episode_return_avg"]
    low, high = interval(finals, interquartile_mean)
    return {
        "runs": len(finished),
        "failed": failed,
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


def write_csv(path, table):
    """Write a DataFrame, whole or not at all; a full disk is no reason to end a sweep."""
    # %.10g: no 3.1500000000000004
    attempt(write_file, path, lambda part: table.to_csv(part, index=False, float_format="%.10g"))


def write_rows(folder, rows):
    """Write results.csv, from a dict of name: row; return it as a DataFrame."""
    results = pd.DataFrame(rows.values())
    write_csv(folder / "results.csv", results)
    return results


def save_results(folder, trials, rows):
    """Write results.csv, summary.csv and evaluations.csv.

    Args:
        rows: dict of name: row of results.csv.

    Returns:
        the summary, and the evaluations of the finished runs: DataFrames with the columns of the
        files.
    """
    results = write_rows(folder, rows)
    judged = results[results["status"] != "unfinished"]
    columns = ["configuration", *trials[0].columns]
    summary = pd.DataFrame(
        {**group.iloc[0][columns], **summarise(group)}
        for _, group in judged.groupby("configuration", sort=False)
    )
    if len(summary):
        write_csv(folder / "summary.csv", summary)
    evaluations = pd.concat(
        read_evaluations(folder / f"{trial.name}-log").assign(
            configuration=trial.configuration, seed=trial.seed
        )
        for trial in trials
    )[["configuration", "seed", "step", "episode_return_avg"]]
    write_csv(folder / EVALUATIONS_FILE, evaluations)
    finished = results[results["status"] == "finished"]
    return summary, evaluations.merge(finished[["configuration", "seed"]])
