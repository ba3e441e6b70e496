"""The pictures of a sweep: its learning curves, and what a search has tried."""

import textwrap
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from harness.sweeps.results import STOPPED, interval
from harness.sweeps.space import Range
from harness.whole_files import write_file

WIDEST = 80  # characters of a label
COLUMNS = 3


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
        label = textwrap.fill(label, WIDEST, break_on_hyphens=False)
        (line,) = axes.plot(runs.mean(axis=1, skipna=False), label=label)
        low, high = interval(np.mean, runs.T)
        axes.fill_between(runs.index, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    write_file(path, partial(figure.savefig, dpi=150))


def draw_search(path, searched, proposals):
    """Draw each searched hyperparameter against the result; each point is one of the Proposals.

    Args:
        searched: dict of name: Range or list of choices.
    """
    columns = min(len(searched), COLUMNS)
    rows = -(-len(searched) // columns)
    figure = Figure(figsize=(4 * columns, 3.5 * rows + 0.5), layout="constrained")
    for number, (name, values) in enumerate(searched.items(), start=1):
        axes = figure.add_subplot(rows, columns, number, xlabel=name, ylabel="episode_return_avg")
        if isinstance(values, Range) and values.logarithmic:
            axes.set_xscale("log")
            ticks = np.geomspace(values.low, values.high, 3)  # Matplotlib's own would overlap
            axes.set_xticks(ticks, labels=[f"{tick:.4g}" for tick in ticks])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlim(ticks[0] / 1.1, ticks[-1] * 1.1)
        elif isinstance(values, Range):
            axes.locator_params(axis="x", nbins=5)
        for stopped, marker, label in ((False, "o", "finished"), (True, "x", STOPPED)):
            shown = [one for one in proposals if one.stopped == stopped]
            tried, last = [one.values[name] for one in shown], [one.last for one in shown]
            axes.scatter(tried, last, marker=marker, label=f"{label} ({len(shown)})")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    write_file(path, partial(figure.savefig, dpi=150))
