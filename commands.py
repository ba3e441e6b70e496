"""What surrounds the algorithm: flags become settings, and a run's end becomes a report."""

import contextlib
import importlib.metadata
import platform
import secrets
import shlex
import sys
import tempfile
from argparse import ArgumentTypeError, Namespace

import psutil

from arguments import (
    ENVIRONMENT,
    UsageError,
    as_text,
    flag,
    parse_change,
    parse_seed,
    parse_threads,
)
from checkpoint import TrainingError
from environments import make_environment
from files import say
from replay_buffer import row_width

EPISODES = 100
PLAYING = {"model", "view", "eval", "gif", "images", "force", "episodes", "env", "set", "seed"}
RESUMING = {"env", "set", "seed", "threads", "preset"}
TRAINING = {"model", "train", "name", *RESUMING}


def refuse_others(given, flags, purpose):
    """Raise UsageError if a flag was given that does nothing for this purpose."""
    for name in given:
        if name in PLAYING - {"seed", "env", "set"} - flags and "model" not in given:
            raise UsageError(f"{flag(name)} needs a policy to play: --model X.h5")
        if name not in flags:
            raise UsageError(f"{flag(name)} does nothing {purpose}; leave it out")


def playing_options(given):
    """From the flags: the environment's name, its changes, the seed, and options for `watch`."""
    refuse_others(given, PLAYING, "when a policy is played")
    if "view" in given and "eval" in given:
        raise UsageError("--view opens a window, --eval doesn't; choose one")
    options = {name: given[name] for name in ("eval", "gif", "images", "force") if name in given}
    few = "gif" in given or "images" in given
    options["episodes"] = given.get("episodes", 1 if few else EPISODES)
    seed = given.get("seed", secrets.randbelow(2**31))
    return given.get("env", ENVIRONMENT), dict(given.get("set", ())), seed, options


def training_settings(given, hyperparameters, presets):
    """A new run's settings: the flags over the preset over the defaults, checked.

    Raises:
        UsageError: if a flag does nothing here, or the values don't fit each other.
    """
    refuse_others(given, {*TRAINING, *hyperparameters}, "when a policy is trained")
    defaults = {name: row.default for name, row in hyperparameters.items()}
    defaults |= {"env": ENVIRONMENT, "set": (), "threads": 1, "name": None}
    defaults |= {"preset": "tutorial", "seed": secrets.randbelow(2**31)}
    preset = presets[given.get("preset", "tutorial")]
    settings = Namespace(**{**defaults, **preset, **given})
    settings.set = dict(settings.set)
    check_fit(settings)
    return settings


def check_fit(settings):
    """Raise UsageError if the settings don't fit each other, or this machine."""
    env = make_environment(settings.env, settings.set)
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
    gigabytes = settings.buffer_size * row_width(env.observation_space.shape) * 4 / 2**30
    free = psutil.virtual_memory().available / 2**30
    if gigabytes > free:
        raise UsageError(
            f"--buffer-size: {settings.buffer_size} transitions take {gigabytes:.1f} GB, "
            f"{free:.1f} GB are free"
        )


def take_layers(settings, given, weights):
    """Set `hidden` to the layers of a snapshot's weights; UsageError if `--hidden` differs."""
    layers = tuple(len(bias) for bias in weights[1:-2:2])
    if given.get("hidden", layers) != layers:
        raise UsageError(f"--hidden: {settings.model} has layers of {as_text(layers)}")
    settings.hidden = layers


def resumed_settings(given, state, hyperparameters):
    """A resumed run's settings: those it had, but for more steps and other threads.

    Raises:
        UsageError: if the run is finished, another flag differs from what it had, or the settings
            can't be this program's own.
    """
    saved, progress = state["settings"], state["progress"]
    if not {*RESUMING, *hyperparameters} <= saved.keys():
        raise UsageError("--resume: the state is of another version of this program")
    settings = Namespace(**{**saved, **_read_again(saved, hyperparameters)})
    given = {name: dict(value) if name == "set" else value for name, value in given.items()}
    for name in given.keys() - {"resume"}:
        if name in ("max_steps", "threads"):
            setattr(settings, name, given[name])
        elif given[name] != getattr(settings, name):
            raise UsageError(
                f"{flag(name)}: the run goes on with {getattr(settings, name)}, "
                f"which it was started with, not {given[name]}"
            )
    if ":" in settings.env and "env" not in given:  # gym would import what stands before the colon
        raise UsageError(
            f"--resume: the run's environment is code; --env {settings.env!r} allows it"
        )
    if progress.step >= settings.max_steps and not progress.evaluation_due:
        raise UsageError(
            f"--resume: the run is finished at step {progress.step}; --max-steps may be raised"
        )
    check_fit(settings)
    return settings


def _read_again(saved, hyperparameters):
    """The settings of a state, which anyone may have written, through the flags' own checks."""
    parsers = {name: row.parse for name, row in hyperparameters.items()}
    parsers |= {"seed": parse_seed, "threads": parse_threads, "env": str}
    try:
        settings = {name: parse(as_text(saved[name])) for name, parse in parsers.items()}
        changes = [parse_change(f"{name}={value}") for name, value in saved["set"].items()]
        return {**settings, "set": dict(changes)}
    except (ArgumentTypeError, AttributeError) as error:
        raise UsageError(f"--resume: the state's settings aren't possible: {error}") from None


def plain(settings):
    """Settings as a dict that JSON holds."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(settings).items()}


def config(settings):
    """What config.json tells of a run: its settings, what it ran on, and how it was started."""
    packages = ("tensorflow", "keras", "gym", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions["python"] = platform.python_version()
    return {**plain(settings), "versions": versions, "command": shlex.join(["python", *sys.argv])}


def report(settings, folder, progress, seconds):
    """Print how a training went, and the command for what to do next."""
    steps = progress.step - progress.first_step
    say(f"{steps} steps in {seconds:.1f}s, {steps / seconds:.1f} steps/s")
    if progress.step < settings.train_start:
        say(f"warning: nothing is learned before step {settings.train_start}, see --train-start")
    if progress.step < settings.max_steps:
        say(f"Stopped at step {progress.step}, to go on:")
        say(f"python run.py --resume {shlex.quote(str(folder))}")
        return
    name = folder.resolve().name.removesuffix("-log")
    snapshot = folder / f"{name}-best.h5"
    if progress.best_step:
        say(f"Best episode_return_avg {progress.best_average:.3f} at step {progress.best_step}")
    if not progress.best_step or not snapshot.exists():
        snapshot = folder / f"{name}-{progress.step}.h5"
    command = ["python", "run.py", "--model", str(snapshot)]
    if settings.env != ENVIRONMENT:
        command += ["--env", settings.env]
    for name, value in settings.set.items():
        command += ["--set", f"{name}={value}"]
    say("Watch it:")
    say(shlex.join(command))


def self_check(main, stop):
    """Try every phase with small numbers in a temporary folder; TrainingError if one fails."""
    few = "--max-steps 3000 --snapshot-every 2500 --eval-every 1500 --eval-steps 600"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for phase in (
            f"--name test --seed 1 {few}",
            "--resume test-log --max-steps 3500",
            f"--model test-log/test-best.h5 --train --preset tuned --name again {few}",
            "--model again-log/again-3000.h5 --eval --episodes 5",
            "--model test-log/test-best.h5 --gif test.gif",
        ):
            say(f"> python run.py {phase}")
            status = main(phase.split(), stop)
            if stop.number:
                return
            if status:
                raise TrainingError(f"the self-check failed at: python run.py {phase}")
    say("Everything works.")
