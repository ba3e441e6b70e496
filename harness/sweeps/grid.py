"""The trials of a sweep, each a run of run.py with its own flags and seed."""

import argparse
import hashlib
import itertools
import math
import re
import shlex
from dataclasses import dataclass, field

from harness.arguments import as_text, flag
from harness.environments import make_environment
from harness.errors import UsageError
from harness.settings import training_settings

MOST_SEEDS = 10_000
# A file system takes 255 bytes; -seed-2147483647-200000.partial.h5 and the like come after it.
LONGEST_NAME = 200


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: run.py's flags, each with one value (of `set`, a dict), and a seed."""

    flags: dict
    seed: int
    max_steps: int
    solved_from: float  # the least episode_return_avg that solves the environment, or infinity
    others: dict = field(default_factory=dict)  # hyperparameters that a preset made differ

    @property
    def arguments(self):
        """Its flags as run.py's command line, a list."""
        words = []
        for name, value in self.flags.items():
            for text in as_text(value).split():  # `set` may have several
                words += [flag(name), text]
        return words

    @property
    def configuration(self):
        """Its flags as one text, which names them in tables and pictures."""
        return shlex.join(self.arguments)

    @property
    def name(self):
        """Of its log folder NAME-log and its output NAME.txt: readable and unique in its sweep."""
        text = "-".join(word.removeprefix("--") for word in self.arguments)
        name = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)[:LONGEST_NAME]
        if name != text:
            name += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return f"{name}-seed-{self.seed}"


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
    """Every combination of the values given, a list of flags, each of them with one value.

    `given` is a dict of run.py's flags, each with a list of values; of `set`, a list of lists.
    """
    if "set" in given:
        changes = [dict(pairs) for pairs in itertools.product(*given["set"])]
        if min(map(len, changes)) < len(given["set"]):
            raise UsageError("--set: a number is changed twice; give each name once")
        given = {**given, "set": changes}
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]


def make_trials(configurations, seeds, hyperparameters, presets):
    """The trials of a sweep: a list of flags, each of them with each seed.

    UsageError is raised if run.py would refuse one, or it would evaluate nothing.
    """
    every = [training_settings(flags, hyperparameters, presets) for flags in configurations]
    differing = [name for name in hyperparameters if len({vars(one)[name] for one in every}) > 1]
    trials = {}
    for flags, settings in zip(configurations, every, strict=True):
        if not settings.eval_every:
            raise UsageError("--eval-every 0: a run is judged by its last evaluation")
        others = {name: getattr(settings, name) for name in differing if name not in flags}
        threshold = make_environment(settings.env).spec.reward_threshold
        solved_from = math.inf if threshold is None else threshold
        for seed in seeds:
            trial = Trial(flags, seed, settings.max_steps, solved_from, others)
            trials[trial.name] = trial  # a value given twice runs once
    return list(trials.values())
