"""Train many runs in parallel, on this machine or on a Ray cluster, and compare them.

python sweep.py --seeds 20 --preset tutorial tuned
python sweep.py --seeds 0-9 --learning-rate 0.001 0.0005 --hidden 32,32 64,64
python sweep.py --search 60 --learning-rate 0.0001:0.01 --n-step 1:20 --hidden 32,32 64,64
python sweep.py --resume NAME-sweep --seeds 0-19
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C during the imports below: no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from harness.requirements import check_requirements

    check_requirements("sweep.py")

import run
from harness.errors import EnvironmentFault, UsageError, report_crash
from harness.flags import Flag, Parser, Use, flag
from harness.log_folder import SWEEP_FILE, create_log_folder, find_log_folder, locked
from harness.requirements import check_requirements
from harness.state import VERSION as STATE_VERSION
from harness.sweeps.cluster import ray_options, start_ray
from harness.sweeps.grid import Trial, combinations, make_trials, parse_seeds
from harness.sweeps.space import RangeOrValue, Search, plan_search, refuse_ranges
from harness.terminal import StopSignal, command, log, start_program
from harness.whole_files import write_json

SEEDS, SEARCH_SEEDS = range(10), range(3)
BEST = 3  # proposals to confirm
PRESET = {"preset": ["tutorial"]}
VERSION = [STATE_VERSION, 2]  # of the runs' states; of this file and the runs' names
RESUMING = {"resume", "seeds", "jobs", "address"}
OF_THE_SWEEP = {"name", *RESUMING}
OF_A_SEARCH = {"search", "confirm", "confirm_seeds"}


def parse_arguments(argv: list[str]) -> dict[str, Any]:
    """The flags that were given, as a dict; a mistake prints one line and exits with 2."""
    parser = Parser(prog="sweep.py", description="Train many runs in parallel, and compare them.")
    sweep = parser.add_argument_group("the sweep")
    seeds_help = (
        "how many, or which: 20, 0-9 or 1,2,5-9 (default 10, or 3 for each proposal of a search); "
        "with --resume: add these"
    )
    sweep.add_argument("--seeds", type=parse_seeds, metavar="N", help=seeds_help)
    sweep.add_argument("--name", help="of the sweep and its folder NAME-sweep (default: the date)")
    sweep.add_argument("--resume", metavar="NAME-sweep", help="run what is missing")
    jobs_help = "runs at a time (default: as many as there are cores)"
    sweep.add_argument("--jobs", type=Flag(1, 1, 1024, "").parse, metavar="N", help=jobs_help)
    sweep.add_argument("--address", help="of a running Ray cluster: auto, or HOST:PORT")
    search = parser.add_argument_group("a search")
    search_help = "try N proposals within ranges A:B, or among the values given"
    search.add_argument("--search", type=Flag(1, 1, 10**6, "").parse, metavar="N", help=search_help)
    confirm_help = f"best proposals to train again on fresh seeds (default {BEST})"
    search.add_argument(
        "--confirm", type=Flag(1, 1, 1000, "").parse, metavar="N", help=confirm_help
    )
    fresh_help = "seeds to confirm on (default: the ten after those of the search)"
    search.add_argument("--confirm-seeds", type=parse_seeds, metavar="N", help=fresh_help)
    ranges = {
        name: RangeOrValue(**vars(known)) if known.type in (int, float, tuple) else known
        for name, known in run.ALL_FLAGS.items()
    }
    parser.add_flags(ranges, Use.SWEEP, several=True)
    return parser.parse(argv)


def load_sweep(folder: Path) -> tuple[list[str], list[int]]:
    """The command line and the seeds of a sweep to resume; UsageError if they can't be read."""
    path = folder / SWEEP_FILE
    if not path.exists():
        raise UsageError(f"--resume: {folder} isn't the folder of a sweep: it has no {SWEEP_FILE}")
    with contextlib.suppress(LookupError, OSError, TypeError, ValueError):
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["version"] == VERSION:
            return saved["arguments"], saved["seeds"]
    raise UsageError(f"--resume: {path} is damaged or of another version of this program")


def plan(asked: dict[str, Any], seeds: Sequence[int] | None = None) -> Search | list[Trial]:
    """What flags ask for: a Search, or the trials of a grid.

    Args:
        asked: what `parse_arguments` returned.
        seeds: instead of those asked for.

    Raises:
        UsageError: if it can't be done.
    """
    seeds = seeds or asked.get("seeds")
    given = {k: v for k, v in asked.items() if k not in OF_THE_SWEEP | OF_A_SEARCH}
    tables = run.ALL_FLAGS, run.PRESETS
    if "search" in asked:
        counts = asked["search"], asked.get("confirm", BEST)
        fresh = asked.get("confirm_seeds")
        return plan_search(given, tables, counts, list(seeds or SEARCH_SEEDS), fresh)
    for name in OF_A_SEARCH & asked.keys():
        raise UsageError(f"{flag(name)} does nothing without --search")
    refuse_ranges(given)
    return make_trials(combinations(given or PRESET), seeds or SEEDS, *tables)


def sweep(given: dict[str, Any], argv: list[str], stop: StopSignal) -> bool:
    """Run a new sweep, or what is missing of an old one; return whether all trials finished."""
    check_requirements("sweep.py", file="requirements-sweep.txt")  # imported late
    folder = None
    if "resume" in given:
        for name in given.keys() - RESUMING:
            raise UsageError(f"{flag(name)}: a resumed sweep keeps what it was started with")
        folder = find_log_folder(given["resume"], kind="sweep")
        argv, started = load_sweep(folder)
        seeds = list(dict.fromkeys([*started, *given.get("seeds", ())]))
        planned = plan(parse_arguments(argv), seeds)
        if isinstance(planned, Search) and seeds != started:
            raise UsageError(
                "--seeds: a resumed search keeps its seeds, since its proposals are compared on "
                "the same ones; start another search with more"
            )
    else:
        planned = plan(given)
    options = ray_options(given.get("address"), given.get("jobs"))
    if not folder:
        folder = create_log_folder(given.get("name"), "sweep")
        log(f"Created {folder}")
    with locked(folder):
        if isinstance(planned, Search):
            seeds = planned.seeds
        else:
            seeds = list(dict.fromkeys(trial.seed for trial in planned))
        write_json(folder / SWEEP_FILE, {"version": VERSION, "arguments": argv, "seeds": seeds})
        start_ray(options)  # before anything imports it
        from harness.sweeps.stages import run_grid, run_search
        from harness.sweeps.trials import Sweep

        shared = Sweep(run.main, folder, given.get("jobs"), stop)
        if isinstance(planned, Search):
            ended, finished = run_search(shared, planned)
        else:
            ended, finished = run_grid(shared, planned)
    if not ended:
        log(f"Stopped. Resume with: {command('sweep.py', '--resume', folder)}")
    return finished


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    start_program()
    argv = sys.argv[1:] if argv is None else argv
    try:
        with StopSignal() as stop:
            all_finished = sweep(parse_arguments(argv), argv, stop)
    except EnvironmentFault as error:
        report_crash("sweep.py", error)
        return 1
    except UsageError as error:
        print(f"sweep.py: error: {error}", file=sys.stderr)
        return 2
    return stop.exit_status or (0 if all_finished else 1)


if __name__ == "__main__":
    sys.exit(main())
