"""The flags: each is declared once, and every part of the tool reads that one declaration.

run.py declares the hyperparameters, since they belong to the algorithm; the rest is declared here.
To add a flag, add one entry to a table and use its setting; command line, help, checks, saved
settings, HPARAMS and sweeps follow.
"""

import argparse
import difflib
import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

ENVIRONMENT = "MountainCar-v0"
MANY = 10**9
LAST_SEED = 2**31 - 1


class Use(enum.Flag):
    """What a flag is for: the tasks that take it, and the places that its value goes to."""

    TRAIN = enum.auto()  # a new run
    CONTINUE = enum.auto()  # a new run that starts from a snapshot's weights
    RESUME = enum.auto()  # a stopped run; the flag must repeat what the run has
    CHANGE = enum.auto()  # … unless this says that it may change it
    PLAY = enum.auto()  # a snapshot's policy
    TEST = enum.auto()  # the self-check
    SEE = enum.auto()  # see.py
    SWEEP = enum.auto()  # sweep.py, which takes several values of it
    SEARCH = enum.auto()  # … or searches it
    SAVE = enum.auto()  # kept in config.json and in the state of the run
    SNAPSHOT = enum.auto()  # kept in the run's snapshots
    HPARAMS = enum.auto()  # a column of TensorBoard's HPARAMS tab
    RUN = TRAIN | CONTINUE | RESUME | SAVE
    HYPERPARAMETER = RUN | SWEEP | SEARCH | SNAPSHOT | HPARAMS


JUDGING = Use.HYPERPARAMETER & ~Use.SEARCH  # how long a run is and how it is judged
TASKS = {  # how a message names the tasks of run.py
    Use.TRAIN: "when a policy is trained",
    Use.CONTINUE: "when a snapshot's policy is trained further",
    Use.RESUME: "when a run is resumed",
    Use.PLAY: "when a policy is played",
    Use.TEST: "with --test",
}
ANY_TASK = Use.TRAIN | Use.CONTINUE | Use.RESUME | Use.PLAY | Use.TEST


@dataclass(frozen=True)
class Flag:
    """One flag of the command line.

    Attributes:
        default: its value where it isn't given; None if that is decided later.
        least, most: bounds of a number, or of each number of a tuple.
        help: for --help, which adds a default that isn't None.
        uses: the tasks that take it, and the places that its value goes to.
        kind: the type of its value: int, float, bool, str, a tuple of whole numbers, or a dict of
            NAME=NUMBER; by default the type of `default`.
        metavar: what --help shows in place of a value.
        choices: the only values of a text, if there are any.
        group: heading in --help.
    """

    default: Any
    least: float
    most: float
    help: str
    uses: Use = Use.HYPERPARAMETER
    kind: type | None = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    group: str = "hyperparameters (the tutorial's values are the defaults)"

    @property
    def type(self) -> type:
        """The type of its values."""
        return self.kind or type(self.default)

    @property
    def expected(self) -> str:
        """What it takes, in words."""
        if self.type in (int, float, tuple):
            kind = "a number" if self.type is float else "a whole number"
            each = "comma-separated numbers, each " if self.type is tuple else ""
            return f"{each}{kind} from {self.least} to {self.most}"
        if self.type is dict:
            return "NAME=NUMBER, such as gravity=0.002"
        return f"one of {', '.join(self.choices)}" if self.choices else f"a {self.type.__name__}"

    def check(self, value: object) -> Any:
        """`value` as the program uses it; ValueError if it isn't one that this flag takes."""
        if value is None and self.default is None:
            return None
        try:
            if self.type is tuple and isinstance(value, (list, tuple)) and value:
                return tuple(int(self._number(part, whole=True)) for part in value)
            if self.type is dict and isinstance(value, dict):
                return {str(name): self._number(number) for name, number in value.items()}
            if self.type is int:
                return int(self._number(value, whole=True))
            if self.type is float:
                return float(self._number(value))
            if self.type is bool and isinstance(value, bool):
                return value
            if self.type is str and isinstance(value, str) and value in (self.choices or [value]):
                return value
        except ValueError:
            pass  # the message below says it of the whole value
        raise ValueError(f"expected {self.expected}, not {value!r}")

    def parse(self, text: str) -> Any:
        """The value that a word of the command line stands for, a (name, number) of a dict.

        Raises:
            argparse.ArgumentTypeError: if it is none that this flag takes.
        """
        try:
            if self.type is dict:
                name, _, number = text.partition("=")
                if not name:
                    raise ValueError
                return name, self._number(_whole_if_possible(float(number)))
            if self.type is tuple:
                return self.check([float(part) for part in text.split(",")])
            return self.check(text if self.type is str else float(text))
        except ValueError:
            message = f"expected {self.expected}, not {text!r}"
            raise argparse.ArgumentTypeError(message) from None

    def _number(self, value: object, whole: bool = False) -> int | float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError
        if not (math.isfinite(value) and self.least <= value <= self.most):
            raise ValueError
        if whole and not float(value).is_integer():
            raise ValueError
        return value


