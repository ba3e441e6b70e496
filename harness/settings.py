"""The settings: each is a field of a dataclass, which carries its bounds and its sentence of help.

Command line, checks, files, TensorBoard's HPARAMS and sweeps all read these fields. run.py adds its
hyperparameters to RunSettings; to add one, add a field there and use it.
"""

import argparse
import dataclasses
import math
import secrets
import shlex
import typing
from collections.abc import Callable, Mapping, Set
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import psutil

from harness.environments import check_environment, make_environment, parse_value
from harness.errors import UsageError
from harness.snapshot_reader import MOST_LAYERS, MOST_WEIGHTS

MANY = 10**9
LAST_SEED = 2**31 - 1
EPISODES = 100  # that a policy plays by default
OF_THE_WEIGHTS = {"env", "set", "hidden"}  # what a snapshot's weights were made for
COMMANDS = {  # what run.py can be asked to do, as a message names it
    "train": "when a policy is trained",
    "continue": "when a snapshot's policy is trained further",
    "resume": "when a run is resumed",
    "play": "when a policy is played",
    "test": "with --test",
}

# Which commands take a flag. A resumed run keeps what it was started with, unless the flag's
# commands have the word "change" too; "sweep" takes several values, and "search" varies them.
NEW_RUN = frozenset({"train", "continue"})
ANY_RUN = NEW_RUN | {"resume"}
JUDGING = ANY_RUN | {"sweep"}  # how long a run is and how it is judged: a search varies none of it
LEARNING = JUDGING | {"search"}
PLAYING = frozenset({"play"})
SHOWING = PLAYING | {"see"}
# Where its value is kept: in config.json and the run's state, in snapshots, in HPARAMS' columns.
EVERYWHERE = frozenset({"config", "snapshot", "hparams"})
NOWHERE: frozenset[str] = frozenset()

Given = Mapping[str, Any]  # the flags that were given, by their settings' names
Presets = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Flag:
    """One flag of the command line, as a field of a settings class declares it.

    Attributes:
        name: of the setting.
        kind: the type of its value: int, float, bool, str, a tuple of whole numbers, or a dict.
        default: its value where it isn't given; None if that is decided later.
        least, most: bounds of a number, or of each number of a tuple.
        help: for --help, which adds a default that isn't None.
        commands: the words of those that take it.
        places: where its value is kept.
        metavar: what --help shows in place of a value.
        choices: the only values of a text, if there are any.
        group: heading in --help.
    """

    name: str
    kind: type
    default: Any
    least: float
    most: float
    help: str
    commands: Set[str]
    places: Set[str]
    metavar: str | None
    choices: tuple[str, ...]
    group: str

    @property
    def expected(self) -> str:
        """What it takes, in words."""
        if self.kind in (int, float, tuple):
            number = "a number" if self.kind is float else "a whole number"
            each = "comma-separated numbers, each " if self.kind is tuple else ""
            return f"{each}{number} from {self.least} to {self.most}"
        if self.kind is dict:
            return "NAME=VALUE, such as gravity=0.002"
        return f"one of {', '.join(self.choices)}" if self.choices else f"a {self.kind.__name__}"

    def check(self, value: object) -> Any:
        """`value` as the program uses it; ValueError if it isn't one that this flag takes."""
        if value is None and self.default is None:
            return None
        try:
            if self.kind is tuple and isinstance(value, (list, tuple)) and value:
                return tuple(int(self._number(part, whole=True)) for part in value)
            if self.kind is dict and isinstance(value, dict):
                return {str(name): self._changed(changed) for name, changed in value.items()}
            if self.kind is int:
                return int(self._number(value, whole=True))
            if self.kind is float:
                return float(self._number(value))
            if self.kind is bool and isinstance(value, bool):
                return value
            if self.kind is str and isinstance(value, str) and value in (self.choices or [value]):
                return value
        except ValueError:
            pass  # the message below says it of the whole value
        raise ValueError(f"expected {self.expected}, not {value!r}")

    def parse(self, text: str) -> Any:
        """The value that a word of the command line stands for, a (name, value) of a dict.

        Raises:
            argparse.ArgumentTypeError: if it is none that this flag takes.
        """
        try:
            if self.kind is dict:
                name, equals, value = text.partition("=")
                if not (name and equals and value):
                    raise ValueError
                return name, self._changed(parse_value(value))
            if self.kind is tuple:
                return self.check([float(part) for part in text.split(",")])
            return self.check(text if self.kind is str else float(text))
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

    def _changed(self, value: object) -> object:
        return value if isinstance(value, (str, bool)) else self._number(value)


