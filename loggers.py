"""Everything that a run writes to its log folder: TensorBoard's events and the `.h5` snapshots."""

import io
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from arguments import UsageError
from checkpoint import finite
from files import attempt, say, write_sealed
from snapshot_reader import read_arrays

# A snapshot is read in a process of its own, which these bound.
READER = Path(__file__).with_name("snapshot_reader.py")
READER_SECONDS = 60

BEST = "best"


def save_snapshot(path, model):
    """Save a Keras model as `.h5`, with a checksum behind HDF5's own end of the file.

    HDF5 writes to memory, since a full disk would make it crash the process. `model.save` takes
    nothing but a path, so this is the function behind it.
    """
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_model_to_hdf5

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        save_model_to_hdf5(model, file, include_optimizer=False)
    write_sealed(path, content.getbuffer())
    say(f"Saved {path}")


def save_policy(folder, label, model, step):
    """Save `NAME-label.h5`, the weights of `model` (FlatModel) that play; False if that failed.

    Raises:
        TrainingError: if the weights aren't finite numbers.
    """
    finite(model.theta.numpy(), step)
    model.model.set_weights(model.get_average())
    name = folder.resolve().name.removesuffix("-log")
    return attempt(save_snapshot, folder / f"{name}-{label}.h5", model.model)


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
            # Ctrl-C is for this process; and threads would count as memory.
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"can't use {path}: reading it took over {READER_SECONDS} s") from None
    if reader.returncode:
        lines = reader.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if reader.returncode == 2 and lines else "HDF5 can't read it"
        reason = "".join(c if c.isprintable() else "?" for c in reason[:200])
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


class TensorBoardLogger:
    """Writes scalars, pictures and hyperparameters to an events file, followed by TensorBoard live.

    The best evaluations go to a file of their own, in the subfolder `best`: TensorBoard takes a
    metric of its HPARAMS table from nowhere but a plot, and of that only the last point. There,
    they are a second curve of the plot `episode_return_avg`, instead of a ninth plot.
    """

    def __init__(self, folder, first_step=0):
        # Imported here since they import TensorFlow, which --help must not wait for.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._folder, self._best = Path(folder), None
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = self._folder / name
        self._open = lambda: RecordWriter(open(self._path, "ab"))
        self._records = None
        self._working = True
        self._write(file_version="brain.Event:2")
        # Points from here on replace those of a run that was killed further on.
        self._write(step=first_step, session_log=event_pb2.SessionLog(status="START"))

    def log_episode(self, episode, step, loss):
        """Print the line of an episode that ended at `step`, and add it to the plots."""
        memory = psutil.virtual_memory()
        used, total = memory.used / 2**30, memory.total / 2**30
        steps, seconds = len(episode.actions), episode.seconds
        say(
            f"episode {episode.number} steps {steps}/{step} loss {loss:.7f} "
            f"return {episode.episode_return:.1f} in {seconds:.2f}s {steps / seconds:.1f} steps/s "
            f"{used:.1f}/{total:.1f} GB RAM"
        )
        self.log(
            step,
            episode_return=episode.episode_return,
            episode_steps=steps,
            episode_seconds=seconds,
            steps_per_second=steps / seconds,
            memory_used=used,
            loss=loss,
        )

    def log_evaluation(self, episode, step, episode_return_avg, avg_max_q_value):
        """Print the line of an evaluation during `episode`, and add it to the plots."""
        say(
            f"episode {episode.number} step {step} episode_return_avg {episode_return_avg:.3f} "
            f"avg_max_q_value {avg_max_q_value:.3f}"
        )
        if math.isnan(episode_return_avg):
            say("warning: that evaluation completed no episode; a larger --eval-steps would")
        self.log(step, episode_return_avg=episode_return_avg, avg_max_q_value=avg_max_q_value)

    def log_policy(self, step, env, q_function):
        """Draw the value function and the policy, where they can be drawn, for the IMAGES tab."""
        import pictures  # here, since it imports Pillow, which --help must not wait for

        drawn = pictures.draw_pictures(env, q_function)
        if drawn:
            self.log_images(step, pictures.SIZE, drawn)

    def log(self, step, **scalars):
        """Add one point to each named plot, and flush; NaN, what isn't known yet, is left out."""
        values = [
            self._summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
            if not math.isnan(value)
        ]
        self._write(step=step, summary=self._summary(value=values))

    def log_images(self, step, size, images):
        """Add images of one size, a dict of PNG files as bytes, to the IMAGES tab."""
        width, height = size
        values = []
        for tag, png in images.items():
            image = {"width": width, "height": height, "encoded_image_string": png}
            values.append({"tag": tag, "image": image})
        self._write(step=step, summary=self._summary(value=values))

    def log_best(self, step, episode_return_avg):
        """Add an evaluation that is the best so far, for the HPARAMS tab."""
        try:
            if self._best is None:
                (self._folder / BEST).mkdir(exist_ok=True)
                self._best = TensorBoardLogger(self._folder / BEST, step)
            self._best.log(step, episode_return_avg=episode_return_avg)
        except OSError as error:
            self._warn(error)

    def log_configuration(self, configuration, hyperparameters):
        """Show a dict in the TEXT tab, and those of its values named `hyperparameters` in HPARAMS.

        There, runs are compared by `episode_return_avg`: the last one, and the best one.
        """
        from tensorboard.plugins.hparams import summary_v2 as hparams
        from tensorboard.plugins.text import summary_v2 as text

        lines = json.dumps(configuration, indent=2).splitlines()
        indented = "".join(f"    {line}\n" for line in lines)  # Markdown's code
        self._write(summary=text.text_pb("configuration", indented))
        columns = {}
        for name in hyperparameters:
            value = configuration[name]
            columns[name] = value if isinstance(value, (int, float)) else str(value)
        metrics = [
            hparams.Metric("episode_return_avg", display_name="episode_return_avg"),
            hparams.Metric(
                "episode_return_avg", group=BEST, display_name="best episode_return_avg"
            ),
        ]
        names = [hparams.HParam(name) for name in columns]
        self._write(summary=hparams.hparams_config_pb(names, metrics))
        self._write(summary=hparams.hparams_pb(columns, trial_id=""))  # a row for each run

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            if self._records:
                self._records.close()
            if self._best:
                self._best.__exit__()
        except OSError as error:
            self._warn(error)

    def _write(self, **fields):
        event = self._event(wall_time=time.time(), **fields)
        try:
            self._records = self._records or self._open()
            self._records.write(event.SerializeToString())
            self._records.flush()
            self._working = True
        except OSError as error:
            self._warn(error)

    def _warn(self, error):
        if self._working:  # once, not at every line
            say(f"warning: can't write {self._path}: {error.strerror}; training goes on")
        self._working = False
