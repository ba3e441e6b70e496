"""From the flags that were given to the settings of a run, checked before anything starts."""

import contextlib
import secrets
from argparse import Namespace
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import psutil

from harness.environments import check_environment, make_environment
from harness.errors import UsageError
from harness.flags import ANY_TASK, LAST_SEED, TASKS, Flags, Use, as_text, flag
from harness.snapshot_reader import MOST_LAYERS, MOST_WEIGHTS

EPISODES = 100  # that a policy plays by default
OF_THE_WEIGHTS = {"env", "set", "hidden"}  # what a snapshot's weights were made for

Given = Mapping[str, Any]  # the flags that were given, by their settings' names
Presets = Mapping[str, Mapping[str, Any]]


def task_of(given: Given) -> Use:
    """What run.py is asked to do, one of TASKS."""
    if "test" in given:
        return Use.TEST
    if "resume" in given:
        return Use.RESUME
    if "model" in given:
        return Use.CONTINUE if "train" in given else Use.PLAY
    return Use.TRAIN


def refuse_useless(given: Given, flags: Flags, task: Use) -> None:
    """Raise UsageError if a flag was given that does nothing for this task."""
    for name in given:
        uses = flags[name].uses
        if uses & task:
            continue
        if task is Use.TRAIN and not uses & (ANY_TASK & ~(Use.PLAY | Use.CONTINUE)):
            what = "trains on from" if name == "train" else "needs"
            raise UsageError(f"{flag(name)} {what} a snapshot: name it with --model X.h5")
        raise UsageError(f"{flag(name)} does nothing {TASKS[task]}; leave it out")


def changes(pairs: list[tuple[str, float]]) -> dict[str, float]:
    """What `--set` changes; UsageError if it changes a number twice."""
    named = dict(pairs)
    if len(named) < len(pairs):
        raise UsageError("--set: a number is changed twice; give each name once")
    return named


def new_seed() -> int:
    """A seed for a run that was given none."""
    return secrets.randbelow(LAST_SEED + 1)


def defaults(flags: Flags, task: Use) -> dict[str, Any]:
    """The settings of a task where no flag is given."""
    found = {name: known.default for name, known in flags.items() if known.uses & task}
    return found | {"seed": new_seed()}


def merge(standard: Given, origin: Given, given: Given) -> Namespace:
    """The settings given, over those of `origin`, over the standard ones."""
    if given.get("env", origin.get("env")) != origin.get("env"):  # its changes are of another one
        origin = {name: value for name, value in origin.items() if name != "set"}
    return Namespace(**{**standard, **origin, **given})


def playing_settings(given: Given, flags: Flags, origin: Given) -> Namespace:
    """The settings for playing a policy.

    Args:
        origin: settings of the run that the policy comes from, which the flags override.

    Raises:
        UsageError: if two flags contradict each other.
    """
    if "view" in given and "eval" in given:
        raise UsageError("--view opens a window, --eval doesn't; choose one")
    few = "gif" in given or "images" in given
    if "view" in given and few:
        raise UsageError("--view opens a window, --gif and --images don't; choose one")
    standard = defaults(flags, Use.PLAY) | {"episodes": 1 if few else EPISODES}
    return merge(standard, origin, given)


def training_settings(
    given: Given, flags: Flags, presets: Presets, origin: Given | None = None
) -> Namespace:
    """A new run's settings: the flags over the preset over the defaults.

    Args:
        origin: settings of the run that the first weights come from; they are the defaults then.

    Raises:
        UsageError: if the values don't fit each other, the environment or this machine.
    """
    standard = {**defaults(flags, Use.TRAIN), "preset": None if origin else "tutorial"}
    origin = origin or {}
    if "preset" in given:  # it stands for all hyperparameters, the tutorial's too
        origin = {name: value for name, value in origin.items() if name in OF_THE_WEIGHTS}
    settings = merge(standard, origin, {**presets[given.get("preset", "tutorial")], **given})
    if "initial_epsilon" in given and not settings.epsilon_decay_steps:
        raise UsageError("--initial-epsilon does nothing without --epsilon-decay-steps")
    check_fit(settings)
    return settings


