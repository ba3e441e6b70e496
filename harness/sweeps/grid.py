"""The trials of a sweep, each a run of run.py with its own flags and seed."""

import argparse
import hashlib
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from harness.environments import make_environment
from harness.errors import UsageError
from harness.flags import Flags as Table
from harness.flags import Use, as_text, flag
from harness.settings import Presets, training_settings

Flags = dict[str, Any]  # run.py's, each with one value; of `set`, a dict
Words = tuple[str, str]  # a flag and its value, as the command line has them

MOST_SEEDS = 10_000
# A file system takes 255 bytes; -seed-2147483647-200000.partial.h5 and the like come after it.
LONGEST_NAME = 200
UNNAMED = "run"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: run.py's flags and a seed."""

    flags: Flags
    seed: int
    max_steps: int
    solved_from: float  # the least episode_return_avg that solves the environment, or infinity
    others: Flags = field(default_factory=dict)  # hyperparameters that a preset made differ
    shared: frozenset[Words] = frozenset()  # what doesn't tell it from other trials

    @property
    def arguments(self) -> list[str]:
        """Its flags as run.py's command line."""
        return [word for pair in words_of(self.flags) for word in pair]

    @property
    def configuration(self) -> str:
        """What names its flags in tables and pictures: those in which it differs from others."""
        differing = [pair for pair in words_of(self.flags) if pair not in self.shared]
        if not differing and "preset" in self.flags:
            differing = [("--preset", self.flags["preset"])]
        return shlex.join(itertools.chain(*differing)) or UNNAMED

    @property
    def name(self) -> str:
        """Of its log folder and its output NAME.txt: readable and unique in its sweep."""
        text = "-".join(word.removeprefix("--") for word in shlex.split(self.configuration))
        name = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)[:LONGEST_NAME]
        if name != text:
            name += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return f"{name}-seed-{self.seed}"

    @property
    def log_folder(self) -> str:
        """The name of its log folder."""
        return f"{self.name}-log"


def words_of(flags: Flags) -> list[Words]:
    """Flags as run.py's command line: a pair for each value; `set` may have several."""
    return [
        (flag(name), text)
        for name, value in flags.items()
        for text in (as_text(value).split() if name == "set" else [as_text(value)])
    ]


def shared_words(configurations: Iterable[Flags]) -> frozenset[Words]:
    """The flags and values that all configurations have."""
    return frozenset.intersection(*(frozenset(words_of(flags)) for flags in configurations))


def parse_seeds(text: str) -> list[int]:
    """The seeds that a count (`20`: 0 to 19) or a list of seeds and ranges (`1,5-9`) stands for."""
    seeds: dict[int, None] = {}
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


def combinations(given: dict[str, list]) -> list[Flags]:
    """Every combination of the values given.

    `given` is a dict of run.py's flags, each with a list of values; of `set`, a list of pairs
    (name, number), in which a name may have several numbers.
    """
    if "set" in given:
        numbers: dict[str, list[float]] = {}
        for name, number in given["set"]:
            numbers.setdefault(name, []).append(number)
        changes = [
            dict(zip(numbers, values, strict=True))
            for values in itertools.product(*numbers.values())
        ]
        given = {**given, "set": changes}
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]


def make_trials(
    configurations: Sequence[Flags],
    seeds: Sequence[int],
    table: Table,
    presets: Presets,
    shared: frozenset[Words] | None = None,
) -> list[Trial]:
    """The trials of a sweep: each of the configurations with each seed.

    Args:
        shared: what names no configuration; by default, what all of them have.

    Raises:
        UsageError: if run.py would refuse one, or it would evaluate nothing.
    """
    if shared is None:
        shared = shared_words(configurations)
    every = [training_settings(flags, table, presets) for flags in configurations]
    compared = [name for name, known in table.items() if known.uses & Use.HPARAMS]
    differing = [name for name in compared if len({as_text(vars(one)[name]) for one in every}) > 1]
    trials = {}
    for flags, settings in zip(configurations, every, strict=True):
        if not settings.eval_every:
            raise UsageError("--eval-every 0: a run is judged by its last evaluation")
        others = {name: getattr(settings, name) for name in differing if name not in flags}
        with closing(make_environment(settings.env)) as env:
            threshold = env.reward_threshold
        solved_from = math.inf if threshold is None else threshold
        for seed in seeds:
            trial = Trial(flags, seed, settings.max_steps, solved_from, others, shared)
            trials[trial.name] = trial  # a value given twice runs once
    return list(trials.values())
