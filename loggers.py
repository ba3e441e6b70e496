"""Everything that a run writes to its log folder: TensorBoard's events and the `.h5` snapshots."""

import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from arguments import UsageError
from files import say, write_file
from snapshot_reader import CHECKSUM, read_arrays

# A snapshot is read in a process of its own, which these bound.
READER = Path(__file__).with_name("snapshot_reader.py")
READER_SECONDS = 60


def save_snapshot(path, model):
    """Save a Keras model as `.h5`, with a checksum behind HDF5's own end of the file."""

    def write(temporary):
        model.save(temporary, include_optimizer=False)
        with open(temporary, "rb+") as file:
            file.write(CHECKSUM.seal(file.read()))

    write_file(path, write)


def load_weights(path, env):
    """Read the weights of a snapshot, whichever Keras wrote it, and nothing else of it.

    The file may come from anyone, and HDF5's own code isn't safe against a malicious one. So a
    process with little memory and time reads it, and passes on the plain numbers.

    Returns:
        list of float32 arrays, a kernel and a bias for each Dense layer, from the input on.

    Raises:
        UsageError: if the file can't be read, isn't a snapshot of a Q network, or not of one for
            the environment `env`.
    """
    try:
        reader = subprocess.run(
            [sys.executable, "-I", READER, path],
            capture_output=True,
            timeout=READER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"can't use {path}: reading it took over {READER_SECONDS} s") from None
    if reader.returncode:
        lines = reader.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if reader.returncode == 2 and lines else "HDF5 can't read it"
        raise UsageError(f"can't use {path}: {reason}")
    weights = read_arrays(reader.stdout)
    found = len(weights[0]), len(weights[-1])
    expected = env.observation_space.shape[0], env.action_space.n
    if found != expected:
        raise UsageError(
            f"can't use {path}: it is for {found[0]} observed numbers and {found[1]} actions, "
            f"{env.spec.id} has {expected[0]} and {expected[1]}; is --env right?"
        )
    return weights


def hidden_layers(weights):
    """The layer sizes that `load_weights()` found, such as (32, 32)."""
    return tuple(len(bias) for bias in weights[1:-2:2])


class TensorBoardLogger:
    """Writes scalars and hyperparameters to an events file that a live TensorBoard follows."""

    def __init__(self, folder, first_step=0):
        # Imported here since they import TensorFlow, which --help must not wait for.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = Path(folder) / name
        self._records = RecordWriter(open(self._path, "ab"))
        self._working = True
        self._write(file_version="brain.Event:2")
        # Points from here on replace those of a run that was killed further on.
        self._write(step=first_step, session_log=event_pb2.SessionLog(status="START"))

    def log(self, step, **scalars):
        """Add one point to each named plot, and flush; NaN, what isn't known yet, is left out."""
        values = [
            self._summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
            if not math.isnan(value)
        ]
        self._write(step=step, summary=self._summary(value=values))

    def log_hyperparameters(self, hyperparameters, metrics):
        """Fill the HPARAMS tab from a dict, with the names of the scalars to compare runs by."""
        from tensorboard.plugins.hparams import summary_v2 as hparams

        hyperparameters = {
            name: value if isinstance(value, (int, float)) else str(value)
            for name, value in hyperparameters.items()
        }
        columns = [hparams.HParam(name) for name in hyperparameters]
        metrics = [hparams.Metric(name) for name in metrics]
        self._write(summary=hparams.hparams_config_pb(columns, metrics))
        self._write(summary=hparams.hparams_pb(hyperparameters))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._records.close()
        except OSError as error:
            self._warn(error)

    def _write(self, **fields):
        event = self._event(wall_time=time.time(), **fields)
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
            self._working = True
        except OSError as error:
            self._warn(error)

    def _warn(self, error):
        if self._working:  # once, not at every line
            say(f"warning: can't write {self._path}: {error.strerror}; training goes on")
        self._working = False


def log_episode(logger, episode, step, loss):
    """Print the log line of an episode that ended at `step`, and add it to TensorBoard's plots."""
    memory = psutil.virtual_memory()
    used, total = memory.used / 2**30, memory.total / 2**30
    steps, seconds = len(episode.actions), episode.seconds
    say(
        f"episode {episode.number} steps {steps}/{step} loss {loss:.7f} "
        f"return {episode.episode_return:.1f} in {seconds:.2f}s {steps / seconds:.1f} steps/s "
        f"{used:.1f}/{total:.1f} GB RAM"
    )
    logger.log(
        step,
        episode_return=episode.episode_return,
        episode_steps=steps,
        episode_seconds=seconds,
        steps_per_second=steps / seconds,
        memory_used=used,
        loss=loss,
    )


def log_evaluation(logger, episode, step, episode_return_avg, avg_max_q_value):
    """Print the line of an evaluation during `episode`, and add it to TensorBoard's plots."""
    say(
        f"episode {episode.number} step {step} episode_return_avg {episode_return_avg:.3f} "
        f"avg_max_q_value {avg_max_q_value:.3f}"
    )
    logger.log(step, episode_return_avg=episode_return_avg, avg_max_q_value=avg_max_q_value)