Flags = Mapping[str, Flag]


def setting(
    default: Any,
    least: float,
    most: float,
    help: str,
    commands: Set[str] = LEARNING,
    places: Set[str] = EVERYWHERE,
    *,
    metavar: str | None = None,
    choices: tuple[str, ...] = (),
    group: str = "hyperparameters (the tutorial's values are the defaults)",
) -> Any:
    """A field of a settings class. The arguments are Flag's attributes."""
    described = {
        "least": least,
        "most": most,
        "help": help,
        "commands": commands,
        "places": places,
        "metavar": metavar,
        "choices": choices,
        "group": group,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=described)
    return dataclasses.field(default=default, metadata=described)


def text(help: str, commands: Set[str], places: Set[str], metavar: str | None, group: str) -> Any:
    """A field whose value is a text, None where it isn't given."""
    return setting(None, 0, 0, help, commands, places, metavar=metavar, group=group)


def switch(help: str, commands: Set[str], group: str) -> Any:
    """A field whose flag takes no value."""
    return setting(False, 0, 0, help, commands, NOWHERE, group=group)


WHAT, RUN = "what to do", "the run"


@dataclass(kw_only=True)
class Actions:
    """The flags that say what run.py is to do."""

    model: str | None = text(
        "snapshot to play, or NAME-log for its best one",
        PLAYING | {"continue"},
        NOWHERE,
        "X.h5",
        WHAT,
    )
    train: bool = switch("with --model: train on from its weights", {"continue"}, WHAT)
    resume: str | None = text("continue a stopped run", {"resume"}, NOWHERE, "NAME-log", WHAT)
    test: bool = switch(
        "try everything in a temporary folder; with --env: examine that environment", {"test"}, WHAT
    )


@dataclass(kw_only=True)
class CommonSettings:
    """What training and playing both need to know."""

    env: str = setting(
        "MountainCar-v0",
        0,
        0,
        "environment of gym or gymnasium; MODULE:ID imports a module first",
        JUDGING | {"play", "see", "test"},
        metavar="ID",
        group=RUN,
    )
    set: dict[str, float | str | bool] = setting(
        {},
        -math.inf,
        math.inf,
        "change the environment: gravity=0.002, map_name=8x8, max_episode_steps=1000",
        JUDGING | {"play", "see", "test"},
        metavar="NAME=VALUE",
        group=RUN,
    )
    seed: int = setting(
        None,
        0,
        LAST_SEED,
        "of all random numbers (default: random)",
        ANY_RUN | {"play", "see"},
        {"config", "snapshot"},
        metavar="N",
        group=RUN,
    )


@dataclass(kw_only=True)
class PlaySettings(CommonSettings):
    """How a policy is played, or see.py's random agent."""

    view: bool = switch("with --model: open a window, the default", PLAYING, WHAT)
    eval: bool = switch("with --model: print returns, no window", PLAYING, WHAT)
    episodes: int = setting(
        None,
        1,
        10**6,
        "episodes to play (by default 100, see.py 5; 1 for --gif and --images)",
        SHOWING,
        NOWHERE,
        metavar="N",
        group=WHAT,
    )
    gif: str | None = text(
        "write an animated GIF; needs no display", SHOWING, NOWHERE, "FILE", WHAT
    )
    images: bool = switch("write PNG frames EPISODE_STEP.png into a folder", SHOWING, WHAT)
    csv: str | None = text("with --eval: write the returns", PLAYING, NOWHERE, "FILE", WHAT)
    force: bool = switch("overwrite existing files", SHOWING, WHAT)


