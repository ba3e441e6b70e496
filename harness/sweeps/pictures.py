"""The pictures of a sweep: its learning curves, and what a search has tried."""

import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from harness.flags import as_text
from harness.sweeps.progress import STOPPED
from harness.sweeps.results import interval
from harness.sweeps.search import Proposal
from harness.sweeps.space import Range
from harness.whole_files import write_file

WIDEST = 80  # characters of a label
COLUMNS = 3
MOST_UPRIGHT = 24  # characters of an axis' choices that fit side by side


def draw_curves(path: Path, evaluations: pd.DataFrame, shared: str) -> None:
    """Draw the mean of each configuration's evaluations, with its 95 % interval as a band.

    A run that ended early keeps its last evaluation. `shared`, what all runs have, is the title.
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
    axes.set_title(textwrap.fill(shared, WIDEST, break_on_hyphens=False), fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    write_file(path, partial(figure.savefig, dpi=150))


def draw_search(
    path: Path, searched: dict[str, Range | list], proposals: Sequence[Proposal]
) -> None:
    """Draw each searched hyperparameter against the result; each point is one of the proposals.

    Args:
        searched: by the hyperparameters' names: Range or list of choices.
    """
    columns = min(len(searched), COLUMNS)
    rows = -(-len(searched) // columns)
    figure = Figure(figsize=(4 * columns, 3.5 * rows + 0.5), layout="constrained")
    for number, (name, values) in enumerate(searched.items(), start=1):
        axes = figure.add_subplot(rows, columns, number, xlabel=name, ylabel="episode_return_avg")
        positions = draw_ticks(axes, values)
        for stopped, marker, label in ((False, "o", "finished"), (True, "x", STOPPED)):
            shown = [proposal for proposal in proposals if proposal.stopped == stopped]
            tried = [proposal.values[name] for proposal in shown]
            last = [proposal.last for proposal in shown]
            where = [positions.get(value, value) for value in tried]
            axes.scatter(where, last, marker=marker, label=f"{label} ({len(shown)})")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    write_file(path, partial(figure.savefig, dpi=150))


def draw_ticks(axes: Axes, values: Range | list) -> dict[str, int]:
    """Prepare the x axis for a hyperparameter; return where its choices are, in their order."""
    if not isinstance(values, Range):
        choices = [as_text(value) for value in values]
        axes.set_xticks(range(len(choices)), labels=choices)
        axes.set_xlim(-0.5, len(choices) - 0.5)
        if sum(map(len, choices)) > MOST_UPRIGHT:
            axes.tick_params("x", rotation=90)
        return {choice: position for position, choice in enumerate(choices)}
    if values.logarithmic:
        axes.set_xscale("log")
        ticks = np.geomspace(values.low, values.high, 3)  # Matplotlib's own would overlap
        axes.set_xticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(ticks[0] / 1.1, ticks[-1] * 1.1)
    else:
        axes.locator_params(axis="x", nbins=5)
    return {}
