"""What a run prints, and the events file that TensorBoard plots."""

import json
import math
import os
import socket
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from harness.errors import reason
from harness.terminal import log
from harness.whole_files import attempt, write_file

EVENTS_VERSION = "brain.Event:2"
# TensorBoard keeps the first hyperparameters that it reads of a run. They have a file of their
# own, which its name puts first, so that a run that is resumed with more steps can replace them.
HPARAMS_FILE = "events.out.tfevents.0.hparams"


class TensorBoardLogger:
    """Prints a run's lines; writes scalars, pictures and hyperparameters to its events file.

    Each event is written at once, so that TensorBoard can follow a run live; a resumed run marks
    where it goes on, and a full disk ends nothing.
    """

    def __init__(self, folder: Path) -> None:
        # Imported here since they import TensorFlow, which --help must not wait for.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = event_pb2.Event
        self._session = event_pb2.SessionLog
        self._summary = summary_pb2.Summary
        self._folder = folder
        # TensorBoard reads the files in the order of their names. Their numbers look like its own,
        # a time, but always grow, even where a clock was set back.
        earlier = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
        numbers = [int(number) + 1 for number in earlier if number.isdecimal()]
        number = max([int(time.time()), *numbers])
        name = f"events.out.tfevents.{number:010}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._writer = RecordWriter
        self._records: RecordWriter | None = None
        self._working = True

    def log_start(
        self, first_step: int, configuration: dict[str, Any], hyperparameters: Iterable[str]
    ) -> None:
        """Begin the events of a run, or of a resumed one.

        Args:
            first_step: the first that is to be taken. Points from there on, of a run that was
                killed further on, are replaced.
            configuration: dict that JSON can hold, shown in the TEXT tab.
            hyperparameters: names of its values to show in the HPARAMS tab, which puts those
                first that differ between runs, and compares the last points of all plots.
        """
        from tensorboard.plugins.hparams import summary_v2 as hparams
        from tensorboard.plugins.text import summary_v2 as text

        values = ((name, configuration[name]) for name in hyperparameters)
        columns = {name: v if isinstance(v, (int, float)) else str(v) for name, v in values}

        def write_hparams(path: Path) -> None:
            with open(path, "wb") as file:
                records = self._writer(file)
                records.write(self._serialized(file_version=EVENTS_VERSION))
                row = hparams.hparams_pb(columns, trial_id="")  # a row for each run
                records.write(self._serialized(summary=row))
                records.flush()

        attempt(write_file, self._folder / HPARAMS_FILE, write_hparams)
        self._write(file_version=EVENTS_VERSION)
        self._write(step=first_step, session_log=self._session(status="START"))
        code = textwrap.indent(json.dumps(configuration, indent=2), "    ")  # in Markdown
        self._write(summary=text.text_pb("configuration", code))

    def log_episode(
        self,
        step: int,
        loss: float,
        episode: int,
        steps: int,
        episode_return: float,
        seconds: float,
        ended: bool = True,
    ) -> None:
        """Print the line of an episode, and add one that ended at `step` to the plots.

        Args:
            loss: of the last batch; NaN before learning has begun.
            episode: its number.
            steps, episode_return, seconds: how long it was, and what it returned, so far.
        """
        shown_loss = "" if math.isnan(loss) else f"loss {loss:.7f} "
        line = f"episode {episode} steps {steps}/{step} {shown_loss}return {episode_return:.1f}"
        if not ended:
            log(f"{line} so far, {steps / seconds:.1f} steps/s")
            return
        memory = psutil.virtual_memory()
        used = memory.used / 2**30
        total = memory.total / 2**30
        rate = steps / seconds
        log(f"{line} in {seconds:.2f}s {rate:.1f} steps/s {used:.1f}/{total:.1f} GB RAM")
        self.log_scalars(
            step,
            episode_return=episode_return,
            episode_steps=steps,
            episode_seconds=seconds,
            steps_per_second=rate,
            memory_used=used,
            loss=loss,
        )

    def log_evaluation(
        self, episode_number: int, step: int, episode_return_avg: float, avg_max_q_value: float
    ) -> None:
        """Print the line of an evaluation, and add it to the plots."""
        line = f"episode {episode_number} step {step} episode_return_avg {episode_return_avg:.3f}"
        if not math.isnan(avg_max_q_value):  # of a snapshot's policy, before training has begun
            line += f" avg_max_q_value {avg_max_q_value:.3f}"
        log(line)
        self.log_scalars(
            step, episode_return_avg=episode_return_avg, avg_max_q_value=avg_max_q_value
        )

    def log_scalars(self, step: int, **scalars: float) -> None:
        """Add one point to each named plot; NaN, what isn't known yet, is left out."""
        values = [
            self._summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
            if not math.isnan(value)
        ]
        self._write(step=step, summary=self._summary(value=values))

    def log_images(self, step: int, size: tuple[int, int], images: dict[str, bytes]) -> None:
        """Add images of one size (width, height), a dict of PNG files, to the IMAGES tab."""
        width, height = size
        for tag, png in images.items():
            image = {"width": width, "height": height, "encoded_image_string": png}
            value = self._summary.Value(tag=tag, image=image)
            self._write(step=step, summary=self._summary(value=[value]))

    def close(self) -> None:
        """Close the events file."""
        try:
            if self._records:
                self._records.close()
        except OSError as error:
            self._warn(error)

    def _serialized(self, **fields: Any) -> bytes:
        event: bytes = self._event(wall_time=time.time(), **fields).SerializeToString()
        return event

    def _write(self, **fields: Any) -> None:
        event = self._serialized(**fields)
        try:
            if not self._records:
                self._records = self._writer(open(self._path, "ab"))
            self._records.write(event)
            self._records.flush()
            self._working = True
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if self._working:  # once, not at every line
            log(f"warning: can't write {self._path}: {reason(error)}; training goes on")
        self._working = False
