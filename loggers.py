"""What a run prints, and the events file that TensorBoard plots."""

import json
import math
import os
import socket
import textwrap
import time

import psutil

from harness.errors import reason
from harness.terminal import log


class TensorBoardLogger:
    """Prints a run's lines; writes scalars, pictures and hyperparameters to its events file.

    TensorBoard follows the file live; its own writer marks restarts and outlives a full disk.
    """

    def __init__(self, folder):
        # Imported here since they import TensorFlow, which --help must not wait for.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._session = event_pb2.Event, event_pb2.SessionLog
        self._summary = summary_pb2.Summary
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._open = lambda: RecordWriter(open(self._path, "ab"))
        self._records = None
        self._working = True

    def log_start(self, first_step, configuration, hyperparameters):
        """Begin the events of a run, or of a resumed one from `first_step` on.

        Args:
            configuration: dict, shown in the TEXT tab.
            hyperparameters: names of its values to show in the HPARAMS tab, which puts those
                first that differ between runs, and compares the last points of all plots.
        """
        from tensorboard.plugins.hparams import summary_v2 as hparams
        from tensorboard.plugins.text import summary_v2 as text

        self._write(file_version="brain.Event:2")
        # Points from here on replace those of a run that was killed further on.
        self._write(step=first_step, session_log=self._session(status="START"))
        code = textwrap.indent(json.dumps(configuration, indent=2), "    ")  # in Markdown
        self._write(summary=text.text_pb("configuration", code))
        values = ((name, configuration[name]) for name in hyperparameters)
        columns = {name: v if isinstance(v, (int, float)) else str(v) for name, v in values}
        self._write(summary=hparams.hparams_pb(columns, trial_id=""))  # a row for each run

    def log_episode(self, episode, step, loss):
        """Print the line of an episode that ended at `step`, and add it to the plots."""
        memory = psutil.virtual_memory()
        used, total = memory.used / 2**30, memory.total / 2**30
        steps, seconds = len(episode.actions), episode.seconds
        shown = "" if math.isnan(loss) else f"loss {loss:.7f} "
        log(
            f"episode {episode.number} steps {steps}/{step} {shown}"
            f"return {episode.episode_return:.1f} in {seconds:.2f}s {steps / seconds:.1f} steps/s "
            f"{used:.1f}/{total:.1f} GB RAM"
        )
        self.log_scalars(
            step,
            episode_return=episode.episode_return,
            episode_steps=steps,
            episode_seconds=seconds,
            steps_per_second=steps / seconds,
            memory_used=used,
            loss=loss,
        )

    def log_evaluation(self, episode_number, step, episode_return_avg, avg_max_q_value):
        """Print the line of an evaluation, and add it to the plots."""
        log(
            f"episode {episode_number} step {step} episode_return_avg {episode_return_avg:.3f} "
            f"avg_max_q_value {avg_max_q_value:.3f}"
        )
        if math.isnan(episode_return_avg):
            log("warning: that evaluation completed no episode; try a larger --eval-steps")
        self.log_scalars(
            step, episode_return_avg=episode_return_avg, avg_max_q_value=avg_max_q_value
        )

    def log_scalars(self, step, **scalars):
        """Add one point to each named plot; NaN, what isn't known yet, is left out."""
        values = [
            self._summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
            if not math.isnan(value)
        ]
        self._write(step=step, summary=self._summary(value=values))

    def log_images(self, step, size, images):
        """Add images of one size (width, height), a dict of PNG files, to the IMAGES tab."""
        width, height = size
        for tag, png in images.items():
            image = {"width": width, "height": height, "encoded_image_string": png}
            value = self._summary.Value(tag=tag, image=image)
            self._write(step=step, summary=self._summary(value=[value]))

    def close(self):
        """Close the events file."""
        try:
            if self._records:
                self._records.close()
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
            log(f"warning: can't write {self._path}: {reason(error)}; training goes on")
        self._working = False
