"""What a sweep found: a row for each trial, and the statistics and the picture of them all."""

import csv
import math
import re
import statistics

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import bootstrap, trim_mean

from files import say, write_file

# The lines of run.py that are read.
EVALUATION = re.compile(r"^episode \d+ step (\d+) episode_return_avg (\S+) ", re.MULTILINE)
PROGRESS = re.compile(r"^episode \d+ steps? (?:\d+/)?(\d+) ", re.MULTILINE)
SUMMARY = re.compile(r"^(\d+) steps in ([\d.]+)s, ", re.MULTILINE)
COMPLETE = re.compile(r"^Watch it:$", re.MULTILINE)

CONFIDENCE = 0.95
RESAMPLES = 9999


def read_output(text):
    """What the output of a run tells, or of one that was stopped and went on.

    Returns:
        dict of step: episode_return_avg; the steps and the seconds that its summaries give.
    """
    evaluations = {int(step): float(average) for step, average in EVALUATION.findall(text)}
    summaries = [(int(steps), float(seconds)) for steps, seconds in SUMMARY.findall(text)]
    return evaluations, sum(s for s, _ in summaries), sum(s for _, s in summaries)


def read_progress(text):
    """Where a run is, from its output so far: its step, its latest episode_return_avg or None."""
    step = int([0, *PROGRESS.findall(text)][-1])
    evaluations, *_ = read_output(text)
    return step, evaluations[max(evaluations)] if evaluations else None


def make_row(trial, text):
    """The row of results.csv, a dict, that the trial's output so far gives.

    `seconds` leaves out what was lost when a run was killed.
    """
    evaluations, steps, seconds = read_output(text)
    final = evaluations.get(trial["max_steps"])
    finished = final is not None and bool(COMPLETE.search(text))
    threshold = math.inf if trial["solved_from"] is None else trial["solved_from"]
    solved_steps = (step for step, average in evaluations.items() if average >= threshold)
    best = max((a for a in evaluations.values() if not math.isnan(a)), default=None)
    return {
        "configuration": trial["configuration"],
        "seed": trial["seed"],
        "status": "finished" if finished else "unfinished",
        "episode_return_avg": final,
        "best": best,
        "solved": finished and final >= threshold,
        "first_solved_step": next(solved_steps, None),
        "seconds": round(seconds, 1),
        "steps_per_second": round(steps / seconds, 1) if seconds else None,
        "folder": f"{trial['name']}-log",
    }


def interquartile_mean(values, axis=0):
    """The mean of the middle half (Agarwal et al. 2021, "… at the Edge of the … Precipice")."""
    return trim_mean(values, 0.25, axis=axis)


