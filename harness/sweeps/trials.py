"""The trials of a sweep under Ray Tune: each is a run.py of its own, on any node of a cluster."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import ray
from ray import tune

from harness.errors import UsageError
from harness.state import STATE_FILE, load_state
from harness.sweeps.cluster import PROJECT, on_node, pack, unpack
from harness.sweeps.grid import command_line, trial_name
from harness.sweeps.results import FINISHED_FILE, read_evaluations
from harness.whole_files import write_text

RETRIES = 2
POLL_SECONDS = 1
STOP_SECONDS = 60
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent():
    """Have Linux kill this process with its parent: Ray may kill that, and start another run."""
    if LIBC:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def saved_step(log_folder):
    """The step of a run's last saved state, 0 if there is none to go on from."""
    try:
        return load_state(log_folder / STATE_FILE)["progress"].step
    except UsageError:
        return 0


def start_run(folder, job, cpus):
    """Start run.py for a trial's job, or resume it where it stopped; return the process."""
    name = trial_name(job["flags"], job["seed"])
    log_folder = folder / f"{name}-log"
    command = [sys.executable, PROJECT / "run.py", "--threads", str(cpus)]
    resumed = 0 < saved_step(log_folder) < job["max_steps"]
    if resumed:
        command += ["--resume", log_folder.name]
    else:
        shutil.rmtree(log_folder, ignore_errors=True)
        command += ["--name", name, "--seed", str(job["seed"]), *command_line(job["flags"])]
    with open(folder / f"{name}.txt", "ab" if resumed else "wb") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            preexec_fn=end_with_parent,  # noqa: PLW1509, it is one call into C
        )


class TrialRun(tune.Trainable):
    """One trial, where Ray put it: a process of run.py, followed through its evaluations."""

    def setup(self, config):
        """Start the run, or go on with it if its folder holds a state to go on from."""
        job, self.folder = config["job"], Path(config["folder"])
        self.name = trial_name(job["flags"], job["seed"])
        self.away = ray.get_runtime_context().get_node_id() != config["node"]  # on another disk
        if self.away:
            files = on_node(config["node"], pack, self.folder, self.name)
            self.folder = Path(tempfile.mkdtemp(prefix="sweep-"))
            unpack(self.folder, files)
        self.log_folder = self.folder / f"{self.name}-log"
        self.process = start_run(self.folder, job, config["cpus"])

    def step(self):
        """Wait a moment; return where the run is."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(POLL_SECONDS)
        status = self.process.returncode
        result = {"done": status == 0}
        for row in read_evaluations(self.log_folder).tail(1).to_dict("records"):
            result |= row
        if status is not None:
            self.cleanup()
        if status:
            raise RuntimeError(f"run.py ended with exit status {status}")
        return result

    def cleanup(self):
        """End the run, its state saved, and bring its files home."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self.process.kill()
        last_step = saved_step(self.log_folder) == self.config["job"]["max_steps"]
        if self.process.returncode == 0 or last_step:  # a signal may come after the last step
            write_text(self.log_folder / FINISHED_FILE, "")
        if self.away and self.folder.exists():
            files = pack(self.folder, self.name)
            on_node(self.config["node"], unpack, Path(self.config["folder"]), files)
            shutil.rmtree(self.folder)

    def reset_config(self, config):
        """Take over another trial in this process, which spares Ray's start."""
        self.setup(config)
        return True


class Interrupted(tune.Stopper):
    """Ends all trials once a signal has come."""

    def __init__(self, stop):
        self.stop = stop

    def __call__(self, trial_id, result):
        return False

    def stop_all(self):
        """Asked by Tune again and again."""
        return bool(self.stop.number)


def run_trials(folder, trials, cpus, jobs, stop, callback):
    """Run trials, as many at a time as there are cores, or `jobs`.

    A trial that fails, or whose node is lost, starts again from its last saved state, up to
    RETRIES times. Once `stop` is set, running trials save their state and end.

    Args:
        trials: list of Trial.
        callback: tune.Callback, told what happens to each trial.

    Returns:
        why Ray itself failed, None if it didn't.
    """
    config = {
        "folder": str(folder.resolve()),
        "node": ray.get_runtime_context().get_node_id(),
        "cpus": cpus,
        "job": tune.grid_search([trial.job for trial in trials]),
    }
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            tune.with_resources(TrialRun, {"cpu": cpus}),
            param_space=config,
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=jobs),
            run_config=tune.RunConfig(
                storage_path=storage,
                verbose=0,
                stop=Interrupted(stop),
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        except Exception as error:  # of any kind: the cluster's head is gone, say
            return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
