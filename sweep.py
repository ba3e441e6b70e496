"""Train many runs in parallel, on this machine or on a Ray cluster, and compare them.

python sweep.py --seeds 20 --preset tutorial tuned
python sweep.py --seeds 0-9 --learning-rate 0.001 0.0005 --hidden 32,32 64,64
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import secrets
import shlex
import sys
from pathlib import Path

import run
from arguments import ENVIRONMENT, Parser, UsageError, as_text, flag, parse_change, whole
from checkpoint import StopSignal
from commands import training_settings
from environments import make_environment
from files import claimed, create_log_folder, save_json, say

SEEDS = range(10)
MOST_SEEDS = 10_000
SWEEP_FILE = "sweep.json"
VERSION = 1
RAY_TOKEN = Path("~/.ray/auth_token")
RAY = {  # what Ray reads when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # it would send statistics to its makers
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run writes its own events
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # It would kill its own small processes where the runs, or other programs, fill the memory.
    "RAY_memory_monitor_refresh_ms": "0",
}
IN_A_NAME = r"\w.,=+-"  # of a trial and its files
TRIAL = {"name", "configuration", "seed", "flags", "max_steps", "solved_from"}


def parse_seeds(text):
    """The range that `20` (0 to 19) or `5-9` (5 to 9) stands for."""
    match = re.fullmatch(r"(?:(\d{1,10})-)?(\d{1,10})", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"expected how many, or FIRST-LAST, such as 20 or 0-9, not {text!r}"
        )
    first, last = int(match[1] or 0), int(match[2]) if match[1] else int(match[2]) - 1
    if not 0 <= last - first < MOST_SEEDS or last >= 2**31:
        raise argparse.ArgumentTypeError(
            f"expected from 1 to {MOST_SEEDS} seeds, below {2**31}, not {text}"
        )
    return range(first, last + 1)


def parse_arguments(argv):
    """The flags that were given, as a dict; a mistake prints one line and exits with 2."""
    parser = Parser(
        prog="sweep.py",
        description="Train a run of run.py for each combination of the values given, and each "
        "seed, in parallel; leave results.csv, summary.csv, learning_curves.png and every run's "
        "log folder in one folder.",
    )
    sweep = parser.add_argument_group("the sweep")
    sweep.add_argument(
        "--seeds", type=parse_seeds, metavar="N", help="how many, or FIRST-LAST (default 10)"
    )
    sweep.add_argument("--name", help="of the sweep and its folder NAME-sweep (default: the date)")
    sweep.add_argument("--resume", type=Path, metavar="NAME-sweep", help="run what is missing")
    sweep.add_argument(
        "--cpus", type=whole(1, 1024), metavar="N", help="cores, and threads, a trial (default 1)"
    )
    sweep.add_argument("--address", help="of a running Ray cluster: auto, or HOST:PORT")
    runs = parser.add_argument_group("the runs (give several values to compare them)")
    runs.add_argument("--preset", nargs="+", choices=run.PRESETS, help="default tutorial")
    runs.add_argument(
        "--env", nargs="+", metavar="ID", help=f"gym environment (default {ENVIRONMENT})"
    )
    runs.add_argument(
        "--set",
        type=parse_change,
        nargs="+",
        action="append",
        metavar="NAME=VALUE",
        help="change a number of the environment; repeat --set to change another one too",
    )
    parser.add_hyperparameters(run.HYPERPARAMETERS, nargs="+")
    return vars(parser.parse_args(argv))


def grid(given):
    """Every combination of the values of run.py's flags, in the order in which they were given.

    Args:
        given: dict of flags, each with its list of values; of `set`, a list of such lists.

    Returns:
        list of (settings, varied): both are lists of (name, value), `varied` is the part in which
        the combinations differ.
    """
    axes = []
    for name, values in given.items():
        if name in ("preset", "env", "set", *run.HYPERPARAMETERS):
            for axis in values if name == "set" else [values]:
                axes.append([(name, value) for value in dict.fromkeys(axis)])
    differing = [axis for axis in axes if len(axis) > 1]
    return [
        (list(choice), [setting for axis in differing for setting in choice if setting in axis])
        for choice in itertools.product(*axes)
    ]


def as_flags(settings):
    """run.py's command line for a list of (name, value)."""
    texts = ("{}={}".format(*v) if name == "set" else as_text(v) for name, v in settings)
    names = (flag(name) for name, _ in settings)
    return list(itertools.chain(*zip(names, texts, strict=True)))


