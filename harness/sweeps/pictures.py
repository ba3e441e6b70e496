"""The pictures of a sweep: its learning curves.

Call what draws through `attempt_picture`: it imports Matplotlib, which takes long and can fail.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.plots import (
    CURVES,
    default_style,
    label_steps,
    new_figure,
    plot_curve,
    plot_threshold,
)
from harness.sweeps.results import EVALUATION, Run, evaluations_of, interquartile_mean
from harness.terminal import log
from harness.whole_files import write_file

DPI = 100
WIDTH, HEIGHT = 900, 450  # of a plot of learning curves, in pixels
LINE_HEIGHT = 22  # of the legend and the title
WIDEST = 95  # characters of a label


def draw_curves(path: Path, runs: Sequence[Run], title: str) -> None:
    """Draw the learning curves of runs, one for each label; a plot for each environment.

    A curve of several runs is the interquartile mean of their evaluations, and its band their
    middle half; that of a single run is the mean of its evaluations' episodes, and the band the
    middle half of these. A run that ended early keeps its last evaluation.
    """
    environments: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        groups = environments.setdefault(run.trial.env, {})
        groups.setdefault(run.label, []).append(run)
    labels = list(dict.fromkeys(run.label for run in runs))
    styles = {label: CURVES[number % len(CURVES)] for number, label in enumerate(labels)}
    wrapped = {
        label: textwrap.fill(label, WIDEST, break_on_hyphens=False) + f" (n = {count})"
        for label in labels
        if (count := sum(run.label == label for run in runs))
    }
    title = textwrap.fill(title, WIDEST, break_on_hyphens=False)
    lines = sum(text.count("\n") + 1 for text in (*wrapped.values(), title))
    height = HEIGHT * len(environments) + LINE_HEIGHT * (lines + 1)
    with default_style():
        from matplotlib.lines import Line2D

        figure = new_figure(WIDTH, height, DPI)
        figure.set_layout_engine("constrained")
        for number, (env_id, groups) in enumerate(environments.items(), start=1):
            axes = figure.add_subplot(len(environments), 1, number, ylabel="episode_return_avg")
            for label, group in groups.items():
                steps, averages, lower, upper = curve(group)
                color, marker = styles[label]
                plot_curve(axes, steps, averages, lower, upper, label, color, marker)
            solved_from = groups[next(iter(groups))][0].trial.solved_from
            plot_threshold(axes, solved_from)
            solved = "" if solved_from is None else f", solved at {solved_from:g}"
            axes.set_title(f"{env_id}{solved}", fontsize="medium")
            label_steps(axes)
        figure.suptitle(title, fontsize="medium")
        handles = [
            Line2D([], [], color=color, marker=marker, label=wrapped[label])
            for label, (color, marker) in styles.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", frameon=False)
        write_file(path, figure.savefig)
    log(f"Drew {path}")


def curve(runs: Sequence[Run]) -> tuple[Any, Any, Any, Any]:
    """The steps of a curve, its averages, and its band's lower and upper edges."""
    tables = [evaluations_of(run).set_index("step") for run in runs]
    first = tables[0]
    if len(tables) == 1:
        averages, lower, upper = (first[name] for name in EVALUATION[1:4])
        return first.index, averages, lower, upper
    averages = pd.concat([table["episode_return_avg"] for table in tables], axis=1)
    averages = averages.sort_index().ffill()  # a run that ended early keeps its last one
    lower, upper = np.quantile(averages, [0.25, 0.75], axis=1)
    return averages.index, interquartile_mean(averages, axis=1), lower, upper
