"""Where training and playing start: from scratch, from a snapshot, from a stopped run."""

from argparse import Namespace
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.arrays import Weights
from harness.environments import make_environment
from harness.errors import UsageError
from harness.flags import Flags, Use, as_text, flag
from harness.log_folder import STATE_FILE, find_snapshot
from harness.settings import (
    Given,
    Presets,
    playing_settings,
    read_settings,
    resumed_settings,
    training_settings,
)
from harness.snapshots import check_fit_for, load_snapshot
from harness.state import State, load_state
from harness.terminal import log


def policy_to_play(given: Given, flags: Flags) -> tuple[Namespace, Weights]:
    """The settings for playing a snapshot's policy, and its weights.

    Raises:
        UsageError: if the flags contradict each other, or name a file that can't be used.
    """
    path, weights, origin = load(given, flags)
    origin = {name: origin[name] for name in ("env", "set") if name in origin}
    settings = playing_settings(given, flags, origin)
    accept(path, weights, settings, origin)
    return settings, weights


def run_to_start(given: Given, flags: Flags, presets: Presets) -> tuple[Namespace, Weights | None]:
    """A new run's settings, and the weights that it starts from, None for random ones.

    Raises:
        UsageError: if the flags contradict each other, or name a file that can't be used.
    """
    if "model" not in given:
        return training_settings(given, flags, presets), None
    path, weights, origin = load(given, flags)
    origin["hidden"] = tuple(len(bias) for bias in weights[1:-2:2])
    settings = training_settings(given, flags, presets, origin)
    layers, asked = as_text(origin["hidden"]), as_text(settings.hidden)
    if asked != layers:
        raise UsageError(
            f"--hidden: {path} has layers of {layers}, not {asked}; add --hidden {layers}"
        )
    accept(path, weights, settings, origin)
    if settings.epsilon_decay_steps:
        log(
            f"epsilon starts at {settings.initial_epsilon:g} again and falls for "
            f"{settings.epsilon_decay_steps} steps; --epsilon-decay-steps 0 keeps it at "
            f"{settings.epsilon:g}"
        )
    return settings, weights


def run_to_resume(folder: Path, given: Given, flags: Flags) -> tuple[Namespace, State]:
    """The settings and the state of a stopped run; the folder must be locked.

    Raises:
        UsageError: if there is nothing to go on with, or a flag contradicts the run.
    """
    state = load_state(folder / STATE_FILE)
    settings = resumed_settings(given, state.settings, flags)
    if state.progress.finished(settings):
        raise UsageError(
            f"--resume: the run is finished at step {state.progress.step}; "
            "raise --max-steps or --until to go on"
        )
    return settings, state


def load(given: Given, flags: Flags) -> tuple[Path, Weights, dict[str, Any]]:
    """The path, the weights and the run's checked settings of the snapshot that `--model` means."""
    path = find_snapshot(given["model"])
    snapshot = load_snapshot(path)
    origin = snapshot.origin
    if origin:
        origin = read_settings(origin, flags, Use.SNAPSHOT, given, f"can't use {path}: its run")
        del origin["seed"]
    return path, snapshot.weights, origin


def accept(path: Path, weights: Weights, settings: Namespace, origin: Given) -> None:
    """Say that a snapshot is loaded, and where the settings differ from those of its run."""
    with closing(make_environment(settings.env, settings.set)) as env:
        check_fit_for(env, weights, path)
    log(f"Loaded {path}")
    for name, value in origin.items():
        now = getattr(settings, name, value)
        if now != value:
            log(f"{flag(name)} is {as_text(now)}; the snapshot's run had {as_text(value)}")
