"""The trials of a sweep, trained in Ray's worker processes, on any node of a cluster."""

import contextlib
import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from rich.live import Live

from harness.sweeps.grid import Trial
from harness.sweeps.live_table import LiveTable, plain_console
from harness.sweeps.worker import train_trial
from harness.terminal import log

RETRIES = 2
POLL_SECONDS = 0.1
# Each compiled training step leaves some 5 MB behind, which TensorFlow can't release.
TRIALS_OF_A_WORKER = 25


class Stop(Protocol):
    """A StopSignal, or what stands in for one."""

    number: int


@dataclass(frozen=True)
class Job:
    """A trial that is to be trained until its first evaluation from step `pause` on."""

    trial: Trial
    pause: float = math.inf
    retries: int = RETRIES


class Plan(Protocol):
    """What to train."""

    count: int  # of the trials, or of a search's proposals, that end

    def next_job(self) -> Job | None:
        """What to train next; None if there is nothing now."""

    def take_in(self, trial: Trial, failed: bool) -> str | None:
        """Take in that a trial has paused, finished or failed; a line if one of `count` ended."""


class Evaluations:
    """Collects the evaluations of running trials, in a process of its own."""

    def __init__(self) -> None:
        self.latest: dict[str, tuple[int, float]] = {}

    def add(self, name: str, step: int, episode_return_avg: float) -> None:
        """Remember a trial's latest evaluation."""
        self.latest[name] = step, episode_return_avg

    def get(self) -> dict[str, tuple[int, float]]:
        """The latest evaluations by the trials' names."""
        return self.latest


@ray.remote(num_cpus=1, max_retries=0, max_calls=TRIALS_OF_A_WORKER)
def train(
    main: Callable[..., int],
    trial: Trial,
    home: Path,
    home_node: str,
    pause: float,
    evaluations: Any,
) -> bool:
    """Call `train_trial` in a worker process; `evaluations` is an actor of Evaluations, or None."""

    def on_evaluation(step: int, episode_return_avg: float) -> None:
        if evaluations:
            evaluations.add.remote(trial.name, step, episode_return_avg)

    return train_trial(main, trial, home, home_node, pause, on_evaluation)


@dataclass(frozen=True)
class Sweep:
    """What all the trials of a sweep share."""

    main: Callable[..., int]  # run.py's
    folder: Path
    jobs: int | None  # at a time; None for as many as there are cores
    stop: Stop


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
        self.home_node = ray.get_runtime_context().get_node_id()
        self.running: dict[ray.ObjectRef, Job] = {}
        self.retried: deque[Job] = deque()
        self.table, self.console = LiveTable(plan.count), plain_console()
        # Nobody needs the process that collects evaluations where they aren't shown.
        self.evaluations = None
        if self.console.is_terminal:
            self.evaluations = ray.remote(Evaluations).options(num_cpus=0).remote()
        self.latest: ray.ObjectRef | None = None  # what it has been asked for

    def run(self) -> None:
        """Train until nothing is left, or a signal comes; say so if Ray itself fails."""
        live = Live(get_renderable=self.table.render, console=self.console, transient=True)
        with contextlib.suppress(OSError), live:  # the terminal may be gone when it ends
            live.console.show_cursor()  # a second Ctrl-C would leave it hidden
            try:
                self._train()
            except Exception as error:  # of any kind: the cluster's head is gone, say
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                print(f"sweep.py: error: Ray failed: {why}", file=sys.stderr)

    def _train(self) -> None:
        stop, stopping = self.sweep.stop, False
        self._start_jobs()
        while self.running:
            if stop.number and not stopping:
                stopping = True
                states = (
                    "trial saves its state"
                    if len(self.running) == 1
                    else "trials save their states"
                )
                log(f"Stopping: {len(self.running)} running {states}")
                for reference in self.running:
                    ray.cancel(reference)
            ended, _ = ray.wait(list(self.running), timeout=POLL_SECONDS)
            for reference in ended:
                self._take_in(reference)
            self._show_evaluations()
            self._start_jobs()

    def _start_jobs(self) -> None:
        cores = int(ray.cluster_resources().get("CPU", 1))
        home = self.sweep.folder.resolve()
        while not self.sweep.stop.number and len(self.running) < (self.sweep.jobs or cores):
            job = self.retried.popleft() if self.retried else self.plan.next_job()
            if job is None:
                return
            arguments = job.trial, home, self.home_node, job.pause, self.evaluations
            self.running[train.remote(self.sweep.main, *arguments)] = job
            self.table.running[job.trial.name] = job.trial

    def _take_in(self, reference: ray.ObjectRef) -> None:
        """Take in the end of a job: it is done, or to be retried, or has failed."""
        job = self.running.pop(reference)
        del self.table.running[job.trial.name]
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
        line = self.plan.take_in(job.trial, bool(failure))
        if line:
            self.table.ended += 1
            log(f"{self.table.ended}/{self.plan.count} {line}")

    def _show_evaluations(self) -> None:
        if not self.evaluations:
            return
        self.latest = self.latest or self.evaluations.get.remote()
        if ray.wait([self.latest], timeout=0)[0]:
            self.table.latest, self.latest = ray.get(self.latest), None


def run_trials(sweep: Sweep, plan: Plan) -> set[str]:
    """Train what a plan asks for; return the names of the trials that failed."""
    training = Training(sweep, plan)
    training.run()
    return training.failed
