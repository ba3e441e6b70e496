"""The command line: argparse, with errors of one line and a guess at what was meant."""

import argparse
import difflib
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from harness.errors import UsageError
from harness.settings import Flags, as_text, flag_name

# What other programs call it.
OTHER_NAMES = {
    "--render": "--view",
    "--steps": "--max-steps",
    "--output": "--name",
    "--lr": "--learning-rate",
    "--timesteps": "--max-steps",
}


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose mistakes are UsageErrors; a flag not given leaves no attribute."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **options)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, in one line."""
        raise UsageError(f"{' '.join(message.split())} (see --help)")

    def add_flags(self, flags: Flags, several: bool = False) -> None:
        """Add the flags; with `several`, each takes several values."""
        groups: dict[str, argparse._ArgumentGroup] = {}
        for name, flag in flags.items():
            if flag.group not in groups:
                groups[flag.group] = self.add_argument_group(flag.group)
            options: dict[str, Any] = {"help": flag.help}
            if flag.kind is bool:
                options |= {"action": "store_true"}
            else:
                options |= {"type": flag.parse, "metavar": flag.metavar}
                if flag.choices:
                    options |= {"choices": flag.choices}
                elif flag.metavar is None and flag.kind is not str:
                    options["metavar"] = "N,N" if flag.kind is tuple else "N"
                if flag.default not in (None, {}):
                    options["help"] += f" (default {as_text(flag.default)})"
                if flag.kind is dict:
                    options |= {"nargs": "+", "action": "extend"}
                elif several:
                    options |= {"nargs": "+"}
            groups[flag.group].add_argument(flag_name(name), **options)

    def parse(self, argv: list[str] | None) -> dict[str, Any]:
        """The flags that were given, as a dict; UsageError if one isn't known."""
        known, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(self._unknown(unknown[0].partition("=")[0]))
        return vars(known)

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected {word!r}: {what_was_meant(word)}"
        nearest = nearest_flag(word, self._option_string_actions)
        meant = f": did you mean {nearest}?" if nearest else ""
        return f"unrecognized argument {word}{meant}"


def one_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What `--set` changes; UsageError if it names something twice."""
    named = dict(pairs)
    if len(named) < len(pairs):
        raise UsageError("--set: a number is changed twice; give each name once")
    return named


def what_was_meant(word: str) -> str:
    """A guess at what a word that follows no flag was meant to be."""
    if word.endswith((".h5", ".hdf5")):
        return f"did you mean --model {word}?"
    if word.rstrip("/").endswith("-log"):
        return f"did you mean --model {word}, or --resume {word}?"
    if word.isdecimal():
        return "each value follows its flag, and several numbers are written 64,64"
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
    if OTHER_NAMES.get(written) in names:
        return OTHER_NAMES[written]
    if initials.count(written) == 1:
        return names[initials.index(written)]
    if len(beginnings) == 1:
        return beginnings[0]
    return next(iter(difflib.get_close_matches(written, names, 1)), None)
