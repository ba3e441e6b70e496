"""The trials of a sweep, each a run of run.py with its own flags and seed."""

import argparse
import hashlib
import itertools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from harness.environments import make_environment
from harness.errors import UsageError
from harness.settings import (
    Flag,
    Given,
    Presets,
    RunSettings,
    as_text,
    flag_name,
    flags_of,
    training_settings,
)

Words = tuple[str, str]  # a flag and its value, as the command line has them

MOST_SEEDS = 10_000
# A file system takes 255 bytes; -seed-2147483647-200000.partial.h5 and the like come after it.
LONGEST_NAME = 200
UNNAMED = "run"


@dataclass(frozen=True)
class Trainer:
    """What a sweep needs of run.py, which this package doesn't import."""

    settings: type[RunSettings]
    presets: Presets

    @property
    def flags(self) -> dict[str, Flag]:
        """Those that a sweep takes."""
        flags = flags_of(self.settings, presets=self.presets)
        return {name: flag for name, flag in flags.items() if "sweep" in flag.commands}


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        flags: run.py's, each with one value.
        solved_from: the least episode_return_avg that solves its environment, None if unknown.
        others: the hyperparameters that a preset made differ from other trials'.
        shared: flags and values that don't tell it from other trials.
    """

    flags: Given
    seed: int
    max_steps: int
    solved_from: float | None
    others: Given = field(default_factory=dict)
    shared: frozenset[Words] = frozenset()

    @property
    def env(self) -> str:
        """The ID of its environment."""
        return self.flags.get("env", RunSettings.env)

    @property
    def arguments(self) -> list[str]:
        """Its flags as run.py's command line."""
        return [word for pair in words_of(self.flags) for word in pair]

    @property
    def configuration(self) -> str:
        """What names its flags in tables and pictures: those in which it differs from others."""
        return label_of(self.flags, self.shared)

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


def words_of(flags: Given) -> list[Words]:
    """Flags as run.py's command line: a pair for each value; `set` may have several."""
    return [pair for name, value in flags.items() for pair in _words(name, value)]


def _words(name: str, value: Any) -> list[Words]:
    if name == "set":
        return [(flag_name(name), as_text({key: changed})) for key, changed in value.items()]
    return [(flag_name(name), as_text(value))]


def label_of(flags: Given, shared: frozenset[Words]) -> str:
    """The flags that aren't shared, as one text; where all are, the preset or UNNAMED."""
    differing = [pair for pair in words_of(flags) if pair not in shared]
    if not differing and "preset" in flags:
        differing = [("--preset", flags["preset"])]
    return shlex.join(itertools.chain(*differing)) or UNNAMED


def shared_words(configurations: Iterable[Given]) -> frozenset[Words]:
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


def combinations(given: Mapping[str, list]) -> list[dict[str, Any]]:
    """Every combination of the values given.

    `given` is a dict of run.py's flags, each with a list of values; of `set`, a list of pairs
    (name, value), in which a name may have several values.
    """
    if "set" in given:
        values_of: dict[str, list] = {}
        for name, value in given["set"]:
            values_of.setdefault(name, []).append(value)
        changes = [
            dict(zip(values_of, values, strict=True))
            for values in itertools.product(*values_of.values())
        ]
        given = {**given, "set": changes}
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]


def make_trials(
    trainer: Trainer,
    configurations: Sequence[Given],
    seeds: Sequence[int],
    goals: Mapping[str, float],
    shared: frozenset[Words] | None = None,
) -> list[Trial]:
    """The trials of a sweep: each of the configurations with each seed.

    Args:
        goals: the mean return that solves an environment, where it isn't the environment's own.
        shared: what names no configuration; by default, what all of them have.

    Raises:
        UsageError: if run.py would refuse one, or it would evaluate nothing.
    """
    if shared is None:
        shared = shared_words(configurations)
    every = [training_settings(trainer.settings, one, trainer.presets) for one in configurations]
    compared = [name for name, flag in trainer.flags.items() if "hparams" in flag.places]
    differing = [name for name in compared if len({as_text(getattr(s, name)) for s in every}) > 1]
    trials = {}
    for flags, settings in zip(configurations, every, strict=True):
        if not settings.eval_every:
            raise UsageError("--eval-every 0: a run is judged by its last evaluation")
        others = {name: getattr(settings, name) for name in differing if name not in flags}
        solved_from = goals.get(settings.env, solved_at(settings.env))
        if solved_from is None:
            solved_from = settings.until
        for seed in seeds:
            trial = Trial(flags, seed, settings.max_steps, solved_from, others, shared)
            trials[trial.name] = trial  # a value given twice runs once
    return list(trials.values())


def solved_at(env_id: str) -> float | None:
    """The mean return that solves an environment, None if it has none."""
    with closing(make_environment(env_id)) as env:
        return env.reward_threshold
