"""What a sweep shows: a live table while it runs, then a table and a picture of the results."""

import math
import textwrap
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from ray import tune
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from harness.sweeps.results import interval, make_tables
from harness.terminal import log
from harness.whole_files import attempt, write_file

NARROWEST = 80  # columns of a terminal
LOOK = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}


def plain_console():
    """A console that prints texts as they are."""
    return Console(markup=False, emoji=False, highlight=False)


class LiveTable(tune.Callback):
    """Logs each trial that ends; rendered, it is a table of those that are running."""

    def __init__(self, folder, count):
        self.folder, self.count, self.ended = folder, count, 0
        self.running = {}  # one of Tune's trials: its latest result
        self.failed = set()  # names

    def render(self):
        """The running trials, a rich Table."""
        waiting = self.count - self.ended - len(self.running)
        counts = f"{self.ended} ended, {len(self.running)} running, {waiting} waiting"
        columns = "running", "seed", "step", "episode_return_avg"
        table = Table(*columns, caption=counts, caption_justify="left", **LOOK)
        for tune_trial, result in list(self.running.items()):
            trial = tune_trial.config["trial"]
            step = f"{result.get('step', 0):.0f}/{trial.max_steps}"
            average = number(result.get("episode_return_avg", math.nan))
            table.add_row(trial.configuration, str(trial.seed), step, average)
        return table

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.running[trial] = result

    def on_trial_recover(self, iteration, trials, trial, **info):
        self.running.pop(trial, None)
        log(f"Retrying {trial.config['trial'].name}")

    def on_trial_error(self, iteration, trials, trial, **info):
        name = trial.config["trial"].name
        self.failed.add(name)
        self._end(trial, f"failed: see {self.folder / name}.txt")

    def on_trial_complete(self, iteration, trials, trial, **info):
        result = self.running.get(trial, {})
        if result.get("finished"):  # a signal ends the others, too
            average = result.get("episode_return_avg", math.nan)
            self._end(trial, f"finished: episode_return_avg {average:.3f}")

    def _end(self, trial, text):
        self.running.pop(trial, None)
        self.ended += 1
        log(f"{self.ended}/{self.count} {trial.config['trial'].name} {text}")


def number(value, form=".1f"):
    """A number as a table shows it."""
    if math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else format(value, form)


def summary_table(summary):
    """A DataFrame of summary.csv as a text of two or more lines for each configuration."""
    headings = "configuration", "solved\n[95 %]", "interquartile\nmean [95 %]", "mean\n± sd"
    headings += "first\nsolved", "seconds"
    # Folded, narrow columns cut no figures.
    table = Table(*(Column(heading, overflow="fold") for heading in headings), leading=1, **LOOK)
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


def draw_curves(path, evaluations):
    """Draw the mean of each configuration's evaluations, with its 95 % interval as a band.

    A run that ended early keeps its last evaluation.
    """
    groups = list(evaluations.groupby("configuration", sort=False))
    figure = Figure(figsize=(8, 5 + 0.4 * len(groups)), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="episode_return_avg")
    for configuration, rows in groups:
        runs = rows.pivot(index="step", columns="seed", values="episode_return_avg").ffill()
        label = f"{configuration} (n = {runs.shape[1]})"
        label = textwrap.fill(label, NARROWEST, break_on_hyphens=False)
        (line,) = axes.plot(runs.mean(axis=1, skipna=False), label=label)
        low, high = interval(runs.T, np.mean)
        axes.fill_between(runs.index, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    write_file(path, partial(figure.savefig, dpi=150))


def report(folder, trials, failed):
    """Save the results; show those of the finished runs; return the set of all statuses."""
    results, summary, evaluations = make_tables(folder, trials, failed)
    for name, table in (("results", results), ("summary", summary), ("evaluations", evaluations)):
        if len(table):
            # %.10g: no 3.1500000000000004
            write = partial(table.to_csv, index=False, float_format="%.10g")
            attempt(write_file, folder / f"{name}.csv", write)
    finished = results[results["status"] == "finished"]
    if len(finished):
        curves = evaluations.merge(finished[["configuration", "seed"]])
        attempt(draw_curves, folder / "learning_curves.png", curves)
        log(summary_table(summary[summary["runs"] > 0]))
        log(f"results.csv, summary.csv, evaluations.csv and learning_curves.png are in {folder}")
    return set(results["status"])
