"""The command line: flags made from one table, and errors of one line."""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

from harness.environments import ENVIRONMENT

MANY = 10**9


class Hyperparameter(NamedTuple):
    """One row of the table of hyperparameters; its type is that of its default."""

    default: object
    least: float
    most: float
    help: str

    def parse(self, text):
        """The value that `text` stands for; raises ArgumentTypeError if it is out of bounds.

        A tuple's bounds hold for each of its comma-separated numbers.
        """
        if isinstance(self.default, tuple):
            return tuple(self._replace(default=0).parse(part) for part in text.split(","))
        whole, value = isinstance(self.default, int), as_number(text)
        if not self.least <= value <= self.most or (whole and not value.is_integer()):
            kind = "a whole number" if whole else "a number"
            raise argparse.ArgumentTypeError(
                f"expected {kind} from {self.least} to {self.most}, not {text!r}"
            )
        return int(value) if whole else value


class Parser(argparse.ArgumentParser):
    """argparse's parser, with errors of one line; a flag not given leaves no attribute."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")

    def add_hyperparameters(self, table, **options):
        """Add a flag for each row of `table`, a dict of Hyperparameters; options as argparse's."""
        group = self.add_argument_group("hyperparameters (the tutorial's values are the defaults)")
        for name, row in table.items():
            group.add_argument(
                flag(name),
                type=row.parse,
                metavar="N,N" if isinstance(row.default, tuple) else "N",
                help=f"{row.help} (default {as_text(row.default)})",
                **options,
            )


def flag(name):
    """The flag of a hyperparameter: `--batch-size` for `batch_size`."""
    return "--" + name.replace("_", "-")


def as_text(value):
    """A setting's value as the command line takes it."""
    if isinstance(value, dict):
        return " ".join(f"{name}={number}" for name, number in value.items()) or "nothing"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def as_number(text):
    """The float that `text` stands for, NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def whole(least, most):
    """An argparse type: a whole number within bounds."""
    return Hyperparameter(0, least, most, "").parse


parse_return = Hyperparameter(0.0, -MANY, MANY, "").parse
parse_seed = whole(0, 2**31 - 1)
parse_threads = whole(0, 1024)


def add_playing_flags(group, default):
    """Add the flags that run.py and see.py share; `default` says how many episodes they play."""
    group.add_argument(
        "--episodes",
        type=whole(1, 10**6),
        metavar="N",
        help=f"episodes to play (default {default})",
    )
    group.add_argument("--gif", metavar="FILE", help="write an animated GIF; needs no display")
    group.add_argument("--images", action="store_true", help="write frames EPISODE_STEP.png here")
    group.add_argument("--force", action="store_true", help="overwrite existing pictures")


def log_folder(text):
    """An argparse type: the Path of a log folder; `NAME` stands for `NAME-log` too."""
    if not text:
        raise argparse.ArgumentTypeError("expected a log folder such as NAME-log, not ''")
    path = Path(text)
    longer = path.with_name(f"{path.name}-log") if path.name else path
    return longer if longer.is_dir() and not path.is_dir() else path


def parse_change(text):
    """The (name, number) that `--set NAME=VALUE` stands for."""
    name, _, value = text.partition("=")
    number = as_number(value)
    if not name or not math.isfinite(number):
        raise argparse.ArgumentTypeError(
            f"expected NAME=NUMBER, such as gravity=0.002, not {text!r}"
        )
    return name, int(number) if number.is_integer() else number


def parse_arguments(argv, hyperparameters, presets):
    """The flags that were given, as a dict; a mistake prints one line and exits with 2."""
    parser = Parser(
        prog="run.py", description="Train a deep Q-learning policy on MountainCar, or watch one."
    )
    mode = parser.add_argument_group("what to do (by default: train)")
    mode.add_argument("--model", metavar="X.h5", help="watch it, or the best of NAME-log")
    mode.add_argument(
        "--view", action="store_true", help="with --model: open a window, the default"
    )
    mode.add_argument("--eval", action="store_true", help="with --model: print returns, no window")
    mode.add_argument(
        "--train", action="store_true", help="with --model: train on from its weights"
    )
    mode.add_argument(
        "--resume", type=log_folder, metavar="NAME-log", help="go on with a stopped run"
    )
    mode.add_argument("--test", action="store_true", help="try everything in a temporary folder")
    add_playing_flags(mode, "100, or 1 for --gif and --images")
    run = parser.add_argument_group("the run")
    run.add_argument("--env", metavar="ID", help=f"gym environment (default {ENVIRONMENT})")
    run.add_argument(
        "--set",
        type=parse_change,
        action="append",
        metavar="NAME=VALUE",
        help="change a number of the environment, such as gravity=0.002; can be repeated",
    )
    run.add_argument("--seed", type=parse_seed, metavar="N", help="default: random")
    run.add_argument(
        "--until",
        type=parse_return,
        metavar="RETURN",
        help="end at the first evaluation that averages at least this, such as -110",
    )
    run.add_argument("--threads", type=parse_threads, metavar="N", help="0: all cores (default 1)")
    run.add_argument("--name", help="of the run and its log folder (default: the date)")
    shown = "; ".join(f"{name}: {_shown(values)}" for name, values in presets.items())
    run.add_argument("--preset", choices=presets, help=f"default tutorial. {shown}")
    parser.add_hyperparameters(hyperparameters)
    given = vars(parser.parse_args(argv))
    if "set" in given:
        changes = dict(given["set"])
        if len(changes) < len(given["set"]):
            parser.error("argument --set: a number is changed twice; give each name once")
        given["set"] = changes
    return given


def _shown(values):
    settings = (f"{flag(name)} {as_text(value)}" for name, value in values.items())
    return " ".join(settings) or "the tutorial's values"
