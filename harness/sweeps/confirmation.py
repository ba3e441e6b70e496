"""The end of a search: its best proposals on fresh seeds, beside the preset they must beat."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.sweeps.grid import Trial
from harness.sweeps.progress import read_evaluations
from harness.sweeps.results import gain, interval
from harness.sweeps.search import Proposal
from harness.terminal import command


def best(proposals: Sequence[Proposal], count: int) -> list[Proposal]:
    """The `count` finished proposals with the highest last mean, the best first."""
    finished = [p for p in proposals if p.finished and not math.isnan(p.last)]
    return sorted(finished, key=lambda proposal: proposal.last, reverse=True)[:count]


def budget(folder: Path, proposals: Sequence[Proposal]) -> str:
    """One line: the steps that proposals were trained for, beside those of full trainings."""
    trials = [trial for proposal in proposals for trial in proposal.trials]
    trained = sum(max(read_evaluations(folder / t.log_folder), default=0) for t in trials)
    full = sum(trial.max_steps for trial in trials)
    stopped = sum(proposal.stopped for proposal in proposals)
    return (
        f"ASHA stopped {stopped} of {len(proposals)} proposals early: {trained} steps trained "
        f"instead of {full}, {1 - trained / full:.0%} saved"
    )


def verdict(results: pd.DataFrame, trials: Sequence[Trial]) -> list[str]:
    """Whether a proposal beats the preset, as lines of text; the last is the winner's command.

    A proposal wins if the interval of the difference of the interquartile means lies above 0. The
    intervals hold for all proposals together with 95 % (Bonferroni), since each is a chance to win.

    Args:
        results: DataFrame of results.csv.
        trials: of the confirmation; the last ones are the preset's.
    """
    commands = {trial.configuration: trial.arguments for trial in trials}
    results = results.set_index("folder").loc[[trial.log_folder for trial in trials]]
    finals = results.groupby("configuration")["episode_return_avg"].apply(list)
    *proposals, preset = commands
    gains = []
    for proposal in proposals:
        pair = finals[proposal], finals[preset]
        low, high = interval(gain, *pair, level=1 - 0.05 / len(proposals))
        gains.append((gain(*pair), low, high, proposal))
    winners = [(mean, low, high, name) for mean, low, high, name in gains if low > 0]
    # The highest mean; NaN comes last.
    mean, low, high, winner = max(
        winners or gains, key=lambda gained: (not math.isnan(gained[0]), gained[0])
    )
    found = f"by {mean:.1f} [{low:.1f}, {high:.1f}], the difference of the interquartile means"
    if not winners:
        return [f"Nothing beats {preset} on fresh seeds; the best differs {found}"]
    return [
        f"{winner} beats {preset} on fresh seeds {found}",
        command("run.py", *commands[winner]),
    ]
