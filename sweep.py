"""Train many runs in parallel, on this machine or on a Ray cluster, and compare them.

python sweep.py --seeds 20 --preset tutorial tuned
python sweep.py --seeds 0-9 --learning-rate 0.001 0.0005 --hidden 32,32 64,64
python sweep.py --resume NAME-sweep --seeds 0-19
"""

import argparse
import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import run
from harness.arguments import (
    ENVIRONMENT,
    Parser,
    flag,
    parse_change,
    parse_return,
    parse_seed,
    whole,
)
from harness.errors import UsageError, reason
from harness.log_folder import create_log_folder, locked
from harness.sweeps.cluster import ray_cluster
from harness.sweeps.grid import combinations, make_trials, parse_seeds
from harness.terminal import StopSignal, command, log
from harness.whole_files import write_json

SEEDS = list(range(10))
SWEEP_FILE = "sweep.json"
VERSION = 2
RESUMING = {"resume", "seeds", "jobs", "cpus", "address"}
OF_THE_SWEEP = {"name", *RESUMING}  # the other flags are run.py's
PACKAGES = ("ray", "pandas", "scipy", "matplotlib", "rich")  # imported late


def parse_arguments(argv):
    """The flags that were given, as a dict; a mistake prints one line and exits with 2."""
    parser = Parser(
        prog="sweep.py",
        description="Train a run of run.py for each combination of the values given, and each "
        "seed, in parallel; leave results.csv, summary.csv, evaluations.csv, learning_curves.png "
        "and every run's log folder in one folder.",
    )
    sweep = parser.add_argument_group("the sweep")
    sweep.add_argument(
        "--seeds",
        type=parse_seeds,
        metavar="N",
        help="how many, or which: 20, 0-9 or 1,2,5-9 (default 10); with --resume: add these",
    )
    sweep.add_argument("--name", help="of the sweep and its folder NAME-sweep (default: the date)")
    sweep.add_argument("--resume", type=Path, metavar="NAME-sweep", help="run what is missing")
    sweep.add_argument(
        "--jobs",
        type=whole(1, 1024),
        metavar="N",
        help="trials that run at once (default: as many as the cores allow)",
    )
    sweep.add_argument(
        "--cpus",
        type=whole(1, 1024),
        metavar="N",
        help="cores and threads of each trial (default 1)",
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
    runs.add_argument("--until", type=parse_return, nargs=1, metavar="RETURN", help="as run.py's")
    parser.add_hyperparameters(run.HYPERPARAMETERS, nargs="+")
    return vars(parser.parse_args(argv))


def load_sweep(folder):
    """What sweep.json holds, a dict; UsageError if it is damaged or of another version."""
    path = folder / SWEEP_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["version"] != VERSION:
            raise UsageError(f"--resume: {path} is of another version of this program")
        seeds = [parse_seed(str(seed)) for seed in saved["seeds"]]
        if not seeds:
            raise ValueError("there is nothing to run")
        arguments = [str(word) for word in saved["arguments"]]
    except OSError as error:
        why = reason(error).lower()
        raise UsageError(
            f"--resume: {folder} isn't a sweep's folder: {SWEEP_FILE}: {why}"
        ) from None
    except (argparse.ArgumentTypeError, LookupError, RecursionError, TypeError, ValueError):
        raise UsageError(f"--resume: {path} is damaged") from None
    return {"version": VERSION, "arguments": arguments, "seeds": seeds}


def plan(given, argv):
    """What sweep.json shall hold: the command line, and the seeds, to which some may be added."""
    if "resume" not in given:
        return {"version": VERSION, "arguments": argv, "seeds": given.get("seeds", SEEDS)}
    for name in given.keys() - RESUMING:
        raise UsageError(f"{flag(name)}: a resumed sweep keeps what it was started with")
    saved = load_sweep(given["resume"])
    return {**saved, "seeds": list(dict.fromkeys([*saved["seeds"], *given.get("seeds", ())]))}


def planned_trials(planned):
    """The trials of a sweep, from what its sweep.json holds; UsageError if one can't be run."""
    given = parse_arguments(planned["arguments"])
    runs = {name: values for name, values in given.items() if name not in OF_THE_SWEEP}
    return make_trials(combinations(runs), planned["seeds"], run.HYPERPARAMETERS, run.PRESETS)


def run_missing(folder, trials, given, stop):
    """Run the trials that aren't finished yet, and report on all; return whether all went well."""
    from harness.sweeps.results import make_row
    from harness.sweeps.tables import LiveTable, report
    from harness.sweeps.trials import run_trials

    rows = {trial.name: make_row(folder, trial) for trial in trials}
    missing = [trial for trial in trials if rows[trial.name]["status"] != "finished"]
    log(f"{len(missing)} of {len(trials)} trials to run")
    failure = None
    if missing:
        with contextlib.closing(LiveTable(folder, missing, rows)) as table:
            failure = run_trials(folder, missing, given["cpus"], given.get("jobs"), stop, table)
    report(folder, trials, rows)
    if failure:
        print(f"sweep.py: error: Ray failed: {failure}", file=sys.stderr)
    if failure or stop.number:
        log(f"Stopped, to go on: {command('sweep.py', '--resume', folder)}")
    return not failure and all(row["status"] != "failed" for row in rows.values())


def sweep(given, argv, stop):
    """Run a new sweep, or what is missing of an old one; return whether all went well."""
    for package in PACKAGES:
        if not importlib.util.find_spec(package):
            raise UsageError(f"no package {package}: pip install -r requirements-sweep.txt")
    planned = plan(given, argv)
    trials = planned_trials(planned)
    with contextlib.ExitStack() as stack:
        if "resume" in given:
            stack.enter_context(locked(given["resume"]))
        stack.enter_context(ray_cluster(given.get("address"), given["cpus"], given.get("jobs")))
        folder = given.get("resume")
        if not folder:
            folder = create_log_folder(given.get("name"), "sweep")
            stack.enter_context(locked(folder))
            log(f"Created {folder}")
        write_json(folder / SWEEP_FILE, planned)
        return run_missing(folder, trials, given, stop)


def main(argv=None):
    """Do what the command line says; return the exit status."""
    stop = StopSignal()
    argv = sys.argv[1:] if argv is None else argv
    given = {"cpus": 1, **parse_arguments(argv)}
    try:
        all_well = sweep(given, argv, stop)
    except UsageError as error:
        print(f"sweep.py: error: {error}", file=sys.stderr)
        return 2
    return stop.exit_status or (0 if all_well else 1)


if __name__ == "__main__":
    sys.exit(main())
