"""What a sweep shows: a live table while it runs, then a table and a picture of the results."""

import contextlib
import io
import math
import shutil
import textwrap

import numpy as np
from matplotlib.figure import Figure
from ray import tune
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from harness.sweeps.grid import trial_name
from harness.sweeps.results import interval, last_line, make_row, save_results, write_rows
from harness.terminal import log
from harness.whole_files import attempt, write_file

HEADINGS = ("configuration", "solved\n[95 %]", "interquartile\nmean [95 %]", "mean\n± sd")
HEADINGS += ("first\nsolved", "seconds")
NARROWEST = 80  # columns of a terminal
PLAIN = {"markup": False, "emoji": False, "highlight": False}  # print texts as they are
LOOK = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}


def name_of(trial):
    """The name of one of Tune's trials."""
    return trial_name(trial.config["job"]["flags"], trial.config["job"]["seed"])


class LiveTable(tune.Callback):
    """Logs each trial that ends and, in a terminal, shows a table of those that are running.

    It also keeps results.csv up to date.
    """

    def __init__(self, folder, trials, rows):
        """`trials`: list of Trial; `rows`: dict of name: row of results.csv, updated here."""
        self.folder, self.rows, self.ended = folder, rows, 0
        self.trials = {trial.name: trial for trial in trials}
        self.running = {}  # name: the latest result
        self.live = None  # can't be made yet: Tune pickles this object

    def setup(self, **info):
        console = Console(**PLAIN)
        self.live = Live(get_renderable=self.table, console=console, transient=True)
        self.live.start()
        self.live.console.show_cursor()  # a second Ctrl-C would leave it hidden

    def close(self):
        """Take the table off the screen."""
        with contextlib.suppress(OSError):  # the terminal is gone
            if self.live:
                self.live.stop()

    def table(self):
        """The running trials, a rich Table."""
        waiting = len(self.trials) - self.ended - len(self.running)
        counts = f"{self.ended} ended, {len(self.running)} running, {waiting} waiting"
        table = Table("running", caption=counts, caption_justify="left", **LOOK)
        for heading in ("seed", "step", "episode_return_avg"):
            table.add_column(heading, justify="right")
        for name, result in list(self.running.items()):
            trial = self.trials[name]
            step = f"{result.get('step', 0):.0f}/{trial.job['max_steps']}"
            average = number(result.get("episode_return_avg", math.nan))
            table.add_row(trial.configuration, str(trial.seed), step, average)
        return table

    def on_trial_start(self, iteration, trials, trial, **info):
        self.running[name_of(trial)] = {}

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.running[name_of(trial)] = result

    def on_trial_recover(self, iteration, trials, trial, **info):
        name = name_of(trial)
        self.running.pop(name, None)
        log(f"Retrying {name}, which last printed: {last_line(self.folder, name)}")

    def on_trial_error(self, iteration, trials, trial, **info):
        name = name_of(trial)
        self._end(name, failed=True)
        log(f"{self._count()} {name} failed; it last printed: {last_line(self.folder, name)}")

    def on_trial_complete(self, iteration, trials, trial, **info):
        name = name_of(trial)
        if name in self.running:  # a signal ends those that are waiting, too
            self._end(name)
        if self.rows[name]["status"] == "finished":
            average = self.rows[name]["episode_return_avg"]
            log(f"{self._count()} {name} finished: episode_return_avg {average:.3f}")

    def _end(self, name, failed=False):
        self.running.pop(name, None)
        self.rows[name] = make_row(self.folder, self.trials[name], failed)
        write_rows(self.folder, self.rows)

    def _count(self):
        self.ended += 1
        return f"{self.ended}/{len(self.trials)}"


def number(value, form=".1f"):
    """A number as a table shows it."""
    if math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else format(value, form)


def summary_table(summary):
    """A DataFrame of summary.csv as a text of two or more lines for each configuration."""
    table = Table(leading=1, **LOOK)
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")  # narrow columns cut no figures
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
    width = max(NARROWEST, shutil.get_terminal_size().columns)
    console = Console(file=io.StringIO(), width=width, **PLAIN)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def draw_curves(path, evaluations):
    """Draw the mean of each configuration's evaluations, with its 95 % interval as a band.

    A run that ended early keeps its last evaluation.

    Args:
        evaluations: DataFrame of configuration, seed, step and episode_return_avg.
    """
    groups = list(evaluations.groupby("configuration", sort=False))
    figure = Figure(figsize=(8, 5 + 0.4 * len(groups)), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="episode_return_avg")
    for i, (configuration, rows) in enumerate(groups):
        runs = rows.pivot(index="step", columns="seed", values="episode_return_avg").ffill()
        label = f"{configuration} (n = {runs.shape[1]})"
        label = textwrap.fill(label, NARROWEST, break_on_hyphens=False)
        look = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":", "-.")[i // 10 % 4]}
        axes.plot(runs.mean(axis=1, skipna=False), label=label, **look)
        low, high = interval(runs.T, np.mean)
        axes.fill_between(runs.index, low, high, color=look["color"], alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    write_file(path, lambda part: figure.savefig(part, dpi=150))


def report(folder, trials, rows):
    """Save the results; show those of the configurations that have finished runs.

    Args:
        trials: list of Trial.
        rows: dict of name: row of results.csv.
    """
    for trial in trials:
        if rows[trial.name]["status"] == "unfinished":  # it may have evaluated while it was stopped
            rows[trial.name] = make_row(folder, trial)
    summary, evaluations = save_results(folder, trials, rows)
    if len(evaluations):
        attempt(draw_curves, folder / "learning_curves.png", evaluations)
        log(summary_table(summary[summary["runs"] > 0]))
        log(f"results.csv, summary.csv, evaluations.csv and learning_curves.png are in {folder}")