Flags = Mapping[str, Flag]


def _whole_if_possible(number: float) -> int | float:
    return int(number) if number.is_integer() else number


PLAYING = Use.PLAY | Use.SEE
EVERYWHERE = Use.RUN | Use.PLAY | Use.SEE | Use.SNAPSHOT
WHAT, RUN = "what to do (by default: train)", "the run"


def _text(help: str, uses: Use, metavar: str | None, group: str, **options: Any) -> Flag:
    return Flag(None, 0, 0, help, uses, str, metavar, group=group, **options)


def _switch(help: str, uses: Use, group: str = WHAT) -> Flag:
    return Flag(False, 0, 0, help, uses, group=group)


FLAGS = {
    "model": _text(
        "snapshot to play, or NAME-log for its best one", Use.PLAY | Use.CONTINUE, "X.h5", WHAT
    ),
    "view": _switch("with --model: open a window, the default", Use.PLAY),
    "eval": _switch("with --model: print returns, no window", Use.PLAY),
    "train": _switch("with --model: train on from its weights", Use.CONTINUE),
    "resume": _text("go on with a stopped run", Use.RESUME, "NAME-log", WHAT),
    "test": _switch("try everything in a temporary folder", Use.TEST),
    "episodes": Flag(
        None, 1, 10**6, "episodes to play (by default 100, see.py 5; 1 for --gif and --images)",
        PLAYING, int, "N", group=WHAT,
    ),
    "gif": _text("write an animated GIF; needs no display", PLAYING, "FILE", WHAT),
    "images": _switch("write frames EPISODE_STEP.png here", PLAYING),
    "force": _switch("overwrite existing pictures", PLAYING),
    "env": Flag(
        ENVIRONMENT, 0, 0, "environment of gym or gymnasium; MODULE:ID imports a module first",
        EVERYWHERE | Use.SWEEP | Use.HPARAMS, metavar="ID", group=RUN,
    ),
    "set": Flag(
        {}, -math.inf, math.inf, "change numbers of the environment, such as gravity=0.002, or "
        "max_episode_steps=1000", EVERYWHERE | Use.SWEEP | Use.HPARAMS, dict, "NAME=N", group=RUN,
    ),
    "seed": Flag(
        None, 0, LAST_SEED, "of all random numbers (default: random)", EVERYWHERE, int, "N",
        group=RUN,
    ),
    "until": Flag(
        None, -MANY, MANY, "end at the first evaluation that averages at least this, such as "
        "-110, if 100 fresh episodes confirm it", Use.RUN | Use.CHANGE | Use.SWEEP, float,
        "RETURN", group=RUN,
    ),
    "threads": Flag(
        1, 0, 1024, "TensorFlow's threads, 0 for all cores", Use.RUN | Use.CHANGE, metavar="N",
        group=RUN,
    ),
    "name": _text(
        "of the run and its log folder (default: the date)",
        Use.TRAIN | Use.CONTINUE | Use.SAVE, None, RUN,
    ),
}  # fmt: skip


