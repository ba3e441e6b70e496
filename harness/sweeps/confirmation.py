"""The end of a search: its best proposals on fresh seeds, beside the preset they must beat."""

import math
import shlex

from harness.sweeps.results import gain, interval, progress_of


def best(proposals, count):
    """The `count` finished proposals with the highest last mean, the best first."""
    finished = [one for one in proposals if one.finished and not math.isnan(one.last)]
    return sorted(finished, key=lambda one: one.last, reverse=True)[:count]


def budget(folder, proposals):
    """One line: the steps that proposals were trained for, beside those of full trainings."""
    trials = [trial for one in proposals for trial in one.trials]
    trained = sum(progress_of(folder / f"{trial.name}-log")[0] for trial in trials)
    full = sum(trial.max_steps for trial in trials)
    stopped = sum(one.stopped for one in proposals)
    return (
        f"ASHA stopped {stopped} of {len(proposals)} proposals early: {trained} steps trained "
        f"instead of {full}, {1 - trained / full:.0%} saved"
    )


def verdict(results, trials):
    """Whether a proposal beats the preset, as lines of text; the last is the winner's command.

    A proposal wins if the interval of the difference of the interquartile means lies above 0. The
    intervals hold for all proposals together with 95 % (Bonferroni), since each is a chance to win.

    Args:
        results: DataFrame of results.csv.
        trials: of the confirmation; the last ones are the preset's.
    """
    commands = {trial.configuration: trial.arguments for trial in trials}
    results = results.set_index("folder").loc[[f"{trial.name}-log" for trial in trials]]
    finals = results.groupby("configuration")["episode_return_avg"].apply(list)
    *proposals, preset = commands
    gains = []
    for proposal in proposals:
        pair = finals[proposal], finals[preset]
        low, high = interval(gain, *pair, level=1 - 0.05 / len(proposals))
        gains.append((gain(*pair), low, high, proposal))
    winners = [one for one in gains if one[1] > 0]
    mean, low, high, winner = max(
        winners or gains, key=lambda one: (not math.isnan(one[0]), one[0])
    )
    found = f"by {mean:.1f} [{low:.1f}, {high:.1f}], the difference of the interquartile means"
    if not winners:
        return [f"Nothing beats {preset} on fresh seeds; the best differs {found}"]
    command = shlex.join(["python", "run.py", *commands[winner]])
    return [f"{winner} beats {preset} on fresh seeds {found}", command]
