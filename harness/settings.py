"""From the flags that were given to the settings of a run, checked before anything starts."""

import secrets
import shlex
import sys
from argparse import ArgumentTypeError, Namespace
from itertools import pairwise

import psutil

from harness.arguments import as_text, flag, parse_change, parse_return, parse_seed, parse_threads
from harness.environments import ENVIRONMENT, check_environment, make_environment
from harness.errors import UsageError
from harness.snapshot_reader import MOST_LAYERS, MOST_WEIGHTS

EPISODES = 100
WATCHING = {"model", "view", "eval", "gif", "images", "force", "episodes"}
PLAYING = {*WATCHING, "env", "set", "seed"}
RESUMING = {"resume", "env", "set", "seed", "threads", "preset", "until"}
OF_THE_WEIGHTS = {"env", "set", "hidden"}  # what a snapshot's weights were made for
TRAINING = {"model", "train", "name", "env", "set", "seed", "threads", "preset", "until"}


def refuse_others(given, flags, purpose):
    """Raise UsageError if a flag was given that does nothing for this purpose."""
    for name in given:
        if name in WATCHING - flags and "model" not in given:
            raise UsageError(f"{flag(name)} needs a policy to play: --model X.h5")
        if name not in flags:
            raise UsageError(f"{flag(name)} does nothing {purpose}; leave it out")


def playing_settings(given, origin):
    """The settings for playing a policy, a Namespace with `env`, `set`, `seed` and `episodes`.

    Args:
        origin: settings of the run that the policy comes from, which the flags override.

    Raises:
        UsageError: if a flag does nothing here, or two contradict each other.
    """
    refuse_others(given, PLAYING, "when a policy is played")
    if "view" in given and "eval" in given:
        raise UsageError("--view opens a window, --eval doesn't; choose one")
    few = "gif" in given or "images" in given
    defaults = {"env": ENVIRONMENT, "set": {}, "episodes": 1 if few else EPISODES}
    return merge(defaults, origin, {"seed": new_seed(), **given})


def training_settings(given, hyperparameters, presets, origin=None):
    """A new run's settings, a Namespace: the flags over the preset over the defaults.

    Args:
        origin: settings of the run that the first weights come from; they are the defaults then.

    Raises:
        UsageError: if a flag does nothing here, or the values don't fit each other.
    """
    refuse_others(given, {*TRAINING, *hyperparameters}, "when a policy is trained")
    if "train" in given and "model" not in given:
        raise UsageError("--train goes on from a snapshot: name it with --model X.h5")
    if "model" in given and "scale_inputs" in given:
        raise UsageError("--scale-inputs is for new weights; --model brings its own")
    defaults = {name: row.default for name, row in hyperparameters.items()}
    defaults |= {"env": ENVIRONMENT, "set": {}, "threads": 1, "name": None, "until": None}
    defaults["preset"] = None if origin else "tutorial"
    defaults["command"] = shlex.join(["python", *sys.argv])
    preset = presets[given.get("preset", "tutorial")]
    if "preset" in given:  # it stands for all hyperparameters, the tutorial's too
        origin = {name: value for name, value in (origin or {}).items() if name in OF_THE_WEIGHTS}
    settings = merge(defaults, origin or {}, {**preset, "seed": new_seed(), **given})
    if "initial_epsilon" in given and not settings.epsilon_decay_steps:
        raise UsageError("--initial-epsilon does nothing without --epsilon-decay-steps")
    check_fit(settings)
    return settings


def merge(defaults, origin, given):
    """The settings given over those of `origin` over the defaults, a Namespace."""
    if given.get("env", origin.get("env")) != origin.get("env"):  # its changes are of another one
        origin = {name: value for name, value in origin.items() if name != "set"}
    return Namespace(**{**defaults, **origin, **given})


def resumed_settings(given, state, hyperparameters):
    """A resumed run's settings: those it had, except for more steps and other threads.

    Raises:
        UsageError: if another flag differs from what the run had, or the settings can't be this
            program's own.
    """
    saved = state["settings"]
    checked = read_settings(saved, hyperparameters, given, "--resume: the state")
    settings = Namespace(**{**saved, **checked})
    for name in given.keys() - {"resume"}:
        if name in ("max_steps", "threads", "until"):
            setattr(settings, name, given[name])
        elif given[name] != getattr(settings, name):
            raise UsageError(
                f"{flag(name)}: the run was started with {as_text(getattr(settings, name))} and "
                f"goes on with it, not with {as_text(given[name])}"
            )
    if state["progress"].finished(settings):
        raise UsageError(
            f"--resume: the run is finished at step {state['progress'].step}; "
            "raise --max-steps or --until to go on"
        )
    check_fit(settings)
    return settings


def read_settings(saved, hyperparameters, given, source):
    """The settings in a file that anyone may have written, through the flags' own checks.

    Args:
        saved: dict of hyperparameters, `env`, `set` and `seed`, and possibly more; what an older
            version didn't know yet has its default.
        source: what they were found in, for the errors.

    Raises:
        UsageError: if a flag would refuse one, or the environment is code that no flag allows.
    """
    saved = {name: row.default for name, row in hyperparameters.items()} | saved
    parsers = {name: row.parse for name, row in hyperparameters.items()}
    parsers |= {"env": str, "seed": parse_seed}
    optional = {"threads": parse_threads, "until": parse_return, "command": str}
    if saved.get("until") is None:
        del optional["until"]
    parsers |= {name: parse for name, parse in optional.items() if name in saved}
    if not {"set", *parsers} <= saved.keys():
        raise UsageError(f"{source} is of another version of this program")
    try:
        settings = {name: parse(as_text(saved[name])) for name, parse in parsers.items()}
        changes = [parse_change(f"{name}={value}") for name, value in saved["set"].items()]
    except (ArgumentTypeError, AttributeError) as error:
        raise UsageError(f"{source} has impossible settings: {error}") from None
    if ":" in settings["env"] and "env" not in given:  # gym would import what precedes the colon
        raise UsageError(f"{source} names code to import; --env {settings['env']!r} allows it")
    return {**settings, "set": dict(changes)}


def check_fit(settings):
    """Raise UsageError if the settings don't fit each other, or this machine."""
    env = make_environment(settings.env, settings.set)
    check_environment(env)
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
                f"{flag(name)}: expected at least the --n-step of {settings.n_step}, before which "
                f"no transition is complete, not {getattr(settings, name)}"
            )
    observed = env.observation_space.shape[0]
    widths = [observed, *settings.hidden, int(env.action_space.n)]
    weights = sum((one + 1) * next_one for one, next_one in pairwise(widths))
    if len(settings.hidden) >= MOST_LAYERS or weights > MOST_WEIGHTS:
        raise UsageError(
            f"--hidden: these {len(settings.hidden)} layers have {weights:,} weights; at most "
            f"{MOST_LAYERS - 1} layers and {MOST_WEIGHTS:,} weights are supported"
        )
    # A transition is two observations, an action, a reward and a discount, in float32.
    gigabytes = settings.buffer_size * (2 * observed + 3) * 4 / 2**30
    free = psutil.virtual_memory().available / 2**30
    if gigabytes > free:
        raise UsageError(
            f"--buffer-size: {settings.buffer_size} transitions take {gigabytes:.1f} GB, "
            f"only {free:.1f} GB are free"
        )


def new_seed():
    """A seed for a run that was given none."""
    return secrets.randbelow(2**31)


def plain(settings):
    """Settings as a dict that JSON can hold."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(settings).items()}