def resumed_settings(given: Given, saved: Given, flags: Flags) -> Namespace:
    """A resumed run's settings: those it had, but for the flags that may change them.

    Raises:
        UsageError: if another flag differs from what the run had, or the settings can't be this
            program's own.
    """
    settings = read_settings(saved, flags, Use.SAVE, given, "--resume: the state")
    for name in given.keys() - {"resume"}:
        if flags[name].uses & Use.CHANGE:
            settings[name] = given[name]
        elif given[name] != settings[name]:
            raise UsageError(
                f"{flag(name)}: the run was started with {as_text(settings[name])} and "
                f"goes on with it, not with {as_text(given[name])}"
            )
    resumed = Namespace(**settings)
    check_fit(resumed)
    return resumed


def read_settings(
    saved: Given, flags: Flags, use: Use, given: Given, source: str
) -> dict[str, Any]:
    """The settings in a file that anyone may have written, checked as the flags' values are.

    Args:
        saved: what the file holds; what an older version didn't know yet has its default.
        use: SAVE or SNAPSHOT, the settings to read.
        given: flags that were given; `--env` allows an environment that is code of the user's.
        source: what the settings were found in, for the errors.

    Raises:
        UsageError: if a flag would refuse one, or the environment is code that no flag allows.
    """
    if not {"env", "set", "seed"} <= saved.keys():
        raise UsageError(f"{source} is of another version of this program")
    settings = {}
    for name, known in flags.items():
        if known.uses & use:
            try:
                settings[name] = known.check(saved.get(name, known.default))
            except ValueError as error:
                raise UsageError(
                    f"{source} has impossible settings: {flag(name)}: {error}"
                ) from None
    if settings["seed"] is None:
        raise UsageError(f"{source} has impossible settings: it has no seed")
    if ":" in settings["env"] and "env" not in given:  # what precedes the colon is imported
        raise UsageError(f"{source} names code to import; --env {settings['env']!r} allows it")
    return settings


def check_fit(settings: Namespace) -> None:
    """Raise UsageError if the settings don't fit each other, the environment or this machine."""
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
    with contextlib.closing(make_environment(settings.env, settings.set)) as env:
        check_environment(env)
    widths = [env.observation_size, *settings.hidden, env.n_actions]
    weights = sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
    if len(settings.hidden) >= MOST_LAYERS or weights > MOST_WEIGHTS:
        raise UsageError(
            f"--hidden: these {len(settings.hidden)} layers have {weights:,} weights, between "
            f"{widths[0]:,} observed numbers and {widths[-1]:,} actions; at most {MOST_LAYERS - 1} "
            f"layers and {MOST_WEIGHTS:,} weights are supported"
        )
    # A transition is two observations, an action, a reward and a discount, in float32.
    gigabytes = settings.buffer_size * (2 * env.observation_size + 3) * 4 / 2**30
    free = psutil.virtual_memory().available / 2**30
    if gigabytes > free:
        raise UsageError(
            f"--buffer-size: {settings.buffer_size} transitions take {gigabytes:.1f} GB, "
            f"only {free:.1f} GB are free"
        )


def warnings(settings: Namespace) -> list[str]:
    """What is allowed but hardly meant, a line each."""
    lines = []
    if settings.train_start > settings.max_steps:
        lines.append(
            f"nothing is learned before step {settings.train_start} (--train-start), and the run "
            f"ends at step {settings.max_steps}"
        )
    with contextlib.closing(make_environment(settings.env, settings.set)) as env:
        threshold = env.reward_threshold
    if settings.until is not None and threshold is not None and settings.until > 0 > threshold:
        lines.append(
            f"--until {settings.until:g} is out of reach: {settings.env} is solved at "
            f"{threshold:g}; did you mean --until -{settings.until:g}?"
        )
    return lines


def kept(settings: Namespace, flags: Flags, use: Use) -> dict[str, Any]:
    """The settings that are kept in one place (SAVE, SNAPSHOT or HPARAMS), as JSON takes them."""
    values = {name: value for name, value in vars(settings).items() if flags[name].uses & use}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