@dataclass(kw_only=True)
class RunSettings(CommonSettings):
    """What is asked of a run, whatever it learns. run.py adds the hyperparameters."""

    until: float | None = setting(
        None,
        -MANY,
        MANY,
        "end at the first evaluation that averages at least this, such as -110, if 100 fresh "
        "episodes confirm it",
        JUDGING | {"change"},
        {"config"},
        metavar="RETURN",
        group=RUN,
    )
    threads: int = setting(
        1,
        0,
        1024,
        "TensorFlow's threads, 0 for all cores",
        ANY_RUN | {"change"},
        {"config"},
        metavar="N",
        group=RUN,
    )
    name: str | None = text(
        "of the run and its log folder (default: the date)", NEW_RUN, {"config"}, None, RUN
    )
    film: str | None = text(
        "film an episode at twelve moments of the run, a GIF", NEW_RUN, NOWHERE, "FILE", RUN
    )
    preset: str | None = setting(None, 0, 0, "", JUDGING, group=RUN)

    # Those of run.py's settings that this package looks at.
    gamma: float
    initial_gamma: float
    gamma_decay_steps: int
    n_step: int
    one_step: int
    hidden: tuple[int, ...]
    learning_rate: float
    batch_size: int
    buffer_size: int
    target_update_every: int
    train_start: int
    epsilon: float
    initial_epsilon: float
    epsilon_decay_steps: int
    max_repeat: int
    ema_momentum: float
    max_steps: int
    eval_every: int
    eval_steps: int
    eval_epsilon: float
    log_every: int
    snapshot_every: int

    @property
    def largest_gamma(self) -> float:
        """The largest discount factor in the course of the run."""
        return max(self.gamma, self.initial_gamma) if self.gamma_decay_steps else self.gamma


Kind = TypeVar("Kind", bound=RunSettings)


def flags_of(*kinds: type[Any], presets: Presets | None = None) -> dict[str, Flag]:
    """The flags that the fields of settings classes declare, by their settings' names.

    A field that several of the classes have is one flag, which all their commands take.
    """
    flags: dict[str, Flag] = {}
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        # In the order of run.py's Settings, also those that RunSettings names without a value.
        order = {name: number for number, name in enumerate(kind.__annotations__)}
        for field in sorted(dataclasses.fields(kind), key=lambda field: order.get(field.name, -1)):
            described = dict(field.metadata)
            if not described:
                raise UsageError(
                    f"{kind.__name__}.{field.name}: expected setting(default, least, most, help), "
                    "which makes a flag of it"
                )
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            else:
                default = field.default
            if field.name in flags:
                described["commands"] |= flags[field.name].commands
                described["places"] |= flags[field.name].places
            if field.name == "preset" and presets:
                described |= {"choices": tuple(presets), "help": _preset_help(presets)}
            hint = hints[field.name]
            if type(None) in typing.get_args(hint):  # `float | None`
                hint = typing.get_args(hint)[0]
            kind_of_value = typing.get_origin(hint) or hint
            flags[field.name] = Flag(field.name, kind_of_value, default, **described)
    return flags


def check_presets(presets: Presets, flags: Flags) -> None:
    """Raise UsageError if a preset has a value that its flag would refuse."""
    for preset, values in presets.items():
        for name, value in values.items():
            if name not in flags:
                raise UsageError(f"PRESETS: {preset!r} has {name!r}, which is no setting")
            try:
                flags[name].check(value)
            except ValueError as error:
                raise UsageError(f"PRESETS: {preset!r}: {flag_name(name)}: {error}") from None


def _preset_help(presets: Presets) -> str:
    shown = "; ".join(
        f"{name}: {command_line(values) or 'the values of the tutorial'}"
        for name, values in presets.items()
    )
    return f"hyperparameters to start from (default tutorial). {shown}"


def flag_name(name: str) -> str:
    """The flag of a setting: `--batch-size` for `batch_size`."""
    return "--" + name.replace("_", "-")


def as_text(value: object) -> str:
    """A setting's value as the command line takes it."""
    if isinstance(value, dict):
        return " ".join(f"{name}={changed}" for name, changed in value.items()) or "none"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def command_line(settings: Given) -> str:
    """Settings as flags, one text."""
    return " ".join(f"{flag_name(name)} {as_text(value)}" for name, value in settings.items())


def command_of_run(settings: RunSettings) -> str:
    """The command that starts a run like this one."""
    words = ["python", "run.py"]
    for name, flag in flags_of(type(settings)).items():
        value = getattr(settings, name)
        if value == flag.default or flag.places == NOWHERE or name == "preset":
            continue  # the values of the preset are given one by one
        pairs = value.items() if flag.kind is dict else ()
        words += [flag_name(name), *(f"{key}={part}" for key, part in pairs)]
        if flag.kind is not dict:
            words.append(as_text(value))
    return shlex.join(words)