def make_trials(given):
    """All trials of a sweep: a dict for each, with what it takes to run it and to judge it.

    Raises:
        UsageError: if run.py would refuse one, or it wouldn't end with an evaluation.
    """
    trials = []
    for settings, varied in grid(given):
        changes = [value for name, value in settings if name == "set"]
        single = {**dict(settings), "set": changes}
        checked = training_settings(single, run.HYPERPARAMETERS, run.PRESETS)
        if not checked.eval_every or checked.max_steps % checked.eval_every:
            raise UsageError(
                "a run is judged by the evaluation at its last step, so --max-steps "
                f"({checked.max_steps}) must be a multiple of --eval-every ({checked.eval_every})"
            )
        label = as_flags(varied)
        for seed in given.get("seeds", SEEDS):
            name = "-".join([*label, "seed", str(seed)]).replace("--", "-").strip("-")
            trials.append(
                {
                    "name": re.sub(f"[^{IN_A_NAME}]", "_", name),
                    "configuration": shlex.join(label) or f"--preset {checked.preset}",
                    "seed": seed,
                    "flags": [*as_flags(settings), "--seed", str(seed)],
                    "max_steps": checked.max_steps,
                    # MountainCar's is -110.
                    "solved_from": make_environment(checked.env).spec.reward_threshold,
                }
            )
    return trials


def load_sweep(given):
    """The folder, id and trials of a sweep to go on with; UsageError if it isn't one."""
    folder = given["resume"]
    for name in given:
        if name not in ("resume", "address", "cpus"):
            raise UsageError(f"{flag(name)}: a resumed sweep keeps what it was started with")
    try:
        saved = json.loads((folder / SWEEP_FILE).read_text())
        if saved["version"] != VERSION:
            raise UsageError(f"--resume: {folder} is a sweep of another version of this program")
        for trial in saved["trials"]:
            if trial.keys() != TRIAL or not re.fullmatch(f"[{IN_A_NAME}]+", trial["name"]):
                raise ValueError("not a trial of this program")
        return folder, str(saved["id"]), saved["trials"]
    except OSError as error:
        reason = f"{SWEEP_FILE}: {error.strerror.lower()}"
        raise UsageError(f"--resume: {folder} isn't a sweep's folder: {reason}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(f"--resume: {folder / SWEEP_FILE} is damaged") from None


def import_ray(address):
    """Import what needs Ray, which then reads how it should behave.

    Returns:
        the modules sweep_results and sweep_trials.

    Raises:
        UsageError: if a package isn't installed.
    """
    os.environ.update(RAY)
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listens to this machine alone
    elif RAY_TOKEN.expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does by itself
    try:
        import sweep_results
        import sweep_trials
    except ImportError as error:
        raise UsageError(f"{error}; to install it: pip install -r requirements-sweep.txt") from None
    return sweep_results, sweep_trials


def sweep(given, stop):
    """Run a new sweep, or what is missing of an old one; return whether no trial failed."""
    address, cpus = given.get("address"), given.get("cpus", 1)
    with contextlib.ExitStack() as stack:
        if "resume" in given:
            folder, sweep_id, trials = load_sweep(given)
            stack.enter_context(claimed(folder))
        else:
            sweep_id, trials = secrets.token_hex(8), make_trials(given)
        sweep_results, sweep_trials = import_ray(address)
        stack.enter_context(sweep_trials.ray_cluster(address, cpus))
        if "resume" not in given:
            folder = create_log_folder(given.get("name"), "sweep")
            stack.enter_context(claimed(folder))
            command = shlex.join(["python", *sys.argv])
            saved = {"version": VERSION, "id": sweep_id, "trials": trials, "command": command}
            save_json(folder / SWEEP_FILE, saved)
            say(f"Created {folder}")
        results = sweep_results.Results(folder, trials)
        say(f"{len(results.missing())} of {len(trials)} trials to run")
        failure = sweep_trials.run_trials(folder, sweep_id, results, cpus, stop)
        results.report()
    if failure:
        print(f"sweep.py: error: Ray failed: {failure}", file=sys.stderr)
    if failure or stop.number:
        say(f"Stopped, to go on: python sweep.py --resume {shlex.quote(str(folder))}")
    return not (failure or results.failed)


def main(argv=None):
    """Do what the command line says; return the exit status."""
    stop = StopSignal()
    given = parse_arguments(argv)
    try:
        all_well = sweep(given, stop)
    except UsageError as error:
        print(f"sweep.py: error: {error}", file=sys.stderr)
        return 2
    return stop.exit_status or (0 if all_well else 1)


if __name__ == "__main__":
    sys.exit(main())
