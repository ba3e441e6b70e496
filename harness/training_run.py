"""What surrounds the training loop: log lines, plots, snapshots, the state, and the clock."""

import csv
import gc
import importlib.metadata
import io
import math
import platform
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from harness.environments import Environment
from harness.errors import TrainingError, diverged
from harness.flags import Flags, Use
from harness.log_folder import CONFIG_FILE, EVALUATIONS_FILE, STATE_FILE, run_name
from harness.network import FlatModel, q_function
from harness.settings import kept
from harness.snapshots import save_snapshot
from harness.state import Episode, Parts, Progress, save_state
from harness.terminal import ProgressBar, StopSignal, log
from harness.whole_files import attempt, write_json, write_text

EVALUATION = ("step", "episode", "episodes", "episode_return_avg", "avg_max_q_value", "seconds")
FEW_EPISODES = 10  # an evaluation of fewer says little
SILENT_STEPS = 2000  # of an episode that doesn't end, after which a line says where the run is
SAVE_SECONDS = 60  # the state is saved at least this often, whatever the step
SAVE_SHARE = 0.01  # … or less often: saving by the clock may take this share of the time

Logger = Any  # loggers.TensorBoardLogger, which this package doesn't import
Listener = Callable[[int, float], None]  # is told the step and the mean of each evaluation