def command_of(given: Given) -> str:
    """What run.py is asked to do, one of COMMANDS."""
    if "test" in given:
        return "test"
    if "resume" in given:
        return "resume"
    if "model" in given:
        return "continue" if "train" in given else "play"
    return "train"


def refuse_useless(given: Given, flags: Flags, command: str) -> None:
    """Raise UsageError if a flag was given that does nothing for this command."""
    for name in given:
        takes = flags[name].commands
        if command in takes:
            continue
        if command == "train" and not takes & {"train", "resume", "test"}:
            what = "trains on from" if name == "train" else "needs"
            raise UsageError(f"{flag_name(name)} {what} a snapshot: name it with --model X.h5")
        raise UsageError(f"{flag_name(name)} does nothing {COMMANDS[command]}; leave it out")


def new_seed() -> int:
    """A seed for a run that was given none."""
    return secrets.randbelow(LAST_SEED + 1)


def _merged(standard: Given, origin: Given, given: Given) -> dict[str, Any]:
    """The settings given, over those of `origin`, over the standard ones."""
    if given.get("env", origin.get("env")) != origin.get("env"):  # its changes are of another one
        origin = {name: value for name, value in origin.items() if name != "set"}
    return {"seed": new_seed(), **standard, **origin, **given}


def playing_settings(given: Given, origin: Given, episodes: int = EPISODES) -> PlaySettings:
    """The settings for playing a policy.

    Args:
        origin: settings of the run that the policy comes from, which the flags override.
        episodes: to play, where neither a flag says it nor pictures are made, which show one.

    Raises:
        UsageError: if two flags contradict each other.
    """
    if "view" in given and "eval" in given:
        raise UsageError("--view opens a window, --eval doesn't; choose one")
    pictures = "gif" in given or "images" in given
    if "view" in given and pictures:
        raise UsageError("--view opens a window, --gif and --images don't; choose one")
    standard = {"episodes": 1 if pictures else episodes}
    values = _merged(standard, origin, given)
    names = {field.name for field in dataclasses.fields(PlaySettings)}
    return PlaySettings(**{name: value for name, value in values.items() if name in names})


def training_settings(
    kind: type[Kind],
    given: Given,
    presets: Presets,
    origin: Given | None = None,
    warn: Callable[[str], object] = lambda line: None,
) -> Kind:
    """A new run's settings: the flags over the preset over the defaults.

    Args:
        kind: run.py's Settings.
        origin: settings of the run that the first weights come from; they are the defaults then.
        warn: is told what is allowed but hardly meant, a line each.

    Raises:
        UsageError: if the values don't fit each other, the environment or this machine.
    """
    standard = {"preset": None if origin else "tutorial"}
    origin = origin or {}
    if "preset" in given:  # it stands for all hyperparameters, the tutorial's too
        origin = {name: value for name, value in origin.items() if name in OF_THE_WEIGHTS}
    preset = presets[given.get("preset", "tutorial")]
    taken = {name: value for name, value in given.items() if name not in ("model", "train")}
    if "gamma" in given and not {"initial_gamma", "gamma_decay_steps"} & given.keys():
        taken["gamma_decay_steps"] = 0  # the preset's or the snapshot's would begin with another
    settings = kind(**_merged(standard, origin, {**preset, **taken}))
    for name in ("epsilon", "gamma"):
        if f"initial_{name}" in given and not getattr(settings, f"{name}_decay_steps"):
            raise UsageError(f"--initial-{name} does nothing while --{name}-decay-steps is 0")
    check_fit(settings, warn)
    return settings


def resumed_settings(
    kind: type[Kind], given: Given, saved: Given, warn: Callable[[str], object]
) -> Kind:
    """A resumed run's settings: those it had, but for the flags that may change them.

    Raises:
        UsageError: if another flag differs from what the run had, or the settings can't be this
            program's own.
    """
    flags = flags_of(kind)
    settings = read_settings(saved, flags, "config", given, "--resume: the state")
    for name in given.keys() - {"resume"}:
        if "change" in flags[name].commands:
            settings[name] = given[name]
        elif given[name] != settings[name]:
            raise UsageError(
                f"{flag_name(name)}: the run was started with {as_text(settings[name])} and "
                f"keeps it; {as_text(given[name])} needs a new run"
            )
    resumed = kind(**settings)
    check_fit(resumed, warn)
    return resumed


