"""Where a training or a performance starts: from scratch, from a snapshot, from a stopped run."""

from pathlib import Path

from harness.arguments import as_text, flag
from harness.environments import make_environment
from harness.errors import UsageError
from harness.log_folder import create_log_folder, run_name
from harness.settings import (
    RESUMING,
    playing_settings,
    read_settings,
    refuse_others,
    resumed_settings,
    training_settings,
)
from harness.snapshots import check_fit_for, load_snapshot
from harness.state import STATE_FILE, load_state
from harness.terminal import log


def policy_to_play(given, hyperparameters):
    """The settings for playing a snapshot's policy, and its weights.

    Raises:
        UsageError: if the flags contradict each other, or name a file that can't be used.
    """
    path, weights, origin = load(given, hyperparameters)
    origin = {name: origin[name] for name in origin and ("env", "set")}
    settings = playing_settings(given, origin)
    accept(path, weights, settings, origin)
    return settings, weights


def starting_point(given, hyperparameters, presets):
    """The settings, the log folder, and what else `train` starts with, as the flags say.

    Returns:
        Namespace; Path, made for a new run; dict of `weights` (or None) or `state`.

    Raises:
        UsageError: if the flags contradict each other, or name a file that can't be used.
    """
    if "resume" in given:
        refuse_others(given, {*RESUMING, *hyperparameters}, "when a run is resumed")
        state = load_state(given["resume"] / STATE_FILE)
        settings = resumed_settings(given, state, hyperparameters)
        return settings, given["resume"], {"state": state}
    weights, origin = None, {}
    if "model" in given:
        path, weights, origin = load(given, hyperparameters)
        origin["hidden"] = tuple(len(bias) for bias in weights[1:-2:2])
    settings = training_settings(given, hyperparameters, presets, origin)
    if weights:
        layers, asked = as_text(origin["hidden"]), as_text(settings.hidden)
        if asked != layers:
            raise UsageError(
                f"--hidden: {path} has layers of {layers}, not {asked}; add --hidden {layers}"
            )
        accept(path, weights, settings, origin)
    return settings, create_log_folder(settings.name), {"weights": weights}


def load(given, hyperparameters):
    """The path, the weights and the run's checked settings of the snapshot that `--model` means."""
    path = Path(given["model"])
    if path.is_dir() and path.name.endswith("-log"):
        folder, path = path, path / f"{run_name(path)}-best.h5"
        if not path.exists():
            raise UsageError(
                f"--model: {folder} has no {path.name}, since no evaluation completed an episode; "
                f"name another snapshot in it, or go on with --resume {folder}"
            )
    snapshot = load_snapshot(path)
    origin = snapshot.origin
    if origin:
        origin = read_settings(origin, hyperparameters, given, f"can't use {path}: its run")
        del origin["seed"]
    return path, snapshot.weights, origin


def accept(path, weights, settings, origin):
    """Say that a snapshot is loaded, and where the settings differ from those of its run."""
    check_fit_for(make_environment(settings.env, settings.set), weights, path)
    log(f"Loaded {path}")
    for name, value in origin.items():
        if getattr(settings, name, value) != value:
            now = as_text(getattr(settings, name))
            log(f"{flag(name)} is {now}; the snapshot's run had {as_text(value)}")
