"""The trials of a sweep under Ray Tune: each is a run.py of its own, on any node of a cluster."""

import contextlib
import ctypes
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
from harness.sweeps.results import is_finished, read_evaluations
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
    else:
        shutil.rmtree(log_folder, ignore_errors=True)
        command += ["--name", trial.name, "--seed", str(trial.seed), *trial.arguments]
    # Linux then kills the run with this process, in whose place Ray may start another one.
    end_with_parent = LIBC and partial(LIBC.prctl, PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(folder / f"{trial.name}.txt", "ab" if resumed else "wb") as output:
        options = {"cwd": folder, "preexec_fn": end_with_parent, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)


class TrialRun(tune.Trainable):
    """One trial, where Ray put it: a process of run.py, followed through its evaluations."""

    def setup(self, config):
        """Start the run, or go on with it if its folder holds a state to go on from."""
        self.home, self.node, self.name = config["folder"], config["node"], config["trial"].name
        self.away = ray.get_runtime_context().get_node_id() != self.node  # on another disk
        self.folder = Path(tempfile.mkdtemp(prefix="sweep-")) if self.away else self.home
        if self.away:
            unpack(self.folder, on_node(self.node, pack, self.home, self.name))
        self.log_folder = self.folder / f"{self.name}-log"
        self.process = start_run(self.folder, config["trial"])

    def step(self):
        """Wait a moment; return where the run is."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(POLL_SECONDS)
        status = self.process.returncode
        # A signal may have come after the last step, with a status of its own.
        finished = status is not None and bool(is_finished(self.log_folder))
        result = {"done": finished, "finished": finished}  # Tune may change the first
        for row in read_evaluations(self.log_folder).tail(1).to_dict("records"):
            result |= row
        if status is not None:
            self.cleanup()
            if not finished:
                raise RuntimeError(f"run.py ended with exit status {status}")
        return result

    def cleanup(self):
        """End the run, its state saved, and bring its files home."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self.process.kill()
        if self.away and self.folder.exists():
            on_node(self.node, unpack, self.home, pack(self.folder, self.name))
            shutil.rmtree(self.folder)

    def reset_config(self, config):
        """Take over another trial in this process, which spares Ray's start."""
        self.setup(config)
        return True


def run_trials(folder, trials, jobs, stop):
    """Run trials, as many at a time as there are cores, or `jobs`; return the names of the failed.

    A trial that fails, or whose node is lost, is retried from its last saved state. Once `stop` is
    set, running trials save their state and end.
    """
    table = LiveTable(folder, len(trials))
    stopper = tune.stopper.NoopStopper()
    stopper.stop_all = lambda: bool(stop.number)  # Tune asks again and again
    node, grid = ray.get_runtime_context().get_node_id(), tune.grid_search(trials)
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            TrialRun,
            param_space={"folder": folder.resolve(), "node": node, "trial": grid},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=jobs),
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