def read_settings(
    saved: Given, flags: Flags, place: str, given: Given, source: str
) -> dict[str, Any]:
    """The settings in a file that anyone may have written, checked as the flags' values are.

    Args:
        saved: what the file holds; what an older version didn't know yet has its default.
        place: "config" or "snapshot".
        given: flags that were given; `--env` allows an environment that is code of the user's.
        source: what the settings were found in, for the errors.

    Raises:
        UsageError: if a flag would refuse one, or the environment is code that no flag allows.
    """
    if not {"env", "set", "seed"} <= saved.keys():
        raise UsageError(f"{source} is of another version of this program")
    kept_here = {name: flag for name, flag in flags.items() if place in flag.places}
    unknown = sorted(set(saved) - set(kept_here) - {"step"})
    if unknown:
        raise UsageError(
            f"{source} has settings that this version doesn't know: {', '.join(unknown)[:200]}"
        )
    settings = {}
    for name, flag in kept_here.items():
        try:
            settings[name] = flag.check(saved.get(name, flag.default))
        except ValueError as error:
            raise UsageError(
                f"{source} has impossible settings: {flag_name(name)}: {error}"
            ) from None
    if settings["seed"] is None:
        raise UsageError(f"{source} has impossible settings: it has no seed")
    if ":" in settings["env"] and "env" not in given:  # what precedes the colon is imported
        raise UsageError(f"{source} names code to import; --env {settings['env']!r} allows it")
    return settings


def check_fit(settings: RunSettings, warn: Callable[[str], object] = lambda line: None) -> None:
    """Check that the settings fit each other, the environment and this machine.

    Args:
        warn: is told what is allowed but hardly meant, a line each.

    Raises:
        UsageError: if they don't.
    """
    if settings.until is not None and not settings.eval_every:
        raise UsageError("--until needs evaluations; --eval-every 0 leaves them out")
    if settings.batch_size > settings.buffer_size:
        raise UsageError(
            f"--batch-size: expected no more than the --buffer-size of {settings.buffer_size}, "
            f"not {settings.batch_size}"
        )
    for name in ("train_start", "eval_every"):
        if 0 < getattr(settings, name) < settings.n_step:
            raise UsageError(
                f"{flag_name(name)}: expected at least the --n-step of {settings.n_step}, before "
                f"which no transition is complete, not {getattr(settings, name)}"
            )
    with closing(make_environment(settings.env, settings.set)) as env:
        for line in check_environment(env):
            warn(line)
    widths = [env.observation_size, *settings.hidden, env.n_actions]
    weights = sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
    if len(settings.hidden) >= MOST_LAYERS or weights > MOST_WEIGHTS:
        raise UsageError(
            f"--hidden: these {len(settings.hidden)} layers have {weights:,} weights, between "
            f"{widths[0]:,} observed numbers and {widths[-1]:,} actions; at most {MOST_LAYERS - 1} "
            f"layers and {MOST_WEIGHTS:,} weights are supported"
        )
    # A transition is an observation and an action, and for each of its one or two returns the
    # rewards, another observation and a discount, in float32.
    width = env.observation_size + 1 + (1 + settings.one_step) * (env.observation_size + 2)
    gigabytes = settings.buffer_size * width * 4 / 2**30
    free = psutil.virtual_memory().available / 2**30
    if gigabytes > free:
        raise UsageError(
            f"--buffer-size: {settings.buffer_size} transitions take {gigabytes:.1f} GB, "
            f"only {free:.1f} GB are free"
        )
    if settings.train_start > settings.max_steps:
        warn(
            f"nothing is learned before step {settings.train_start} (--train-start), and the run "
            f"ends at step {settings.max_steps}"
        )
    threshold = env.reward_threshold
    if settings.until is not None and threshold is not None and settings.until * threshold < 0:
        where = "out of reach" if settings.until > threshold else "too easily reached"
        warn(
            f"--until {settings.until:g} is {where}: {settings.env} is solved at {threshold:g}; "
            f"did you mean --until {threshold:g}?"
        )


def kept(settings: RunSettings, place: str) -> dict[str, Any]:
    """The settings that are kept in one place, as JSON takes them."""
    names = [name for name, flag in flags_of(type(settings)).items() if place in flag.places]
    values = {name: getattr(settings, name) for name in names}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
