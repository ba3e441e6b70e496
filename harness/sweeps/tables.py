"""What a sweep shows: a live table while it runs, then a table and a picture of the results."""

import math
from functools import partial

from ray import tune
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from harness.sweeps.pictures import draw_curves
from harness.sweeps.results import STOPPED, is_finished, make_tables
from harness.terminal import log
from harness.whole_files import attempt, write_file

NARROWEST = 80  # columns of a terminal
LOOK = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}


def plain_console():
    """A console that prints texts as they are."""
    return Console(markup=False, emoji=False, highlight=False)


def label(trials):
    """A name for trials of one configuration: that of the first, with the seeds of all."""
    return ",".join([trials[0].name, *(str(trial.seed) for trial in trials[1:])])


class LiveTable(tune.Callback):
    """Logs each of Tune's trials that ends; rendered, it is a table of those that are running."""

    def __init__(self, folder, count, stop):
        self.folder, self.count, self.stop, self.ended = folder, count, stop, 0
        self.running = {}  # one of Tune's trials: its latest result
        self.failed = set()  # names of runs

    def render(self):
        """The running trials, a rich Table."""
        waiting = self.count - self.ended - len(self.running)
        counts = f"{self.ended} ended, {len(self.running)} running, {waiting} waiting"
        columns = "running", "seed", "step", "episode_return_avg"
        table = Table(*columns, caption=counts, caption_justify="left", **LOOK)
        for tune_trial, result in list(self.running.items()):
            trials = tune_trial.config["trials"]
            seeds = ",".join(str(trial.seed) for trial in trials)
            step = f"{result['step']:.0f}/{trials[0].max_steps}"
            average = number(result["episode_return_avg"])
            table.add_row(trials[0].configuration, seeds, step, average)
        return table

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.running[trial] = result

    def on_trial_recover(self, iteration, trials, trial, **info):
        self.running.pop(trial, None)
        log(f"Retrying {label(trial.config['trials'])}")

    def on_trial_error(self, iteration, trials, trial, **info):
        names = [one.name for one in trial.config["trials"]]
        failed = [name for name in names if not is_finished(self.folder / f"{name}-log")]
        self.failed.update(failed)
        self._end(trial, f"failed: see {self.folder / (failed or names)[0]}.txt")

    def on_trial_complete(self, iteration, trials, trial, **info):
        result = self.running.get(trial)
        if result and (result["finished"] or not self.stop.number):  # a signal ends all
            ended = "finished" if result["finished"] else f"{STOPPED} at step {result['step']:.0f}"
            self._end(trial, f"{ended}: episode_return_avg {result['episode_return_avg']:.3f}")

    def _end(self, trial, text):
        self.running.pop(trial, None)
        self.ended += 1
        log(f"{self.ended}/{self.count} {label(trial.config['trials'])} {text}")


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


def report(folder, trials, statuses, seeds=None):
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
        attempt(draw_curves, folder / "learning_curves.png", curves)
        log(summary_table(summary[summary["runs"] > 0]))
        log(f"results.csv, summary.csv, evaluations.csv and learning_curves.png are in {folder}")
    return results
