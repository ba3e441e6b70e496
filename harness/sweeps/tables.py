"""What a sweep shows at its end: a table and a picture of the results, and their CSV files."""

import shlex
from collections.abc import Collection, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from harness.sweeps.grid import Trial, shared_words, words_of
from harness.sweeps.live_table import number, plain_console, plain_table
from harness.sweeps.pictures import draw_curves
from harness.sweeps.results import make_tables
from harness.terminal import log
from harness.whole_files import attempt, write_file

NARROWEST = 80  # columns of a terminal


def shared_text(trials: Sequence[Trial]) -> str:
    """The flags that all trials have, as one text."""
    shared = shared_words(trial.flags for trial in trials)
    return shlex.join(chain(*(pair for pair in words_of(trials[0].flags) if pair in shared)))


def summary_table(summary: pd.DataFrame) -> str:
    """A DataFrame of summary.csv as a text of two or more lines for each configuration."""
    table = plain_table(
        "configuration",
        "solved\n[95 %]",
        "interquartile\nmean [95 %]",
        "mean\n± sd",
        "first\nsolved",
        "seconds",
        leading=1,
    )
    row: Any  # a named tuple
    for row in summary.itertuples():
        judged = row.runs + row.failed
        low, high = 100 * row.solved_low, 100 * row.solved_high
        solved = f"{round(row.solved * judged)} of {judged}\n[{low:.0f}, {high:.0f}] %"
        table.add_row(
            row.configuration.replace(" --", "\n--"),
            solved + (f"\n{row.failed} failed" if row.failed else ""),
            f"{number(row.interquartile_mean)}\n"
            f"[{number(row.interval_low)}, {number(row.interval_high)}]",
            f"{number(row.mean)}\n± {number(row.standard_deviation)}",
            number(row.median_first_solved_step, ".0f"),
            number(row.seconds),
        )
    console = plain_console()
    console.width = max(NARROWEST, console.width)
    with console.capture() as shown:
        console.print(table)
    return "\n".join(map(str.rstrip, shown.get().splitlines()))


def show_results(
    folder: Path,
    trials: Sequence[Trial],
    statuses: dict[str, str],
    seeds: Collection[int] | None = None,
) -> pd.DataFrame:
    """Save the results; show those of the finished runs; return the table of results.csv.

    The arguments are those of `make_tables`.
    """
    results, summary, evaluations = make_tables(folder, trials, statuses, seeds)
    for name, table in (("results", results), ("summary", summary), ("evaluations", evaluations)):
        if len(table):
            # %.10g: no 3.1500000000000004
            write = partial(table.to_csv, index=False, float_format="%.10g")
            attempt(write_file, folder / f"{name}.csv", write)
    finished = results[results["status"] == "finished"]
    curves = evaluations.merge(finished[["configuration", "seed"]])
    if seeds is not None:
        curves = curves[curves["seed"].isin(seeds)]
    if len(curves):
        shared = shared_text(trials)
        attempt(draw_curves, folder / "learning_curves.png", curves, shared)
        if shared:
            log(f"All runs have {shared}")
        log(summary_table(summary[summary["runs"] > 0]))
        log(f"results.csv, summary.csv, evaluations.csv and learning_curves.png are in {folder}")
    return results
