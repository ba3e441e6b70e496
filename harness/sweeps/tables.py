"""The tables of a sweep, as texts for the screen."""

import itertools
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from harness.sweeps.grid import Trial, shared_words, words_of

NARROWEST = 80  # columns of a terminal


def plain_console() -> Console:
    """A console that prints texts as they are, and none but them where no terminal shows them."""
    # Not rich's own guess: FORCE_COLOR makes it take a file for a terminal.
    shown = sys.stdout.isatty()
    return Console(
        markup=False, emoji=False, highlight=False, force_terminal=shown, force_jupyter=False
    )


def plain_table(*columns: str, leading: int = 0) -> Table:
    """An empty table whose narrow columns fold texts, and cut none."""
    return Table(
        *(Column(heading, overflow="fold") for heading in columns),
        leading=leading,
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def number(value: float, form: str = ".1f") -> str:
    """A number as a table shows it."""
    if math.isnan(value):
        return "–"
    return "never" if math.isinf(value) else format(value, form)


def between(low: float, high: float, unit: str = "", form: str = ".1f") -> str:
    """An interval as a second line of a cell; nothing if there is none."""
    return "" if math.isnan(low) else f"\n[{low:{form}}, {high:{form}}]{unit}"


def solved(row: Any) -> str:
    """How many runs of a configuration solve the environment."""
    judged = row.runs + row.failed
    failed = f"\n{row.failed} failed" if row.failed else ""
    if math.isnan(row.solved):
        return f"–{failed}"
    interval = ""
    if judged > 1:
        interval = between(100 * row.solved_low, 100 * row.solved_high, " %", ".0f")
    return f"{round(row.solved * judged)} of {judged}{interval}{failed}"


def mean(row: Any) -> str:
    """The mean of a configuration's last evaluations, with their standard deviation."""
    deviation = row.standard_deviation
    return number(row.mean) + ("" if math.isnan(deviation) else f"\n± {deviation:.1f}")


COLUMNS: dict[str, Callable[[Any], str]] = {
    "configuration": lambda row: row.configuration.replace(" --", "\n--"),
    "solved\n[95 %]": solved,
    "interquartile\nmean [95 %]": lambda row: (
        number(row.interquartile_mean) + between(row.interval_low, row.interval_high)
    ),
    "mean\n± sd": mean,
    "best": lambda row: number(row.best),
    "first\nsolved": lambda row: number(row.median_first_solved_step, ".0f"),
    "seconds": lambda row: number(row.seconds),
}


def summary_table(summary: pd.DataFrame, without: str = "best") -> str:
    """A DataFrame of summary.csv as a text, with all COLUMNS but one."""
    columns = {heading: text for heading, text in COLUMNS.items() if heading != without}
    table = plain_table(*columns, leading=1)
    for row in summary.itertuples():
        table.add_row(*(text(row) for text in columns.values()))
    console = plain_console()
    console.width = max(NARROWEST, console.width)
    with console.capture() as shown:
        console.print(table)
    return "\n".join(map(str.rstrip, shown.get().splitlines()))


def shared_text(trials: Sequence[Trial]) -> str:
    """The flags that all trials have, as one text."""
    shared = shared_words(trial.flags for trial in trials)
    pairs = [pair for pair in words_of(trials[0].flags) if pair in shared]
    return shlex.join(itertools.chain(*pairs))
