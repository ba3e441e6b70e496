"""Where a training starts: with random weights, with a snapshot's, or where a run was stopped."""

from harness.arguments import as_text
from harness.environments import make_environment
from harness.errors import UsageError
from harness.log_folder import create_log_folder
from harness.settings import RESUMING, refuse_others, resumed_settings, training_settings
from harness.snapshots import load_weights
from harness.state import STATE_FILE, load_state


def starting_point(given, hyperparameters, presets):
    """The settings, the log folder, and what else `train` starts with, as the flags say.

    Returns:
        Namespace; Path, made for a new run; dict of `weights` and `state`, one of them or none.

    Raises:
        UsageError: if the flags contradict each other, or name a file that can't be used.
    """
    if "resume" in given:
        refuse_others(given, {*RESUMING, *hyperparameters}, "when a run is resumed")
        state = load_state(given["resume"] / STATE_FILE)
        settings = resumed_settings(given, state, hyperparameters)
        return settings, given["resume"], {"weights": None, "state": state}
    settings = training_settings(given, hyperparameters, presets)
    weights = None
    if "model" in given:
        weights = load_weights(settings.model, make_environment(settings.env, settings.set))
        take_layers(settings, given, weights)
    return settings, create_log_folder(settings.name), {"weights": weights, "state": None}


def take_layers(settings, given, weights):
    """Set `hidden` to the layers of a snapshot's weights; UsageError if `--hidden` differs."""
    layers = tuple(len(bias) for bias in weights[1:-2:2])
    if given.get("hidden", layers) != layers:
        raise UsageError(f"--hidden: {settings.model} has layers of {as_text(layers)}")
    settings.hidden = layers