def preset_flag(presets: Mapping[str, Mapping[str, Any]]) -> Flag:
    """The flag that names one of the presets, a dict of names and their hyperparameters."""
    shown = "; ".join(
        f"{name}: {command_line(values) or 'the values of the tutorial'}"
        for name, values in presets.items()
    )
    help = f"hyperparameters to start from (default tutorial). {shown}"
    uses = Use.RUN | Use.SWEEP | Use.SNAPSHOT | Use.HPARAMS
    return Flag(None, 0, 0, help, uses, str, choices=tuple(presets), group=RUN)


def flag(name: str) -> str:
    """The flag of a setting: `--batch-size` for `batch_size`."""
    return "--" + name.replace("_", "-")


def as_text(value: object) -> str:
    """A setting's value as the command line takes it."""
    if isinstance(value, dict):
        return " ".join(f"{name}={number}" for name, number in value.items()) or "none"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def command_line(settings: Mapping[str, Any]) -> str:
    """Settings as flags, one text."""
    return " ".join(f"{flag(name)} {as_text(value)}" for name, value in settings.items())


class Parser(argparse.ArgumentParser):
    """argparse's parser, with errors of one line; a flag not given leaves no attribute."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **options)

    def error(self, message: str) -> NoReturn:
        """Print one line and end with status 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")

    def add_flags(self, flags: Flags, uses: Use, several: bool = False) -> None:
        """Add the flags that one of `uses` takes; with `several`, each takes several values."""
        groups: dict[str, argparse._ArgumentGroup] = {}
        for name, known in flags.items():
            if not known.uses & uses:
                continue
            if known.group not in groups:
                groups[known.group] = self.add_argument_group(known.group)
            options: dict[str, Any] = {"help": known.help}
            if known.type is bool:
                options |= {"action": "store_true"}
            else:
                options |= {"type": known.parse, "metavar": known.metavar}
                if known.choices:
                    options |= {"choices": known.choices}
                elif known.metavar is None and known.type is not str:
                    options["metavar"] = "N,N" if known.type is tuple else "N"
                if known.default not in (None, {}):
                    options["help"] += f" (default {as_text(known.default)})"
                if known.type is dict:
                    options |= {"nargs": "+", "action": "extend"}
                elif several:
                    options |= {"nargs": "+"}
            groups[known.group].add_argument(flag(name), **options)

    def parse(self, argv: list[str] | None) -> dict[str, Any]:
        """The flags that were given, as a dict; a mistake prints one line and ends with 2."""
        known, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(self._unknown(unknown))
        return vars(known)

    def _unknown(self, words: list[str]) -> str:
        word = words[0].partition("=")[0]
        if not word.startswith("-"):
            return f"unexpected {word!r}: {what_was_meant(word)}"
        nearest = nearest_flag(word, self._option_string_actions)
        meant = f": did you mean {nearest}?" if nearest else ""
        return f"unrecognized argument {word}{meant}"


def what_was_meant(word: str) -> str:
    """A guess at what a word that follows no flag was meant to be."""
    if word.endswith((".h5", ".hdf5")):
        return f"did you mean --model {word}?"
    if word.rstrip("/").endswith("-log"):
        return f"did you mean --model {word}, or --resume {word}?"
    return "each value follows its flag"


def nearest_flag(word: str, flags: Mapping[str, object]) -> str | None:
    """The flag that a mistyped one most likely stands for; None if none is near.

    `--learning_rate`, `--learning` and `--lr` are `--learning-rate`.
    """
    written = "--" + word.strip("-").replace("_", "-").lower()
    names = [name for name in flags if name.startswith("--")]
    initials = ["--" + "".join(re.findall(r"(?<=-)\w", name)) for name in names]
    beginnings = [name for name in names if name.startswith(written)]
    if written in names:
        return written
    if initials.count(written) == 1:
        return names[initials.index(written)]
    if len(beginnings) == 1:
        return beginnings[0]
    return next(iter(difflib.get_close_matches(written, names, 1)), None)