def interval(values, statistic):
    """The percentile bootstrap's 95 % interval of a statistic of `values` along axis 0."""
    values = np.asarray(values, float)
    if len(values) < 2:
        nothing = np.full(values.shape[1:], math.nan)
        return nothing, nothing
    found = bootstrap(
        (values,),
        statistic,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return found.confidence_interval


def summarise(rows):
    """The row of summary.csv for one configuration's rows.

    The statistics are of its finished runs; a failed one counts as not solved.
    """
    finished = [row for row in rows if row["status"] == "finished"]
    failed = sum(row["status"] == "failed" for row in rows)
    finals = [row["episode_return_avg"] for row in finished]
    low, high = interval(finals, interquartile_mean)
    steps = [math.inf if (s := row["first_solved_step"]) is None else s for row in finished]
    return {
        "configuration": rows[0]["configuration"],
        "runs": len(finished),
        "failed": failed,
        "solved": _share(sum(row["solved"] for row in finished), len(finished) + failed),
        "interquartile_mean": float(interquartile_mean(finals)) if finals else math.nan,
        "interval_low": float(low),
        "interval_high": float(high),
        "mean": statistics.fmean(finals) if finals else math.nan,
        "standard_deviation": statistics.stdev(finals) if len(finals) > 1 else math.nan,
        "median_first_solved_step": statistics.median(steps) if steps else math.nan,
        "seconds": statistics.fmean(row["seconds"] for row in finished) if finished else math.nan,
    }


def _share(part, whole):
    return part / whole if whole else math.nan


def table(summaries):
    """The lines of the table on the screen."""
    head = ("configuration", "runs", "failed", "solved", "interquartile mean [95 %]")
    lines = [(*head, "mean ± sd", "first solved", "seconds")]
    for summary in summaries:
        configuration, runs, failed, solved, *numbers, first, seconds = summary.values()
        middle, low, high, mean, deviation = (_number(number, ".1f") for number in numbers)
        lines.append(
            (
                configuration,
                str(runs),
                str(failed),
                _number(solved, ".0%"),
                f"{middle} [{low}, {high}]",
                f"{mean} ± {deviation}",
                "never" if math.isinf(first) else _number(first, ".0f"),
                _number(seconds, ".1f"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _number(value, form):
    return "-" if math.isnan(value) else format(value, form)


def draw_curves(path, curves):
    """Draw the mean of each configuration's evaluations, with its 95 % interval as a band.

    Args:
        curves: dict of configuration: list of dicts of step: episode_return_avg, one a run.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="episode_return_avg")
    for configuration, runs in curves.items():
        steps = sorted(set(runs[0]).intersection(*runs))
        values = np.array([[run[step] for step in steps] for run in runs])
        (line,) = axes.plot(steps, values.mean(axis=0), label=f"{configuration} (n = {len(runs)})")
        low, high = interval(values, np.mean)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    if curves:
        axes.legend()
    axes.grid(alpha=0.3)
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=150))


def write_csv(path, rows):
    """Write a list of dicts of the same keys, whole or not at all; None leaves its cell empty."""

    def write(temporary):
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                # %.8g: no 3.1500000000000004
                cells = {k: f"{v:.8g}" if isinstance(v, float) else v for k, v in row.items()}
                writer.writerow(cells)

    write_file(path, write)


class Results:
    """The rows of a sweep's trials, read from their output in its folder; kept in results.csv.

    Attributes:
        folder: Path of the sweep.
        trials: dict of name: trial.
        rows: dict of name: row.
    """

    def __init__(self, folder, trials):
        self.folder = folder
        self.trials = {trial["name"]: trial for trial in trials}
        self.rows = {
            name: make_row(trial, self.output(name)) for name, trial in self.trials.items()
        }
        self._write()

    def output(self, name):
        """The text that the trial's run printed, so far."""
        path = self.folder / f"{name}.txt"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def missing(self):
        """The trials that aren't finished."""
        return [self.trials[name] for name, row in self.rows.items() if row["status"] != "finished"]

    @property
    def failed(self):
        """How many trials failed."""
        return sum(row["status"] == "failed" for row in self.rows.values())

    def update(self, name, failed=False):
        """Read a trial's output again, now that it ended; return its row."""
        self.rows[name] = make_row(self.trials[name], self.output(name))
        if failed:
            self.rows[name]["status"] = "failed"
        self._write()
        return self.rows[name]

    def report(self):
        """Write results.csv, summary.csv and learning_curves.png, and print the table."""
        for name, row in self.rows.items():
            if row["status"] == "unfinished":
                self.update(name)
        groups = {}
        for name, row in self.rows.items():
            groups.setdefault(row["configuration"], {})[name] = row
        summaries = [summarise(list(rows.values())) for rows in groups.values()]
        write_csv(self.folder / "summary.csv", summaries)
        curves = {}
        for configuration, rows in groups.items():
            for name, row in rows.items():
                if row["status"] == "finished":
                    evaluations, *_ = read_output(self.output(name))
                    curves.setdefault(configuration, []).append(evaluations)
        draw_curves(self.folder / "learning_curves.png", curves)
        for line in table(summaries):
            say(line)
        say(f"results.csv, summary.csv and learning_curves.png are in {self.folder}")

    def _write(self):
        write_csv(self.folder / "results.csv", list(self.rows.values()))
