"""The trials of a sweep under Ray Tune: each is a run.py of its own, on any node of a cluster."""

import contextlib
import ctypes
import math
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import ray
from ray import tune
from rich.live import Live

from harness.sweeps.cluster import PROJECT, on_node, pack, unpack
from harness.sweeps.results import common_evaluations, is_finished
from harness.sweeps.tables import LiveTable, plain_console

RETRIES = 2
POLL_SECONDS = 1
STOP_SECONDS = 60
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def start_run(folder, trial):
    """Start a trial's run.py, or resume it where it stopped; return the process.

    One that is finished already, though its node was lost then, ends at once when it is resumed.
    """
    log_folder = folder / f"{trial.name}-log"
    command = [sys.executable, PROJECT / "run.py"]
    resumed = is_finished(log_folder) is not None
    if resumed:
        command += ["--resume", log_folder.name]
        if "env" in trial.flags:  # an environment of the user's own needs to be allowed again
            command += ["--env", trial.flags["env"]]
    else:
        shutil.rmtree(log_folder, ignore_errors=True)
        command += ["--name", trial.name, "--seed", str(trial.seed), *trial.arguments]
    # Linux then kills the run with this process, in whose place Ray may start another one.
    end_with_parent = LIBC and partial(LIBC.prctl, PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(folder / f"{trial.name}.txt", "ab" if resumed else "wb") as output:
        options = {"cwd": folder, "preexec_fn": end_with_parent, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)


class TrialRun(tune.Trainable):
    """Trials of one configuration, where Ray put them: processes of run.py, side by side."""

    def setup(self, config):
        """Start the runs, or go on with those whose folders hold a state to go on from."""
        self.home, self.node, self.trials = config["folder"], config["node"], config["trials"]
        self.away = ray.get_runtime_context().get_node_id() != self.node  # on another disk
        self.folder = Path(tempfile.mkdtemp(prefix="sweep-")) if self.away else self.home
        if self.away:
            for trial in self.trials:
                unpack(self.folder, on_node(self.node, pack, self.home, trial.name))
        self.processes = [start_run(self.folder, trial) for trial in self.trials]
        self.evaluations, self.reported = (), 0

    def step(self):
        """Wait a moment; return where the runs are: one evaluation after the other."""
        running = [process for process in self.processes if process.poll() is None]
        if running and self.reported == len(self.evaluations):
            with contextlib.suppress(subprocess.TimeoutExpired):
                running[0].wait(POLL_SECONDS)
        finished = [
            # A signal may have come after the last step, with a status of its own.
            process.poll() is not None and is_finished(self.folder / f"{trial.name}-log")
            for process, trial in zip(self.processes, self.trials, strict=True)
        ]
        self.evaluations = common_evaluations(self.folder, self.trials)
        self.reported = min(self.reported + 1, len(self.evaluations))
        for process, done in zip(self.processes, finished, strict=True):
            if process.returncode is not None and not done:
                self.cleanup()
                raise RuntimeError(f"run.py ended with exit status {process.returncode}")
        done = all(finished) and self.reported == len(self.evaluations)
        if done:
            self.cleanup()
        result = {"done": done, "finished": done}  # Tune may change the first
        for step, average in self.evaluations[: self.reported].tail(1).items():
            return result | {"step": step, "episode_return_avg": average}
        return result | {"step": 0, "episode_return_avg": math.nan}

    def cleanup(self):
        """End the runs, their states saved, and bring their files home."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
        if self.away and self.folder.exists():
            for trial in self.trials:
                on_node(self.node, unpack, self.home, pack(self.folder, trial.name))
            shutil.rmtree(self.folder)

    def reset_config(self, config):
        """Take over other trials in this process, which spares Ray's start."""
        self.cleanup()  # ASHA may have stopped the former
        self.setup(config)
        return True


def run_trials(folder, jobs, stop, trials=(), **search):
    """Run trials, as many at a time as there are cores, or `jobs`; return the names of the failed.

    A trial that fails, or whose node is lost, is retried from its last saved state. Once `stop` is
    set, running trials save their state and end.

    Args:
        search: instead of trials: TuneConfig's search_alg, scheduler and num_samples.
    """
    table = LiveTable(folder, search.get("num_samples", len(trials)), stop)
    stopper = tune.stopper.NoopStopper()
    stopper.stop_all = lambda: bool(stop.number)  # Tune asks again and again
    space = {"folder": folder.resolve(), "node": ray.get_runtime_context().get_node_id()}
    if not search:
        space["trials"] = tune.grid_search([[trial] for trial in trials])
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            TrialRun,
            param_space=space,
            # A search's actor must end with its trial, or ASHA would stop no run.
            tune_config=tune.TuneConfig(
                reuse_actors=not search, max_concurrent_trials=jobs, **search
            ),
            run_config=tune.RunConfig(
                storage_path=storage,
                verbose=0,
                stop=stopper,
                callbacks=[table],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        live = Live(get_renderable=table.render, console=plain_console(), transient=True)
        with contextlib.suppress(OSError), live:  # the terminal may be gone when it ends
            live.console.show_cursor()  # a second Ctrl-C would leave it hidden
            try:
                tuner.fit()
            except Exception as error:  # of any kind: the cluster's head is gone, say
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                print(f"sweep.py: error: Ray failed: {why}", file=sys.stderr)
    return table.failed
