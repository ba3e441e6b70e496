"""What the tests of sweeps share: a sweep's processes, and what it leaves."""

import contextlib
import csv
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil

import sweep

SWEEP = Path(sweep.__file__)


def make(*arguments):
    """What a command line stands for, trials or a Search; one text is split at its spaces."""
    words = arguments[0].split() if len(arguments) == 1 else arguments
    return sweep.plan(sweep.parse_arguments(words))


def start(arguments, folder, stdout=subprocess.PIPE, **options):
    """Start a sweep, in a process group of its own."""
    command = [sys.executable, SWEEP, *arguments.split()]
    options |= {"stdout": stdout, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, process_group=0, **options)


def communicate(process):
    out, err = process.communicate()
    return SimpleNamespace(out=out, err=err, status=process.returncode)


def wait_for(condition, process=None, seconds=600):
    """Wait until something has happened; it fails when `process` has ended without."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        ended = process is not None and process.poll() is not None
        assert not ended and time.monotonic() < end, process and communicate(process)
        time.sleep(0.05)
    return found


def read(path):
    return path.read_text() if path.exists() else ""


def rows_of(folder):
    """The rows of results.csv by their trials' names."""
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return {row["folder"].removesuffix("-log"): row for row in csv.DictReader(file)}


def tree(process):
    """The processes that a process has started, and those that they have."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers(process):
    """The worker processes of a sweep that train: Ray names each after what it does."""
    found = []
    for member in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::train" in " ".join(member.cmdline()):
                found.append(member)
    return found


HEADER = (
    "step,training_episode,evaluation_episodes,episode_return_avg,lower_quartile,upper_quartile,"
    "avg_max_q_value,seconds"
)


def leave(folder, trial, *averages, finished=True):
    """Leave in the sweep's folder what a run does, that has an evaluation every 100 steps."""
    log_folder = folder / trial.log_folder
    log_folder.mkdir(exist_ok=True)
    rows = [
        f"{100 * i},{i},10,{average},{average - 5},{average + 5},-56.0,{2.0 * i}"
        for i, average in enumerate(averages, 1)
    ]
    (log_folder / "evaluations.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (log_folder / "result.json").unlink(missing_ok=True)
    if finished:
        (log_folder / "result.json").write_text('{"status": "finished"}')
    return log_folder