class TrainingRun:
    """Prints, plots and saves what the training loop tells it, and keeps the time.

    It changes nothing that decides what is learned.

    Attributes:
        progress: Progress, where the run is.
        first_step, first_seconds: where this process took over.
    """

    def __init__(
        self,
        settings: Namespace,
        flags: Flags,
        folder: Path,
        stop: StopSignal,
        logger: Logger,
        on_evaluation: Listener | None = None,
    ) -> None:
        self.settings, self.flags, self.folder, self.stop = settings, flags, folder, stop
        self.logger, self.on_evaluation = logger, on_evaluation
        self.bar: ProgressBar | None = None
        self.saved_step: int | None = None  # of the last snapshot
        self.saved = self.warned = False

    def start(
        self, env: Environment, model: FlatModel, progress: Progress, parts: Parts, resumed: bool
    ) -> None:
        """Say that a run begins or goes on; `parts` is what `save_state` saves beside `progress`.

        `env` and `model` are what the pictures show.
        """
        self.env, self.model, self.progress, self.parts = env, model, progress, parts
        self.first_step, self.first_seconds = progress.step, progress.seconds
        if resumed:
            log(f"Resumed {self.folder} at step {self.first_step}")
        else:
            log(f"Created {self.folder}")
            log(f"Seed {self.settings.seed}")
        saved = kept(self.settings, self.flags, Use.SAVE)
        self.config = configuration(saved, progress.command, env)
        attempt(write_json, self.folder / CONFIG_FILE, self.config)
        columns = kept(self.settings, self.flags, Use.HPARAMS)
        self.logger.log_start(self.first_step, self.config, columns)
        self.bar = ProgressBar(self.settings.max_steps, "steps", initial=self.first_step)
        gc.freeze()  # what is loaded by now stays: nothing is gained by walking through it
        self.now = self.last_save = time.perf_counter()
        self.save_seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether no step is left to take."""
        return self.progress.finished(self.settings)

    def steps(self) -> Iterator[int]:
        """Yield the number of each step to take, until the run is finished or stopped."""
        while not (self.finished or self.stop.number):
            self.progress.step += 1
            yield self.progress.step
            if self.now > self.last_save + max(SAVE_SECONDS, self.save_seconds / SAVE_SHARE):
                self._save_state()

    def is_due(self, every: int) -> bool:
        """Whether this step is the last or a multiple of `every`; 0 means never."""
        step = self.progress.step
        return every > 0 and (step % every == 0 or step == self.settings.max_steps)

    def log_step(self, episode: Episode, ended: bool) -> None:
        """Print and plot the step's episode: at its end now and then, or if it doesn't end."""
        progress, every = self.progress, self.settings.log_every
        step, steps = progress.step, len(episode.actions)
        episode.seconds += self._lap()
        if ended:
            self._bar_reach("return", episode.episode_return)
            progress.best_return = max(progress.best_return, episode.episode_return)
            progress.worst_return = min(progress.worst_return, episode.episode_return)
            if step // every > (step - steps) // every:
                self.logger.log_episode(episode, step, progress.loss)
        elif steps % max(every, SILENT_STEPS) == 0:
            self._bar_reach("return", episode.episode_return)
            self.logger.log_running_episode(episode, step, progress.loss)

    def log_evaluation(self, returns: list[float], episode_number: int) -> float:
        """Print, plot and keep the result of an evaluation; save the best snapshot so far.

        Args:
            returns: of its episodes.
            episode_number: of the training episode in which it took place.

        Returns:
            the mean of the returns, NaN if there are none.
        """
        progress, weights = self.progress, self.model.averaged_weights()
        observations = progress.q_validation_observations
        episode_return_avg = float(np.mean(returns)) if returns else math.nan
        avg_max_q_value = math.nan
        if len(observations):
            avg_max_q_value = float(q_function(weights, observations).max(axis=1).mean())
        averages = episode_return_avg, avg_max_q_value
        self.logger.log_evaluation(episode_number, progress.step, *averages)
        self._warn_of_few(len(returns))
        self._bar_reach("evaluation", episode_return_avg)
        self._lap()
        progress.evaluations.append(
            [progress.step, episode_number, len(returns), *averages, round(progress.seconds, 3)]
        )
        attempt(self._write_evaluations, self.folder / EVALUATIONS_FILE)
        if episode_return_avg > progress.best_average and self._save_snapshot("best"):
            progress.best_average, progress.best_step = episode_return_avg, progress.step
        if self.on_evaluation:
            self.on_evaluation(progress.step, episode_return_avg)
        self._lap()  # none of it is the next episode's time
        return episode_return_avg

    def log_confirmation(self, returns: list[float], episodes: int) -> None:
        """Say and keep what fresh episodes return after an evaluation that reached `until`.

        Only all of the `episodes` confirm it: one that doesn't end is left out of the returns.
        """
        average = float(np.mean(returns)) if len(returns) == episodes else -math.inf
        reached = "reached" if average >= self.settings.until else "not reached"
        if len(returns) < episodes:
            log(f"fresh episode {len(returns) + 1} of {episodes} doesn't end: --until {reached}")
        else:
            log(f"{episodes} fresh episodes return {average:.3f}: --until {reached}")
        self.progress.confirmed_average = max(self.progress.confirmed_average, average)
        if average >= self.settings.until:  # sweeps look it up
            self.config["until_reached"] = True
            attempt(write_json, self.folder / CONFIG_FILE, self.config)
        self._lap()

    def save(self) -> None:
        """Save a snapshot, and the state that `--resume` goes on from; plot what was learned."""
        if self.env.observation_size == 2 and not self.stop.number:
            self._log_pictures()
        saved = self._save_snapshot(self.progress.step)
        self.saved = self._save_state() and saved
        self.saved_step = self.progress.step

    def finish(self) -> None:
        """Save once more where the last step wasn't saved; TrainingError if that failed."""
        if self.saved_step != self.progress.step:
            self.save()
        if self.bar is not None:
            self.bar.reach(self.progress.step)
        if not self.saved:
            raise TrainingError(f"the last snapshot or state couldn't be saved in {self.folder}")

    def _save_state(self) -> bool:
        self._lap()
        started = self.now
        self.env.come_back()
        path, settings = self.folder / STATE_FILE, kept(self.settings, self.flags, Use.SAVE)
        saved = attempt(save_state, path, settings, self.progress, self.parts)
        self._lap()
        self.last_save, self.save_seconds = self.now, self.now - started
        return saved

    def _save_snapshot(self, label: str | int) -> bool:
        if not np.isfinite(self.model.theta.numpy()).all():
            raise TrainingError(diverged(self.progress.step))
        self.env.come_back()
        path = self.folder / f"{run_name(self.folder)}-{label}.h5"
        origin = kept(self.settings, self.flags, Use.SNAPSHOT) | {"step": self.progress.step}
        return attempt(save_snapshot, path, self.model.as_keras(), origin)

    def _write_evaluations(self, path: Path) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([EVALUATION, *self.progress.evaluations])
        write_text(path, text.getvalue())

    def _warn_of_few(self, episodes: int) -> None:
        if episodes >= FEW_EPISODES or self.warned:
            return
        self.warned = True
        if episodes:
            number = "1 episode says" if episodes == 1 else f"{episodes} episodes say"
            log(f"warning: {number} little about a policy; a larger --eval-steps plays more")
        else:
            log(
                "warning: the evaluation's episode didn't end; give the environment a time limit, "
                "such as --set max_episode_steps=1000"
            )

    def _log_pictures(self) -> None:
        from harness import plots  # imports Matplotlib, which --help must not wait for

        weights = self.model.averaged_weights()
        pictures = plots.draw_pictures(self.env, lambda states: q_function(weights, states))
        if pictures:
            self.logger.log_images(self.progress.step, plots.SIZE, pictures)

    def _bar_reach(self, name: str, result: float) -> None:
        if self.bar is not None:
            self.bar.reach(self.progress.step, name, result)

    def _lap(self) -> float:
        """The seconds since the last call, counted as trained."""
        last, self.now = self.now, time.perf_counter()
        self.progress.seconds += self.now - last
        return self.now - last

    def __enter__(self) -> "TrainingRun":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gc.unfreeze()
        self.logger.close()
        if self.bar is not None:
            self.bar.close()


def configuration(settings: Mapping[str, Any], command: str, env: Environment) -> dict[str, Any]:
    """What config.json says of a run: its settings, the command that started it, versions."""
    packages = ("tensorflow", "keras", env.package, "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions["python"] = platform.python_version()
    return {**settings, "command": command, "package": env.package, "versions": versions}
