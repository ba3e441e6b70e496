"""The table of the running trials, which a terminal shows below its other lines."""

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from harness.sweeps.grid import Trial


def plain_console() -> Console:
    """A console that prints texts as they are."""
    return Console(markup=False, emoji=False, highlight=False)


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
        return "-"
    return "never" if math.isinf(value) else format(value, form)


class LiveTable:
    """What is being trained now.

    Attributes:
        count, ended: of the trials, or of a search's proposals, to train; and so far.
        running: the Trials by their names.
        latest: the step and episode_return_avg of their latest evaluations, by their names.
    """

    def __init__(self, count: int) -> None:
        self.count, self.ended = count, 0
        self.running: dict[str, Trial] = {}
        self.latest: dict[str, tuple[int, float]] = {}

    def render(self) -> Table | Text:
        """The running trials, a table of rich; nothing if there are none."""
        running = list(self.running.values())
        if not running:
            return Text()
        table = plain_table("running", "seed", "step", "episode_return_avg")
        table.caption, table.caption_justify = f"{self.ended} of {self.count} ended", "left"
        for trial in running:
            step, average = self.latest.get(trial.name, (0, math.nan))
            progress = f"{step}/{trial.max_steps}"
            table.add_row(trial.configuration, str(trial.seed), progress, number(average))
        return table
