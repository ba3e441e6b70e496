"""Train many runs in parallel, on this machine or on a Ray cluster, and compare them.

python sweep.py --seeds 20 --preset tutorial tuned
python sweep.py --seeds 0-9 --learning-rate 0.001 0.0005 --hidden 32,32 64,64
python sweep.py --resume NAME-sweep --seeds 0-19
"""

import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import run
from harness.arguments import ENVIRONMENT, Parser, flag, parse_change, parse_return, whole
from harness.errors import UsageError
from harness.log_folder import create_log_folder, locked
from harness.state import VERSION
from harness.sweeps.cluster import ray_options, start_ray
from harness.sweeps.grid import make_trials, parse_seeds
from harness.terminal import StopSignal, command, log
from harness.whole_files import write_json

SEEDS = list(range(10))
SWEEP_FILE = "sweep.json"
RESUMING = {"resume", "seeds", "jobs", "address"}
PACKAGES = ("ray", "pandas", "scipy", "matplotlib", "rich")  # imported late


def parse_arguments(argv):
    """The flags that were given, as a dict; a mistake prints one line and exits with 2."""
    parser = Parser(prog="sweep.py", description=__doc__.partition("\n")[0])
    sweep = parser.add_argument_group("the sweep")
    seeds_help = "how many, or which: 20, 0-9 or 1,2,5-9 (default 10); with --resume: add these"
    sweep.add_argument("--seeds", type=parse_seeds, metavar="N", help=seeds_help)
    sweep.add_argument("--name", help="of the sweep and its folder NAME-sweep (default: the date)")
    sweep.add_argument("--resume", type=Path, metavar="NAME-sweep", help="run what is missing")
    jobs_help = "runs at a time (default: as many as there are cores)"
    sweep.add_argument("--jobs", type=whole(1, 1024), metavar="N", help=jobs_help)
    sweep.add_argument("--address", help="of a running Ray cluster: auto, or HOST:PORT")
    runs = parser.add_argument_group("the runs (give several values to compare them)")
    runs.add_argument("--preset", nargs="+", choices=run.PRESETS, help="default tutorial")
    env_help = f"gym environment (default {ENVIRONMENT})"
    runs.add_argument("--env", nargs="+", metavar="ID", help=env_help)
    set_options = {"nargs": "+", "action": "append", "metavar": "NAME=VALUE"}
    set_help = "change a number of the environment; repeat --set to change another one too"
    runs.add_argument("--set", type=parse_change, help=set_help, **set_options)
    runs.add_argument("--until", type=parse_return, nargs="+", metavar="RETURN", help="as run.py's")
    parser.add_hyperparameters(run.HYPERPARAMETERS, nargs="+")
    return vars(parser.parse_args(argv))


def load_sweep(folder):
    """The command line and the seeds of a sweep to resume; UsageError if they can't be read."""
    path = folder / SWEEP_FILE
    with contextlib.suppress(LookupError, OSError, TypeError, ValueError):
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["version"] == VERSION:
            return saved["arguments"], saved["seeds"]
    raise UsageError(f"--resume: {path} is missing, damaged or of another version of this program")


def sweep(given, argv, stop):
    """Run a new sweep, or what is missing of an old one; return whether all trials finished."""
    for package in PACKAGES:
        if not importlib.util.find_spec(package):
            raise UsageError(f"no package {package}: pip install -r requirements-sweep.txt")
    folder, seeds = given.get("resume"), given.get("seeds", SEEDS)
    if folder:
        for name in given.keys() - RESUMING:
            raise UsageError(f"{flag(name)}: a resumed sweep keeps what it was started with")
        argv, seeds = load_sweep(folder)
        seeds = list(dict.fromkeys([*seeds, *given.get("seeds", ())]))
    grid = {k: v for k, v in parse_arguments(argv).items() if k not in {"name", *RESUMING}}
    trials = make_trials(grid, seeds, run.HYPERPARAMETERS, run.PRESETS)
    options = ray_options(given.get("address"), given.get("jobs"))
    if not folder:
        folder = create_log_folder(given.get("name"), "sweep")
        log(f"Created {folder}")
    with locked(folder):
        write_json(folder / SWEEP_FILE, {"version": VERSION, "arguments": argv, "seeds": seeds})
        start_ray(options)  # before anything imports it
        from harness.sweeps.results import is_finished
        from harness.sweeps.tables import report
        from harness.sweeps.trials import run_trials

        missing = [trial for trial in trials if not is_finished(folder / f"{trial.name}-log")]
        log(f"{len(missing)} of {len(trials)} trials to run")
        failed = run_trials(folder, missing, given.get("jobs"), stop) if missing else set()
        statuses = report(folder, trials, failed)
    if "unfinished" in statuses:
        log(f"Stopped, to go on: {command('sweep.py', '--resume', folder)}")
    return statuses == {"finished"}


def main(argv=None):
    """Do what the command line says; return the exit status."""
    stop = StopSignal()
    argv = sys.argv[1:] if argv is None else argv
    try:
        all_finished = sweep(parse_arguments(argv), argv, stop)
    except UsageError as error:
        print(f"sweep.py: error: {error}", file=sys.stderr)
        return 2
    return stop.exit_status or (0 if all_finished else 1)


if __name__ == "__main__":
    sys.exit(main())
