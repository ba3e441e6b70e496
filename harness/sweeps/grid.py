"""The grid of a sweep: its configurations and seeds, what they are called, and its trials."""

import argparse
import hashlib
import itertools
import re
import shlex
from typing import NamedTuple

from harness.arguments import as_text, flag
from harness.environments import make_environment
from harness.errors import UsageError
from harness.settings import training_settings

MOST_SEEDS = 10_000
# A file system takes 255 bytes; -seed-2147483647-200000.partial.h5 and the like come after it.
LONGEST_NAME = 200


class Trial(NamedTuple):
    """One run of a sweep: a configuration with a seed."""

    name: str  # its log folder is NAME-log, its printed output NAME.txt
    configuration: str  # the flags that were given, as on the command line
    columns: dict  # the configuration in results.csv, a text for each column
    solved_from: float  # the least episode_return_avg that solves the environment, or None
    seed: int
    job: dict  # what it takes to run it: flags (a dict), seed, max_steps


def parse_seeds(text):
    """The seeds that a count (`20`: 0 to 19) or a list of seeds and ranges (`1,5-9`) stands for."""
    seeds = {}
    ranges = f"0-{int(text) - 1}" if text.isdecimal() else text
    for part in ranges.split(","):
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not 0 <= last - first < MOST_SEEDS or last >= 2**31:
            raise argparse.ArgumentTypeError(
                f"expected how many (20), or a list (1,2,5-9) of up to {MOST_SEEDS} seeds "
                f"below {2**31}, not {text!r}"
            )
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def combinations(given):
    """Every combination of the values of run.py's flags, in the order in which they were given.

    Args:
        given: dict of flags, each with its list of values; of `set`, a list of such lists.

    Returns:
        list of dicts of flags, each with one value; of `set`, a tuple of changes.
    """
    given = given or {"preset": ["tutorial"]}
    axes = [itertools.product(*one) if name == "set" else one for name, one in given.items()]
    unique = map(dict.fromkeys, axes)
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*unique)]


def texts(name, value):
    """A flag's value as the command line takes it, a list; of `set`, a text for each change."""
    return ["{}={}".format(*change) for change in value] if name == "set" else [as_text(value)]


def command_line(flags):
    """run.py's command line for a dict of flags, as a list."""
    words = []
    for name, value in flags.items():
        for text in texts(name, value):
            words += [flag(name), text]
    return words


def trial_name(flags, seed):
    """A name for the files of a trial: readable, unique in its sweep, and not too long."""
    text = "-".join(word.removeprefix("--") for word in command_line(flags))
    name = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)[:LONGEST_NAME]
    if name != text:
        name += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{name}-seed-{seed}"


def checked_settings(flags, hyperparameters, presets):
    """The settings of a run, a Namespace.

    Raises:
        UsageError: if run.py would refuse the flags, or nothing would be evaluated.
    """
    changes = dict(flags.get("set", ()))
    if len(changes) < len(flags.get("set", ())):
        raise UsageError("--set: a number is changed twice; give each name once")
    settings = training_settings({**flags, "set": changes}, hyperparameters, presets)
    if not settings.eval_every:
        raise UsageError("--eval-every: a run is judged by its last evaluation, so it needs one")
    return settings


def make_trials(configurations, seeds, hyperparameters, presets):
    """The trials of a sweep: each of the configurations (dicts of flags) with each seed.

    Their columns are the settings that were given, or that differ between configurations.

    Raises:
        UsageError: if one of them can't be run and judged.
    """
    every = [checked_settings(flags, hyperparameters, presets) for flags in configurations]
    differing = [name for name in hyperparameters if len({getattr(s, name) for s in every}) > 1]
    columns = dict.fromkeys([*itertools.chain(*configurations), *differing])
    trials = []
    for flags, settings in zip(configurations, every, strict=True):
        label = shlex.join(command_line(flags))
        values = {**vars(settings), **flags}
        shown = {name: " ".join(texts(name, values[name])) for name in columns}
        threshold = make_environment(settings.env).spec.reward_threshold
        for seed in seeds:
            job = {"flags": flags, "seed": seed, "max_steps": settings.max_steps}
            trials.append(Trial(trial_name(flags, seed), label, shown, threshold, seed, job))
    return trials
