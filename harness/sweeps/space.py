"""What a search varies: ranges and choices of hyperparameters, checked before anything starts."""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.settings import LAST_SEED, Flag, Given, as_text, flag_name
from harness.sweeps.grid import (
    Trainer,
    Trial,
    Words,
    combinations,
    label_of,
    make_trials,
    shared_words,
    solved_at,
    words_of,
)

FRESH_SEEDS = 10


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included."""

    low: float
    high: float

    @property
    def logarithmic(self) -> bool:
        """Whether it spans a decade or more."""
        return 0 < 10 * self.low <= self.high


class RangeOrValue(Flag):
    """A hyperparameter that may be given as a range, `A:B`."""

    def parse(self, text: str) -> Any:
        """A Range or a value; raises ArgumentTypeError if one is out of bounds."""
        if ":" not in text or self.kind not in (int, float, tuple):
            return super().parse(text)
        if self.kind is tuple:
            raise argparse.ArgumentTypeError(f"expected layers, such as 32,32, not {text!r}")
        low, high = map(super().parse, text.split(":", 1))
        if low >= high:
            raise argparse.ArgumentTypeError(f"expected a range from low to high, not {text!r}")
        return Range(low, high)


@dataclass(frozen=True)
class Search:
    """What a search is to try.

    Attributes:
        given: run.py's flags, each with a list of values.
        searched: of these, the flags that vary: a Range, or the list of choices.
        count: of the proposals.
        confirmed: how many of the best are trained again, on `fresh_seeds`.
        goals: the mean return that solves each of its environments.
    """

    trainer: Trainer
    given: dict[str, list]
    searched: dict[str, Range | list]
    count: int
    confirmed: int
    seeds: list[int]
    fresh_seeds: list[int]
    goals: dict[str, float]

    @property
    def shared(self) -> frozenset[Words]:
        """The flags and values that name no proposal."""
        fixed = {name: v for name, v in self.given.items() if name not in self.searched}
        return shared_words(combinations(fixed))

    @property
    def preset(self) -> dict[str, list]:
        """The flags of the preset that a proposal must beat, each with a list of values."""
        # What a run learns and how it is judged is the same for all proposals, and for the preset.
        flags = self.trainer.flags
        judging = {k: v for k, v in self.given.items() if "search" not in flags[k].commands}
        return {"preset": ["tutorial"]} | judging

    @property
    def preset_label(self) -> str:
        """The preset that a proposal must beat, as its flag."""
        return f"--preset {self.preset['preset'][0]}"

    @property
    def judged_on(self) -> str:
        """How many runs judge a proposal, in words."""
        environments = len(self.given.get("env", [""]))
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return f"on {seeds}" + (f" in {environments} environments" if environments > 1 else "")

    @property
    def max_steps(self) -> int:
        """The steps of each run."""
        return self._trials(self.preset, [0])[0].max_steps

    def value_of(self, name: str, value: Any) -> Any:
        """A proposal's value of a flag: Optuna chooses among texts, or a number in a range.

        Three digits of a number are enough.
        """
        flag, ends = self.trainer.flags[name], self.searched[name]
        if not isinstance(ends, Range):
            return flag.parse(value)
        if flag.kind is float:
            value = min(max(float(f"{value:.3g}"), ends.low), ends.high)
        return flag.check(value)

    def label(self, values: Given) -> str:
        """A proposal's flags, as one text."""
        return label_of(values, frozenset())

    def trials(self, values: Given, seeds: Sequence[int]) -> list[Trial]:
        """A proposal's trials: each environment with each seed."""
        return self._trials(self.given | {name: [value] for name, value in values.items()}, seeds)

    def preset_trials(self) -> list[Trial]:
        """Those of the preset on the fresh seeds."""
        shared = self.shared - {("--preset", *self.preset["preset"])}  # it names them
        configurations = combinations(self.preset)
        return make_trials(self.trainer, configurations, self.fresh_seeds, self.goals, shared)

    def arguments(self, values: Given) -> list[str]:
        """A proposal as run.py's command line; without environments, where there are several."""
        trials = self.trials(values, [0])
        shared = shared_words(trial.flags for trial in trials)
        pairs = [pair for pair in words_of(trials[0].flags) if pair in shared]
        return list(itertools.chain(*pairs))

    def check(self) -> None:
        """UsageError if run.py would refuse a proposal or the preset."""
        ends = {k: [v.low, v.high] if isinstance(v, Range) else v for k, v in self.searched.items()}
        first = {name: values[:1] for name, values in ends.items()}
        # Where settings don't fit each other, two of them don't: all ends of each two are tried,
        # since those of all together would be too many.
        for names in itertools.combinations(ends, min(2, len(ends))):
            some = {name: ends[name] for name in names}
            self._trials(self.given | first | some, [0])
        self._trials(self.preset, [0])

    def _trials(self, given: dict[str, list], seeds: Sequence[int]) -> list[Trial]:
        return make_trials(self.trainer, combinations(given), seeds, self.goals, self.shared)


def plan_search(
    trainer: Trainer,
    given: dict[str, list],
    count: int,
    confirmed: int,
    seeds: list[int],
    fresh: list[int] | int,
    goals: dict[str, float],
) -> Search:
    """The Search that flags ask for; UsageError if one can't be searched, or run.py refuses one.

    Args:
        fresh: the seeds to confirm on, or how many that the search doesn't use.
    """
    searched: dict[str, Range | list] = {}
    for name, values in given.items():
        ranges = [value for value in values if isinstance(value, Range)]
        if name == "until":
            raise UsageError("--until: a search judges all runs after the same steps; leave it out")
        if "search" not in trainer.flags[name].commands:
            if ranges or (len(combinations({name: values})) > 1 and name != "env"):
                raise UsageError(f"{flag_name(name)}: a search can't vary it; give one value")
        elif ranges and len(values) > 1:
            raise UsageError(f"{flag_name(name)}: give one range, or several values")
        elif ranges or len(set(map(as_text, values))) > 1:
            searched[name] = ranges[0] if ranges else list(dict.fromkeys(values))
    if not searched:
        raise UsageError("--search: nothing varies; give a range such as --learning-rate 1e-4:0.01")
    if isinstance(fresh, int):
        fresh = list(range(max(seeds) + 1, max(seeds) + 1 + fresh))
    for seed in fresh:
        if seed in seeds:
            raise UsageError(f"--confirm-seeds: the search uses seed {seed}; confirm on others")
        if seed > LAST_SEED:
            raise UsageError("--confirm-seeds: no seeds follow the search's; name some")
    search = Search(trainer, given, searched, count, confirmed, seeds, fresh, goals)
    search.check()
    environments = given.get("env", [])
    for env_id in environments if len(environments) > 1 else []:
        if env_id not in goals and solved_at(env_id) is None:
            raise UsageError(
                f"--env {env_id} doesn't say which return solves it; with several environments, "
                "name one for each with --goal, in their order"
            )
    return search


def refuse_ranges(given: dict[str, list]) -> None:
    """Raise UsageError if one of a grid's flags, a dict of lists of values, has a range."""
    for name, values in given.items():
        if any(isinstance(value, Range) for value in values):
            raise UsageError(f"{flag_name(name)}: a range needs --search N")
