"""What a search varies: ranges and choices of hyperparameters, checked before anything starts."""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import UsageError
from harness.flags import LAST_SEED, Flag, Use, as_text, flag
from harness.flags import Flags as Table
from harness.settings import Presets
from harness.sweeps.grid import Flags, Trial, Words, combinations, make_trials, shared_words

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

    def parse(self, text: str) -> object:
        """A Range or a value; raises ArgumentTypeError if one is out of bounds."""
        if ":" not in text:
            return super().parse(text)
        if self.type is tuple:
            raise argparse.ArgumentTypeError(f"expected layers, such as 32,32, not {text!r}")
        low, high = map(super().parse, text.split(":", 1))
        if low >= high:
            raise argparse.ArgumentTypeError(f"expected a range from low to high, not {text!r}")
        return Range(low, high)


def value_of(known: Flag, value: object) -> object:
    """A proposal's value of a flag: Optuna chooses among texts, or a number in a range."""
    return known.parse(value) if isinstance(value, str) else known.check(value)


@dataclass(frozen=True)
class Search:
    """What a search is to try: its flags, each with a list of values, and its seeds."""

    given: dict[str, list]
    searched: dict[str, Range | list]  # of its flags, those that vary: a range or the choices
    tables: tuple[Table, Presets]
    count: int  # of proposals
    confirmed: int  # the best so many
    seeds: list[int]
    fresh_seeds: list[int]

    @property
    def fixed(self) -> Flags:
        """The flags that all proposals have."""
        fixed = {name: v for name, v in self.given.items() if name not in self.searched}
        return combinations(fixed)[0]

    @property
    def shared(self) -> frozenset[Words]:
        """The flags and values that name no proposal."""
        return shared_words([self.fixed])

    def flags(self, values: dict) -> Flags:
        """run.py's flags for a proposal, a dict of the searched flags' values."""
        table, _ = self.tables
        parsed = {name: [value_of(table[name], value)] for name, value in values.items()}
        return combinations(self.given | parsed)[0]

    def trials(self, values: dict) -> list[Trial]:
        """The trials of a proposal, one for each of the search's seeds."""
        return make_trials([self.flags(values)], self.seeds, *self.tables, self.shared)

    def confirmation(self, proposals: Sequence[dict]) -> list[Trial]:
        """The trials on fresh seeds of a list of values, then those of the preset to beat."""
        configurations = [*map(self.flags, proposals), self.preset]
        return make_trials(configurations, self.fresh_seeds, *self.tables, self.shared)

    @property
    def max_steps(self) -> int:
        """The steps of each run."""
        return self.confirmation([])[0].max_steps

    @property
    def preset(self) -> Flags:
        """The flags of the preset that a proposal must beat."""
        table, _ = self.tables
        # What a run learns and how it is judged is the same for all proposals, and for the preset.
        shared = {k: v for k, v in self.given.items() if not table[k].uses & Use.SEARCH}
        return combinations({"preset": ["tutorial"]} | shared)[0]


def plan_search(
    given: dict[str, list],
    tables: tuple[Table, Presets],
    counts: tuple[int, int],
    seeds: list[int],
    fresh: list[int] | None,
) -> Search:
    """The Search that flags ask for; UsageError if one can't be searched, or run.py refuses one.

    Args:
        tables: run.py's flags and presets.
        counts: of the proposals, and of those to confirm.
        fresh: seeds to confirm on; None for the ten after the search's.
    """
    searched = {}
    for name, values in given.items():
        ranges = [value for value in values if isinstance(value, Range)]
        if name == "until":
            raise UsageError("--until: a search judges all runs after the same steps; leave it out")
        if not tables[0][name].uses & Use.SEARCH:
            if ranges or len(combinations({name: values})) > 1:
                raise UsageError(f"{flag(name)}: a search can't vary it; give one value")
        elif ranges and len(values) > 1:
            raise UsageError(f"{flag(name)}: give one range, or several values")
        elif ranges or len(set(map(as_text, values))) > 1:
            searched[name] = ranges[0] if ranges else list(dict.fromkeys(values))
    if not searched:
        raise UsageError("--search: nothing varies; give a range such as --learning-rate 1e-4:0.01")
    fresh = fresh or [max(seeds) + number for number in range(1, FRESH_SEEDS + 1)]
    for seed in fresh:
        if seed in seeds:
            raise UsageError(f"--confirm-seeds: the search uses seed {seed}; confirm on others")
        if seed > LAST_SEED:
            raise UsageError("--confirm-seeds: no seeds follow the search's; name some")
    search = Search(given, searched, tables, *counts, seeds, fresh)
    ends = {k: [v.low, v.high] if isinstance(v, Range) else v for k, v in searched.items()}
    # Where settings don't fit each other, two of them don't: all ends of each two are tried, since
    # those of all together would be too many.
    first = {name: values[:1] for name, values in ends.items()}
    for names in itertools.combinations(ends, min(2, len(ends))):
        some = {name: ends[name] for name in names}
        make_trials(combinations(given | first | some), [0], *tables)
    make_trials([search.preset], [0], *tables)
    return search


def refuse_ranges(given: dict[str, list]) -> None:
    """Raise UsageError if one of a grid's flags, a dict of lists of values, has a range."""
    for name, values in given.items():
        if any(isinstance(value, Range) for value in values):
            raise UsageError(f"{flag(name)}: a range needs --search N")
