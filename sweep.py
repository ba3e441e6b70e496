"""Train many runs in parallel, on this machine or on a Ray cluster, and compare them.

python sweep.py --seeds 20 --preset tutorial tuned
python sweep.py --seeds 0-9 --learning-rate 0.001 0.0005 --hidden 32,32 64,64
python sweep.py --search 60 --learning-rate 0.0001:0.01 --n-step 1:20 --hidden 32,32 64,64
python sweep.py --resume NAME-sweep --seeds 0-19
python sweep.py --show NAME NAME
"""

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from harness.program import prepare

    prepare("sweep.py")

import run
from harness.command_line import Parser
from harness.errors import UsageError
from harness.log_folder import SWEEP_FILE, create_log_folder, find_log_folder, locked
from harness.program import Program, check_requirements
from harness.settings import MANY, flag_name
from harness.sweeps.cluster import check_address, ray_running
from harness.sweeps.grid import Trainer, Trial, combinations, make_trials, parse_seeds
from harness.sweeps.space import FRESH_SEEDS, RangeOrValue, Search, plan_search, refuse_ranges
from harness.terminal import StopSignal, command, log
from harness.whole_files import write_json

SEEDS, SEARCH_SEEDS = range(10), range(3)
BEST = 3  # proposals to confirm
PRESET = {"preset": ["tutorial"]}
VERSION = 3  # of this file and the runs' names
REQUIREMENTS = "requirements-sweep.txt"
RESUMING = {"resume", "seeds", "jobs", "address"}
SHOWING = {"show", "env", "output"}
OF_THE_SWEEP = {"name", "goal", *RESUMING}
OF_A_SEARCH = {"search", "confirm", "confirm_seeds"}
TRAINER = Trainer(run.Settings, run.PRESETS)


def whole_number(most: int) -> Callable[[str], int]:
    """A parser of whole numbers from 1 to `most`."""

    def parse(text: str) -> int:
        if not (text.isdecimal() and 1 <= int(text) <= most):
            message = f"expected a whole number from 1 to {most}, not {text!r}"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


def parse_return(text: str) -> float:
    """A mean return that solves an environment."""
    with contextlib.suppress(ValueError):
        if abs(float(text)) <= MANY:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number from -{MANY} to {MANY}, not {text!r}")


def parse_arguments(argv: list[str]) -> dict[str, Any]:
    """The flags that were given, as a dict; UsageError for a mistake."""
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
    sweep.add_argument("--jobs", type=whole_number(1024), metavar="N", help=jobs_help)
    sweep.add_argument("--address", help="of a running Ray cluster: auto, or HOST:PORT")
    goal_help = "mean return that solves each --env, in their order (default: what it says itself)"
    sweep.add_argument("--goal", type=parse_return, nargs="+", metavar="RETURN", help=goal_help)
    show = parser.add_argument_group("runs that exist")
    show_help = "show the table and the curves of runs, and of sweeps' runs; trains nothing"
    show.add_argument("--show", nargs="+", metavar="NAME", help=show_help)
    show.add_argument("--output", metavar="FILE", help="of --show's picture (default show.png)")
    search = parser.add_argument_group("a search")
    search_help = "try N proposals within ranges A:B, or among the values given"
    search.add_argument("--search", type=whole_number(10**6), metavar="N", help=search_help)
    confirm_help = f"best proposals to train again on fresh seeds (default {BEST})"
    search.add_argument("--confirm", type=whole_number(1000), metavar="N", help=confirm_help)
    fresh_help = f"how many fresh seeds to confirm on, or which (default {FRESH_SEEDS})"
    search.add_argument("--confirm-seeds", type=parse_fresh_seeds, metavar="N", help=fresh_help)
    flags = {name: RangeOrValue(**vars(flag)) for name, flag in TRAINER.flags.items()}
    parser.add_flags(flags, several=True)
    return parser.parse(argv)


def parse_fresh_seeds(text: str) -> int | list[int]:
    """How many seeds, or which."""
    seeds = parse_seeds(text)
    return len(seeds) if text.isdecimal() else seeds


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
    if "output" in given:
        raise UsageError("--output does nothing without --show")
    goals = goals_of(asked)
    if "search" in asked:
        count, confirmed = asked["search"], asked.get("confirm", BEST)
        fresh = asked.get("confirm_seeds", FRESH_SEEDS)
        seeds = list(seeds or SEARCH_SEEDS)
        return plan_search(TRAINER, given, count, confirmed, seeds, fresh, goals)
    for name in OF_A_SEARCH & asked.keys():
        raise UsageError(f"{flag_name(name)} does nothing without --search")
    refuse_ranges(given)
    return make_trials(TRAINER, combinations(given or PRESET), seeds or SEEDS, goals)


def goals_of(asked: dict[str, Any]) -> dict[str, float]:
    """What `--goal` says of each environment."""
    goals = asked.get("goal", [])
    environments = asked.get("env", [TRAINER.flags["env"].default])
    if goals and len(goals) != len(environments):
        raise UsageError(f"--goal: expected one return for each --env, {len(environments)} of them")
    return dict(zip(environments, goals, strict=False))


def sweep(given: dict[str, Any], argv: list[str], stop: StopSignal) -> bool:
    """Run a new sweep, or what is missing of an old one; return whether all trials finished."""
    folder, started = None, None
    if "resume" in given:
        for name in given.keys() - RESUMING:
            raise UsageError(f"{flag_name(name)}: a resumed sweep keeps what it was started with")
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
    if "address" in given:
        check_address(given["address"])
    if not folder:
        folder = create_log_folder(given.get("name"), "sweep")
        log(f"Created {folder}")
    try:
        with locked(folder):
            if isinstance(planned, Search):
                seeds = planned.seeds
            else:
                seeds = list(dict.fromkeys(trial.seed for trial in planned))
            write_json(folder / SWEEP_FILE, {"version": VERSION, "arguments": argv, "seeds": seeds})
            with ray_running(given.get("address"), given.get("jobs")):
                ended, finished = train(planned, folder, given.get("jobs"), stop)
    except UsageError:
        if started is None and not any(folder.glob("*-log")):  # the name is free again
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if not ended:
        log(f"Stopped. Resume with: {command('sweep.py', '--resume', folder)}")
    return finished


def train(
    planned: Search | list[Trial], folder: Path, jobs: int | None, stop: StopSignal
) -> tuple[bool, bool]:
    """Train what is planned, and report; return whether all has ended, and finished."""
    from harness.sweeps.stages import run_grid, run_search
    from harness.sweeps.trials import Sweep

    shared = Sweep(run.main, folder, jobs, stop)
    if isinstance(planned, Search):
        return run_search(shared, planned)
    return run_grid(shared, planned)


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    with Program("sweep.py") as program:
        given = parse_arguments(argv)
        check_requirements("sweep.py", (), REQUIREMENTS)  # imported late
        if "show" in given:
            for name in given.keys() - SHOWING:
                raise UsageError(f"{flag_name(name)} does nothing with --show")
            from harness.sweeps.show import show

            show(TRAINER, given["show"], given.get("env", []), given.get("output", "show.png"))
        elif not sweep(given, argv, program.stop):
            program.status = program.stop.exit_status or 1
    return program.status


if __name__ == "__main__":
    sys.exit(main())
