"""The end of a sweep: its tables, CSV files and pictures; the verdict of a search."""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from harness.plots import attempt_picture
from harness.sweeps.pictures import draw_curves
from harness.sweeps.results import (
    FINISHED,
    Run,
    evaluations_of,
    gain,
    interval,
    make_row,
    summarise,
)
from harness.sweeps.tables import shared_text, summary_table
from harness.terminal import command, log
from harness.whole_files import attempt, write_file


def show_results(
    folder: Path, runs: Sequence[Run], seeds: Collection[int] | None = None
) -> pd.DataFrame:
    """Save the results, show those of the finished runs, draw; return results.csv's DataFrame.

    Args:
        folder: of the sweep.
        seeds: of the runs that the summary compares; by default all.
    """
    settings = list(
        dict.fromkeys(k for run in runs for k in {**run.trial.flags, **run.trial.others})
    )
    results = pd.DataFrame([make_row(run) for run in runs])
    results = results[list(dict.fromkeys(["configuration", *settings, *results]))]
    compared = results if seeds is None else results[results["seed"].isin(seeds)]
    summary = summarise(compared, settings)
    curves = [evaluations_of(run) for run in runs]
    named = [
        curve.assign(configuration=run.label, seed=run.trial.seed)
        for run, curve in zip(runs, curves, strict=True)
    ]
    evaluations = pd.concat(named)[["configuration", "seed", "step", "episode_return_avg"]]
    for name, table in (("results", results), ("summary", summary), ("evaluations", evaluations)):
        if len(table):
            # %.10g: no 3.1500000000000004
            write = partial(table.to_csv, index=False, float_format="%.10g")
            attempt(write_file, folder / f"{name}.csv", write)
    shown = [
        run
        for run, status in zip(runs, results["status"], strict=True)
        if status == FINISHED and (seeds is None or run.trial.seed in seeds)
    ]
    if shown:
        shared = shared_text([run.trial for run in runs])
        if shared:
            log(f"All runs have {shared}")
        log(summary_table(summary[summary["runs"] > 0]))
        log(f"results.csv, summary.csv and evaluations.csv are in {folder}")
        attempt_picture(draw_curves, folder / "learning_curves.png", shown, shared)
    return results


def verdict(
    scores: dict[str, list[float]], preset: str, commands: Mapping[str, Sequence[str]]
) -> list[str]:
    """Whether a proposal beats the preset, as lines of text; the last is the winner's command.

    A proposal wins if the interval of the difference of the interquartile means lies above 0. The
    intervals hold for all proposals together with 95 % (Bonferroni), since each is a chance to win.

    Args:
        scores: of each proposal, by its label, and of the preset: one for each fresh seed.
        preset: its label.
        commands: run.py's words for each proposal.
    """
    gains = []
    for label in commands:
        pair = scores[label], scores[preset]
        low, high = interval(gain, *pair, level=1 - 0.05 / len(commands))
        gains.append((float(gain(*pair)), low, high, label))
    winners = [gained for gained in gains if gained[1] > 0]
    # The highest mean; NaN comes last.
    mean, low, high, winner = max(
        winners or gains, key=lambda gained: (not math.isnan(gained[0]), gained[0])
    )
    unit = ".1f" if abs(mean) >= 1 or math.isnan(mean) else ".3f"
    bounds = "" if math.isnan(low) else f" [{low:{unit}}, {high:{unit}}]"
    found = f"by {mean:{unit}}{bounds}, the difference of the interquartile means"
    if not winners:
        return [f"Nothing beats {preset} on fresh seeds; the best differs {found}"]
    return [
        f"{winner} beats {preset} on fresh seeds {found}",
        command("run.py", *commands[winner]),
    ]
