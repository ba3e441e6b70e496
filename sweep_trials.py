"""The trials of a sweep under Ray Tune: each a run.py of its own, on any node of a cluster."""

import contextlib
import ctypes
import functools
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import ray
from ray import tune
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import checkpoint
import run
from arguments import UsageError
from checkpoint import load_state
from files import say
from sweep_results import read_progress

RETRIES = 2
POLL_SECONDS = 1
CONNECT_SECONDS = 5
STOP_SECONDS = 60
ROWS = 20  # running trials that the live table shows
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@contextlib.contextmanager
def ray_cluster(address, cpus):
    """Ray, on this machine or at `address`; UsageError if it can't be used for these trials."""
    warnings.filterwarnings("ignore", module="ray")
    on_sigterm = signal.getsignal(signal.SIGTERM)  # which Ray replaces
    here = Path(__file__).parent
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        _check_address(address)
        # Nodes need not have this project; ours is sent to them.
        others = [f"/{path.name}" for path in here.iterdir() if path.suffix != ".py"]
        options["runtime_env"] = {"working_dir": str(here), "excludes": others}
    else:
        options["include_dashboard"] = False
    # A signal to the process group, of a closed terminal say, is for this program, which then ends
    # all others: so they get groups of their own.
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, process_group=0)
    try:
        ray.init(address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where, reason = address or "this machine", " ".join(str(error).split())
        hint = "; a cluster with a token needs RAY_AUTH_MODE=token set here too" if address else ""
        raise UsageError(f"can't use Ray at {where}: {reason}{hint}") from None
    finally:
        services.ConsolePopen = popen
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        most = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        if cpus > most:
            raise UsageError(f"--cpus: the largest node has {most:g} cores, not {cpus}")
        yield
    finally:
        ray.shutdown()


def _check_address(address):
    # Ray itself keeps trying for many minutes.
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise UsageError(f"--address: expected auto, or HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(f"--address {address}: no Ray cluster answers there: {error}") from None


def run_trials(folder, sweep_id, results, cpus, stop):
    """Run what is missing of `results`, as many at a time as there are cores.

    A trial that fails, or whose node is lost, starts again from its last saved state, up to
    RETRIES times. Once `stop` is set, running trials save their state and end.

    Returns:
        what Ray itself failed of, None if it didn't.
    """
    failure = None
    missing = results.missing()
    if not missing:
        return None
    # Kept in a variable: an actor lives as long as its handle.
    store = Store.options(
        name=sweep_id,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
    ).remote(str(folder.resolve()))
    config = {"folder": str(folder.resolve()), "sweep_id": sweep_id, "cpus": cpus}
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            tune.with_resources(Trial, {"cpu": cpus}),
            param_space={**config, "trial": tune.grid_search(missing)},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=storage,
                name="sweep",
                verbose=0,
                stop=Interrupted(stop),
                callbacks=[LiveTable(results, len(missing))],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        logging.disable(logging.ERROR)  # Ray's pages about each failure; the table has a line
        try:
            tuner.fit()
        except Exception as error:  # of any kind: the cluster's head is gone, say
            failure = (str(error).strip() or type(error).__name__).splitlines()[0]
        finally:
            logging.disable(logging.NOTSET)
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(store)
    return failure


class Trial(tune.Trainable):
    """One trial, where Ray put it: a process of run.py, watched through what it prints."""

    def setup(self, config):
        """Start the run, or go on with it if its folder holds a state to go on from."""
        self.trial, self.store = config["trial"], None
        self.folder = Path(config["folder"])
        if not is_sweep(self.folder, config["sweep_id"]):  # a node that doesn't share the disk
            self.folder = Path(tempfile.mkdtemp(prefix="sweep-"))
            self.store = ray.get_actor(config["sweep_id"])
            unpack(self.folder, ray.get(self.store.load.remote(self.trial["name"])))
        self.process = start_run(self.folder, self.trial, config["cpus"])

    def step(self):
        """Wait a moment; return where the run is."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(POLL_SECONDS)
        status = self.process.returncode
        text = (self.folder / f"{self.trial['name']}.txt").read_text("utf-8", errors="replace")
        if status is not None:
            self.cleanup()
        if status:
            last = text.strip().splitlines()[-1:] or ["it printed nothing"]
            raise RuntimeError(f"exit status {status}: {last[0]}")
        step, average = read_progress(text)
        return {"at_step": step, "episode_return_avg": average, "done": status == 0}

    def cleanup(self):
        """End the run, its state saved, and bring its files home."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.store:
            ray.get(self.store.save.remote(pack(self.folder, self.trial["name"])))
            shutil.rmtree(self.folder, ignore_errors=True)
            self.store = None

    def reset_config(self, config):
        """Take over another trial in this process, which spares Ray's start."""
        self.setup(config)
        return True


def start_run(folder, trial, cpus):
    """Start run.py for a trial, or its --resume; return the process."""
    name = trial["name"]
    log_folder = folder / f"{name}-log"
    command = [sys.executable, run.__file__, "--threads", str(cpus)]
    if can_resume(log_folder, trial["max_steps"]):
        command += ["--resume", log_folder.name]
        mode = "ab"
    else:
        shutil.rmtree(log_folder, ignore_errors=True)
        command += ["--name", name, *trial["flags"]]
        mode = "wb"
    with open(folder / f"{name}.txt", mode) as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            preexec_fn=_end_with_parent,  # noqa: PLW1509, it is one call into C
        )


def _end_with_parent():
    # Ray may kill this worker at any time; its run must not write on beside the retry's.
    if LIBC:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def can_resume(log_folder, max_steps):
    """Whether the folder holds the state of an unfinished run."""
    try:
        return load_state(log_folder / checkpoint.STATE_FILE)["progress"].step < max_steps
    except UsageError:
        return False


def is_sweep(folder, sweep_id):
    """Whether `folder`, seen from here, is the sweep's."""
    try:
        return json.loads((folder / "sweep.json").read_text())["id"] == sweep_id
    except (OSError, ValueError, KeyError):
        return False


def pack(folder, name):
    """A trial's files, as the bytes of a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in (folder / f"{name}-log", folder / f"{name}.txt"):
            if path.exists():
                tar.add(path, path.name)
    return archive.getvalue()


def unpack(folder, data):
    """Put into `folder` what `pack` packed."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(folder, filter="data")


@ray.remote
class Store:
    """The sweep's folder, for trials on nodes that don't share its disk."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def load(self, name):
        """What is there of a trial that was begun before."""
        return pack(self.folder, name)

    def save(self, data):
        """Take a trial's files."""
        unpack(self.folder, data)


class Interrupted(tune.Stopper):
    """Ends all trials once Ctrl-C or SIGTERM came."""

    def __init__(self, stop):
        self.stop = stop

    def __call__(self, trial_id, result):
        return False

    def stop_all(self):
        """Asked by Tune again and again."""
        return bool(self.stop.number)


class LiveTable(tune.Callback):
    """A line for each trial that ended and, in a terminal, a table of those that run."""

    def __init__(self, results, count):
        self.results, self.count = results, count
        self.running, self.ended, self.lines = {}, 0, 0

    def on_trial_start(self, iteration, trials, trial, **info):
        self._show(trial, {"at_step": 0, "episode_return_avg": None})

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self._show(trial, result)

    def on_trial_recover(self, iteration, trials, trial, **info):
        self.running.pop(_name(trial), None)
        self._say(f"Retrying {_name(trial)}: {self._reason(trial)}")

    def on_trial_complete(self, iteration, trials, trial, **info):
        self._end(trial, failed=False)

    def on_trial_error(self, iteration, trials, trial, **info):
        self._end(trial, failed=True)

    def _end(self, trial, failed):
        name = _name(trial)
        self.running.pop(name, None)
        self.ended += 1
        row = self.results.update(name, failed)
        found = f"episode_return_avg {row['episode_return_avg']}"
        found = self._reason(trial) if failed else found
        self._say(f"{self.ended}/{self.count} {name} {row['status']}: {found}")

    def _reason(self, trial):
        # Tune's own word of the error may not be there yet when it calls.
        lines = self.results.output(_name(trial)).strip().splitlines()
        return f"the last that it printed is: {lines[-1]}" if lines else "it printed nothing"

    def _show(self, trial, result):
        max_steps = self.results.trials[_name(trial)]["max_steps"]
        text, average = f"step {result['at_step']}/{max_steps}", result["episode_return_avg"]
        text += "" if average is None else f"  episode_return_avg {average:.3f}"
        self.running[_name(trial)] = text
        self._draw()

    def _say(self, line):
        self._clear()
        say(line)
        self._draw()

    def _clear(self):
        if self.lines:
            sys.stdout.write(f"\x1b[{self.lines}A\x1b[J")
        self.lines = 0

    def _draw(self):
        if not sys.stdout.isatty():
            return
        self._clear()
        width = max(map(len, self.running), default=0)
        columns = shutil.get_terminal_size().columns - 1
        lines = [f"{name:<{width}}  {text}" for name, text in self.running.items()][:ROWS]
        waiting = self.count - self.ended - len(self.running)
        lines.append(f"{self.ended} ended, {len(self.running)} running, {waiting} waiting")
        print(*(line[:columns] for line in lines), sep="\n", flush=True)
        self.lines = len(lines)


def _name(trial):
    return trial.config["trial"]["name"]
