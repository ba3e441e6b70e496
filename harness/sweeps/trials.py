"""The trials of a sweep, trained in Ray's worker processes, on any node of a cluster."""

import contextlib
import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ray
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.errors import reason
from harness.sweeps.grid import Trial
from harness.sweeps.runs import read_evaluations
from harness.sweeps.tables import number, plain_console, plain_table
from harness.sweeps.worker import Place, train_trial
from harness.terminal import StopSignal, log

RETRIES = 2
POLL_SECONDS = 0.1
REDRAW_PER_SECOND = 2
# Each compiled training step leaves some 5 MB behind, which TensorFlow can't release.
TRIALS_OF_A_WORKER = 25


@dataclass(frozen=True)
class Job:
    """A trial that is to be trained until its first evaluation from step `pause` on."""

    trial: Trial
    pause: float = math.inf
    retries: int = RETRIES


class Plan(Protocol):
    """What to train."""

    count: int  # of the trials, or of a search's proposals, that are to end

    def next_job(self) -> Job | None:
        """What to train next; None if there is nothing now."""

    def job_ended(self, trial: Trial, failed: bool) -> str | None:
        """Told when a trial has paused, finished or failed; a line if one of `count` ended."""


@dataclass(frozen=True)
class Sweep:
    """What all the trials of a sweep share."""

    main: Callable[..., int]  # run.py's
    folder: Path
    jobs: int | None  # at a time; None for as many as there are cores
    stop: StopSignal


train = ray.remote(num_cpus=1, max_retries=0, max_calls=TRIALS_OF_A_WORKER)(train_trial)


def live_table(folder: Path, running: list[Trial], ended: int, count: int) -> Table | Text:
    """The running trials with their latest evaluations; nothing if there are none.

    Args:
        folder: of the sweep.
        ended, count: how many of the trials, or of a search's proposals, have ended.
    """
    if not running:
        return Text()
    table = plain_table("running", "seed", "step", "episode_return_avg")
    table.caption, table.caption_justify = f"{ended} of {count} ended", "left"
    for trial in running:
        *_, last = (
            {"step": 0, "episode_return_avg": math.nan},
            *read_evaluations(folder / trial.log_folder),
        )
        progress = f"{last['step']:.0f}/{trial.max_steps}"
        average = number(last["episode_return_avg"])
        table.add_row(trial.configuration, str(trial.seed), progress, average)
    return table


class Training:
    """The training of what a plan asks for.

    A trial that fails, or whose node is lost, is retried from its last state that reached the
    sweep's folder: from another node, files come at the end of a job. Once the sweep's `stop` is
    set, running trials save their state and end.

    Attributes:
        failed: the names of the trials that failed for good.
    """

    def __init__(self, sweep: Sweep, plan: Plan) -> None:
        self.sweep, self.plan = sweep, plan
        self.failed: set[str] = set()
        self.ended = 0  # of plan.count
        node = ray.get_runtime_context().get_node_id()
        self.place = Place(Path.cwd(), sweep.folder, node)
        self.running: dict[ray.ObjectRef, Job] = {}
        self.retried: deque[Job] = deque()

    def run(self) -> None:
        """Train until nothing is left, or a signal comes; say so if it can't be continued."""
        live = Live(
            get_renderable=self._table,
            console=plain_console(),
            refresh_per_second=REDRAW_PER_SECOND,
            transient=True,
        )
        with contextlib.suppress(OSError), live:  # the terminal may be gone when it ends
            live.console.show_cursor()  # a second Ctrl-C would leave it hidden
            try:
                self._train()
            except Exception as error:  # of any kind: the cluster's head is gone, the disk is full
                why = reason(error).splitlines()[0]
                print(f"sweep.py: error: the sweep can't be continued: {why}", file=sys.stderr)

    def _table(self) -> Table | Text:
        running = [job.trial for job in list(self.running.values())]
        return live_table(self.sweep.folder, running, self.ended, self.plan.count)

    def _train(self) -> None:
        stopping = False
        self._start_jobs()
        while self.running:
            if self.sweep.stop.number and not stopping:
                stopping = True
                running = "1 running trial ends its episode and saves its state"
                if len(self.running) > 1:
                    running = f"{len(self.running)} running trials end their episodes and save"
                log(f"Stopping: {running}")
                for reference in self.running:
                    ray.cancel(reference)
            ended, _ = ray.wait(list(self.running), timeout=POLL_SECONDS)
            for reference in ended:
                self._job_ended(reference)
            self._start_jobs()

    def _start_jobs(self) -> None:
        jobs = self.sweep.jobs or int(ray.cluster_resources().get("CPU", 1))
        while not self.sweep.stop.number and len(self.running) < jobs:
            job = self.retried.popleft() if self.retried else self.plan.next_job()
            if job is None:
                return
            reference = train.remote(self.sweep.main, job.trial, self.place, job.pause)
            self.running[reference] = job

    def _job_ended(self, reference: ray.ObjectRef) -> None:
        """A job is done, or to be retried, or has failed."""
        job = self.running.pop(reference)
        finished, failure = False, None
        try:
            finished = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            failure = str(error.cause)
        except ray.exceptions.RayError as error:  # a crash, a node that is lost
            failure = type(error).__name__
        if self.sweep.stop.number and not finished:
            return
        if failure and job.retries:
            log(f"Retrying {job.trial.name}: {failure}")
            self.retried.append(Job(job.trial, job.pause, job.retries - 1))
            return
        if failure:
            self.failed.add(job.trial.name)
        line = self.plan.job_ended(job.trial, bool(failure))
        if line:
            self.ended += 1
            log(f"{self.ended}/{self.plan.count} {line}")


def run_trials(sweep: Sweep, plan: Plan) -> set[str]:
    """Train what a plan asks for; return the names of the trials that failed."""
    training = Training(sweep, plan)
    training.run()
    return training.failed
