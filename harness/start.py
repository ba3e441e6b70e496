"""Where training and playing start: from scratch, from a snapshot, from a stopped run."""

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol

from harness.command_line import Parser, one_dict
from harness.environments import Environment, check_same_size, make_environment
from harness.errors import UsageError
from harness.log_folder import (
    STATE_FILE,
    SWEEP_FILE,
    create_log_folder,
    find_log_folder,
    find_snapshot,
    locked,
)
from harness.registries import undisturbed
from harness.settings import (
    Actions,
    Flags,
    Given,
    Kind,
    PlaySettings,
    Presets,
    RunSettings,
    as_text,
    check_presets,
    command_of,
    flag_name,
    flags_of,
    playing_settings,
    read_settings,
    refuse_useless,
    resumed_settings,
    training_settings,
)
from harness.snapshots import Snapshot, check_fit_for, load_snapshot
from harness.state import State, load_state
from harness.terminal import command, log
from harness.watching import new_gif


@dataclass
class Resumed(Generic[Kind]):
    """A stopped run that is to continue: its settings, its locked log folder, its state."""

    settings: Kind
    folder: Path
    state: State


class Listener(Protocol):
    """What `evaluate` tells of the episodes that it plays."""

    def reset(self) -> None:
        """An episode has begun."""

    def step(self, action: int, reward: float, ended: bool) -> None:
        """A step was taken."""


def read_command_line(
    argv: list[str] | None, kind: type[Kind], presets: Presets
) -> tuple[str, dict[str, Any]]:
    """What run.py is asked to do, one of COMMANDS, and the flags that were given.

    Raises:
        UsageError: if one isn't known, or does nothing here.
    """
    parser = Parser(
        prog="run.py",
        description="Train a deep Q-learning policy on MountainCar, the default, or watch one.",
    )
    flags = flags_of(Actions, PlaySettings, kind, presets=presets)
    check_presets(presets, flags)
    parser.add_flags(flags)
    given = parser.parse(argv)
    command = command_of(given)
    refuse_useless(given, flags, command)
    if "set" in given:
        given["set"] = one_dict(given["set"])
    return command, given


def repeating(words: list[str], settings: RunSettings) -> str:
    """The command that repeats a run: the words after `run.py`, and the seed that was drawn."""
    given = any(word.partition("=")[0] == "--seed" for word in words)
    seed = [] if given else ["--seed", str(settings.seed)]
    return shlex.join(["python", "run.py", *words, *seed])


@contextlib.contextmanager
def environments(settings: RunSettings) -> Iterator[tuple[Environment, Environment]]:
    """Yield an environment to train in, and another to evaluate in; one, if nothing is evaluated.

    Some can exist only once.

    Raises:
        EnvironmentFault: if it is of another size each time; else as `make_environment`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(undisturbed())
        env = make_environment(settings.env, settings.set)
        stack.enter_context(contextlib.closing(env))
        eval_env = env
        if settings.eval_every:
            eval_env = make_environment(settings.env, settings.set)
            stack.enter_context(contextlib.closing(eval_env))
            check_same_size(env, eval_env)
        yield env, eval_env


def refuse_taken_names(settings: RunSettings, place: Path | None) -> None:
    """Raise UsageError if the log folder or the film can't be made, before anything is computed."""
    if settings.film:
        new_gif("--film", settings.film, force=False)
    create_log_folder(settings.name, place=place).rmdir()


def warn(line: str) -> None:
    """Print a warning."""
    log(f"warning: {line}")


def policy_to_play(given: Given, kind: type[Kind]) -> tuple[PlaySettings, Snapshot, Kind]:
    """How to play a snapshot's policy, the snapshot, and the settings of its run.

    Raises:
        UsageError: if the flags contradict each other, or name a file that can't be used.
    """
    snapshot, origin = load(given, flags_of(kind))
    where: dict[str, Any] = {name: origin[name] for name in ("env", "set") if name in origin}
    settings = playing_settings(given, where)
    with contextlib.closing(make_environment(settings.env, settings.set)) as env:
        check_fit_for(env, snapshot)
    log(f"Loaded {snapshot.path}")
    tell_differences(settings, where)
    return settings, snapshot, kind(**{"seed": settings.seed, **origin})


def run_to_start(given: Given, kind: type[Kind], presets: Presets) -> tuple[Kind, Snapshot | None]:
    """A new run's settings, and the snapshot that it starts from, None for random weights.

    Raises:
        UsageError: if the flags contradict each other, or name a file that can't be used.
    """
    if "model" not in given:
        return training_settings(kind, given, presets, None, warn), None
    snapshot, origin = load(given, flags_of(kind))
    if snapshot.chain:  # also of a file that doesn't say which run it comes from
        origin["hidden"] = tuple(len(bias) for bias in snapshot.weights[1:-2:2])
    settings = training_settings(kind, given, presets, origin, warn)
    layers, asked = as_text(origin.get("hidden")), as_text(settings.hidden)
    if snapshot.chain and asked != layers:
        raise UsageError(
            f"--hidden: {snapshot.path} has layers of {layers}, not {asked}; add --hidden {layers}"
        )
    log(f"Loaded {snapshot.path}")
    tell_differences(settings, origin)
    for name in ("epsilon", "gamma"):
        first, last, steps = (
            getattr(settings, field) for field in (f"initial_{name}", name, f"{name}_decay_steps")
        )
        if steps:
            log(
                f"{name} starts at {first:g} and reaches {last:g} after {steps} steps; "
                f"--{name}-decay-steps 0 keeps it at {last:g}"
            )
    return settings, snapshot


@contextlib.contextmanager
def run_to_resume(given: Given, kind: type[Kind]) -> Iterator[Resumed[Kind]]:
    """Yield a stopped run to continue; no other process can do it inside the `with`.

    Raises:
        UsageError: if there is nothing to continue, or a flag contradicts the run.
    """
    folder = find_log_folder(given["resume"])
    if (folder / SWEEP_FILE).exists():
        again = command("sweep.py", "--resume", folder)
        raise UsageError(f"--resume: {folder} is a sweep; resume it with {again}")
    with locked(folder):
        state = load_state(folder / STATE_FILE)
        settings = resumed_settings(kind, given, state.settings, warn)
        progress = state.progress
        reached = progress.reached(settings.until)
        if progress.step >= settings.max_steps or reached:
            raise UsageError(
                f"--resume: the run is finished at step {min(progress.step, settings.max_steps)}; "
                f"raise {'--until' if reached else '--max-steps'} to continue it"
            )
        yield Resumed(settings, folder, state)


def load(given: Given, flags: Flags) -> tuple[Snapshot, dict[str, Any]]:
    """The snapshot that `--model` means, and its run's checked settings."""
    snapshot = load_snapshot(find_snapshot(given["model"]))
    origin = snapshot.origin
    if origin:
        source = f"can't use {snapshot.path}: its run"
        known = {"step", *(name for name, flag in flags.items() if "snapshot" in flag.places)}
        if unknown := ", ".join(sorted(origin.keys() - known))[:200]:
            warn(
                f"{snapshot.path}: settings that this version doesn't know are left out: {unknown}"
            )
        origin = {name: value for name, value in origin.items() if name in known}
        origin = read_settings(origin, flags, "snapshot", given, source)
        del origin["seed"]
    return snapshot, origin


def tell_differences(settings: PlaySettings | RunSettings, origin: Given) -> None:
    """Say where settings differ from those of the snapshot's run."""
    for name, value in origin.items():
        now = getattr(settings, name, value)
        if now != value:
            log(f"{flag_name(name)} is {as_text(now)}; the snapshot's run had {as_text(value)}")
