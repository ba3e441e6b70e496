"""What surrounds the training loop: log lines, plots, snapshots, the state, and the clock."""

import contextlib
import csv
import gc
import importlib.metadata
import io
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from harness.diagnosis import new_findings
from harness.environments import Environment
from harness.errors import TrainingError, diverged
from harness.film import Film
from harness.log_folder import (
    CONFIG_FILE,
    EVALUATIONS_FILE,
    RESULT_FILE,
    STATE_FILE,
    create_log_folder,
    locked,
    run_name,
)
from harness.network import FlatModel, QFunction
from harness.settings import RunSettings, command_of_run, kept
from harness.snapshots import save_snapshot
from harness.start import Resumed
from harness.state import Parts, Progress, restore, save_state
from harness.terminal import ProgressBar, log
from harness.whole_files import attempt, write_json, write_text

EVALUATION = (
    *("step", "training_episode", "evaluation_episodes", "episode_return_avg"),
    *("lower_quartile", "upper_quartile", "avg_max_q_value", "seconds"),
)
SILENT_STEPS = 2000  # of an episode that doesn't end, after which a line says where the run is
LAST_STEPS = 1000  # most steps that a run takes after its end, to save its state at an episode's
SAVE_SECONDS = 60  # the state is saved at least this often
SAVE_SHARE = 0.01  # … or less often: saving by the clock may take this share of the time

FILM = 5  # purpose of the random numbers of its episodes, beside those of run.py

Logger = Any  # loggers.TensorBoardLogger, which this package doesn't import
Stop = Any  # harness.terminal.StopSignal, or anything with a `number`
OnEvaluation = Callable[[int, float], None]  # is told the step and the mean of each evaluation


class TrainingRun:
    """Prints, plots and saves what the training loop tells it, and keeps the time.

    It changes nothing that decides what is learned.

    Attributes:
        folder: Path of the log folder, absolute, whatever folder the environment goes to.
        progress: Progress, where the run is.
        first_step, first_seconds: where this process took over.
        over: whether all steps are taken, or `until` is reached.
    """

    def __init__(
        self,
        settings: RunSettings,
        env: Environment,
        parts: Parts,
        q_function: Callable[[], QFunction],
        make_logger: Callable[[Path], Logger],
        evaluate: Callable[..., object],
        stop: Stop | None = None,
        resumed: Resumed | None = None,
        on_evaluation: OnEvaluation | None = None,
        place: Path | None = None,
        command: str | None = None,
    ) -> None:
        """Begin a run in a new log folder, or continue one that was stopped.

        Args:
            parts: what `save_state` saves beside `progress`, the FlatModel "model" among it; a
                stopped run's state is given back to them.
            q_function: the Q function of the policy that is evaluated, filmed and drawn, that is,
                of the averaged weights, as it is now.
            evaluate: run.py's, for a film.
            place: where the new log folder is made, by default the current folder.
            command: that repeats the run, for config.json; by default one of all its settings.
        """
        self.settings, self.env, self.q_function = settings, env, q_function
        self.parts, self.model, self.evaluate = parts, cast(FlatModel, parts["model"]), evaluate
        self.stop, self.on_evaluation = stop, on_evaluation
        self._stack = contextlib.ExitStack()
        self.film: Film | None = None
        if settings.film:
            film = Film(settings.film, settings.env, settings.set, settings.max_steps)
            self.film = self._stack.enter_context(film)
        if resumed:
            self.shown, self.progress = resumed.folder, resumed.state.progress
            restore(resumed.state, parts, env.observation_size)
        else:
            self.shown = create_log_folder(settings.name, place=place)
            self.progress = Progress(command or command_of_run(settings))
        self.folder = self.shown.absolute()
        if not resumed:
            self._stack.enter_context(locked(self.folder))
        self.first_step, self.first_seconds = self.progress.step, self.progress.seconds
        self.over = self.saved = False
        self.saved_step: int | None = None  # of the last snapshot
        self.state_step = self.first_step  # of the last state
        self.episode_steps, self.episode_return, self.episode_seconds = 0, 0.0, 0.0
        if resumed:
            log(f"Resumed {self.shown} at step {self.first_step}")
        else:
            log(f"Created {self.shown}")
            log(f"Seed {settings.seed}")
        (self.folder / RESULT_FILE).unlink(missing_ok=True)
        config = configuration(kept(settings, "config"), self.progress.command, env)
        attempt(write_json, self.folder / CONFIG_FILE, config)
        self.logger = make_logger(self.folder)
        self.logger.log_start(self.first_step + 1, config, kept(settings, "hparams"))
        self.bar = ProgressBar(settings.max_steps, "steps", initial=self.first_step)
        gc.freeze()  # what is loaded by now stays: nothing is gained by walking through it
        self.now = time.perf_counter()
        self.last_save = -math.inf  # the first is saved soon: a run that is killed early goes on
        self.save_seconds = 0.0
        self._film_episode()

    @property
    def finished(self) -> bool:
        """Whether the run has taken all its steps, or has reached `until`."""
        progress, settings = self.progress, self.settings
        return progress.step >= settings.max_steps or progress.reached(settings.until)

    def steps(self) -> Iterator[int]:
        """Yield the number of each step to take, and save where the run ends.

        That is where all steps are taken, `until` is reached or a signal has come. Its state is
        saved at the end of an episode. So the running episode is finished first, if that takes no
        more than LAST_STEPS: as a longer run would take them, so that this one can become it.
        """
        ends_at: int | None = None
        while True:
            if self.finished and not self.over:
                self.over = True
                self._diagnose()
                self.save()
                self._film_episode(ended=True)
            if ends_at is None and (self.over or (self.stop and self.stop.number)):
                ends_at = self.progress.step
            if ends_at is not None and (
                not self.episode_steps
                or self.progress.step - ends_at >= LAST_STEPS
                or (self.over and self._is_next_step_due())
            ):
                break
            self.progress.step += 1
            yield self.progress.step
            saving_pays = self.now > self.last_save + self.save_seconds / SAVE_SHARE
            if not self.episode_steps and self.now > self.last_save + SAVE_SECONDS and saving_pays:
                self._save_state()
        if not self.over:
            self.save()
            self._film_episode(ended=True)
        if not self.episode_steps:
            self.saved &= self._save_state()
        self._end()

    def is_due(self, every: int) -> bool:
        """Whether this step is the last or a multiple of `every`; 0 means never."""
        step = self.progress.step
        return (
            not self.over and every > 0 and (step % every == 0 or step == self.settings.max_steps)
        )

    def _is_next_step_due(self) -> bool:
        """Whether a longer run would evaluate or save a snapshot after the next step."""
        step = self.progress.step + 1
        settings = self.settings
        return any(
            every > 0 and step % every == 0
            for every in (settings.eval_every, settings.snapshot_every)
        )

    def log_step(self, reward: float, episode_ended: bool) -> None:
        """Count a step; print and plot its episode: at its end now and then, or if it doesn't end.

        Args:
            reward: of the step.
        """
        progress, every = self.progress, self.settings.log_every
        self.episode_steps += 1
        self.episode_return += reward
        self.episode_seconds += self._lap()
        if not progress.least_reward <= reward <= progress.largest_reward:
            progress.least_reward = min(progress.least_reward, reward)
            progress.largest_reward = max(progress.largest_reward, reward)
        step, steps = progress.step, self.episode_steps
        episode = progress.episode, steps, self.episode_return, self.episode_seconds
        if episode_ended:
            progress.episode_steps.append(step)
            progress.episode_returns.append(self.episode_return)
            self.bar.reach(step, "return", self.episode_return)
            if step // every > (step - steps) // every:
                self.logger.log_episode(step, progress.loss, *episode)
            self.episode_steps, self.episode_return, self.episode_seconds = 0, 0.0, 0.0
        elif steps % max(every, SILENT_STEPS) == 0:
            self.bar.reach(step, "return", self.episode_return)
            self.logger.log_episode(step, progress.loss, *episode, ended=False)
        self._film_episode()

    @contextlib.contextmanager
    def evaluation_bar(self, steps: int, episodes: int) -> Iterator[ProgressBar | None]:
        """A listener that shows how far an evaluation is that takes more than a second."""
        total, unit = (steps, "steps") if steps else (episodes, "episodes")
        with ProgressBar(total, unit, desc="evaluation", delay=1, leave=False) as bar:
            yield bar if sys.stdout.isatty() else None  # a listener costs time in each step

    def log_evaluation(
        self, returns: list[float], episode_return_avg: float, avg_max_q_value: float
    ) -> None:
        """Print, plot and keep the result of an evaluation.

        Args:
            returns: of its episodes.
            episode_return_avg: their mean, NaN if there are none.
            avg_max_q_value: NaN where there are no observations to average over yet.
        """
        progress = self.progress
        self.logger.log_evaluation(
            progress.episode, progress.step, episode_return_avg, avg_max_q_value
        )
        self.bar.reach(progress.step, "evaluation", episode_return_avg)
        self._lap()
        quartiles = np.quantile(returns, (0.25, 0.75)) if returns else (math.nan, math.nan)
        progress.evaluations.append(
            [
                *(progress.step, progress.episode, len(returns), episode_return_avg),
                *map(float, quartiles),
                *(avg_max_q_value, round(progress.seconds, 3)),
            ]
        )
        attempt(self._write_evaluations, self.folder / EVALUATIONS_FILE)
        self._diagnose()
        if self.on_evaluation:
            self.on_evaluation(progress.step, episode_return_avg)
        self._lap()  # none of it is the next episode's time

    def log_confirmation(self, returns: list[float], episodes: int) -> None:
        """Say and keep what fresh episodes return after an evaluation that reached `until`.

        Only all of the `episodes` confirm it: one that doesn't end is left out of the returns.
        """
        until = self.settings.until
        average = float(np.mean(returns)) if len(returns) == episodes else -math.inf
        self.progress.confirmed_average = max(self.progress.confirmed_average, average)
        reached = "reached" if self.progress.reached(until) else "not reached"
        if len(returns) < episodes:
            log(f"fresh episode {len(returns) + 1} of {episodes} doesn't end: --until {reached}")
        else:
            log(f"{episodes} fresh episodes return {average:.3f}: --until {reached}")
        self._lap()

    def save_best(self, episode_return_avg: float) -> None:
        """Save the snapshot of an evaluation that is the best so far."""
        if self._save_snapshot("best"):
            self.progress.best_average = episode_return_avg
            self.progress.best_step = self.progress.step
        self._lap()

    def save(self) -> None:
        """Save a snapshot; draw what was learned; save the state when the episode ends."""
        if self.saved_step == self.progress.step:
            return
        self.saved = self._save_snapshot(str(self.progress.step))
        self.saved_step = self.progress.step
        self.last_save = -math.inf
        self._draw()
        self._lap()

    def _save_state(self) -> bool:
        self._lap()
        started = self.now
        path = self.folder / STATE_FILE
        saved = attempt(save_state, path, kept(self.settings, "config"), self.progress, self.parts)
        if saved:
            self.state_step = self.progress.step
        self._lap()
        self.last_save, self.save_seconds = self.now, self.now - started
        return saved

    def _save_snapshot(self, label: str) -> bool:
        if not np.isfinite(self.model.theta.numpy()).all():
            raise TrainingError(diverged(self.progress.step))
        name = f"{run_name(self.folder)}-{label}.h5"
        origin = kept(self.settings, "snapshot") | {"step": self.progress.step}
        saved = attempt(save_snapshot, self.folder / name, self.model.as_keras(), origin)
        if saved:
            log(f"Saved {self.shown / name}")
        return saved

    def _write_evaluations(self, path: Path) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([EVALUATION, *self.progress.evaluations])
        write_text(path, text.getvalue())

    def _film_episode(self, ended: bool = False) -> None:
        if self.film and (ended or not self.over) and self.film.is_due(self.progress.step, ended):
            with self.film.scene(self.progress.step):
                seed = self.settings.seed, FILM  # all episodes begin alike
                self.evaluate(self.film.env, self.q_function(), seed, listener=self.film)
            self._lap()

    def _diagnose(self) -> None:
        """Say what is going wrong, once."""
        threshold, limit = self.env.reward_threshold, self.env.time_limit
        for line in new_findings(self.progress, self.settings, threshold, limit):
            if not self.finished:  # else it is one of the closing lines
                log(f"warning: {line}")

    def _draw(self) -> None:
        """Draw the run, and what it has learned."""
        from harness import plots  # imports Matplotlib, which --help must not wait for

        q_function = self.q_function()
        pictures = plots.attempt_picture(plots.draw_pictures, self.env, q_function)
        if pictures:
            self.logger.log_images(self.progress.step, plots.SIZE, pictures)
        path = self.folder / f"{run_name(self.folder)}.png"
        facts = self.progress, self.settings, self.env, q_function
        plots.attempt_picture(plots.draw_run, path, *facts)

    def _end(self) -> None:
        """Leave the result; TrainingError if the last save failed."""
        self.bar.reach(min(self.progress.step, self.settings.max_steps))
        attempt(write_json, self.folder / RESULT_FILE, self.result())
        if not self.saved:
            raise TrainingError(f"the last snapshot or state couldn't be saved in {self.shown}")

    def result(self) -> dict[str, Any]:
        """What result.json says of the run."""
        progress = self.progress
        last = progress.evaluations[-1][3] if progress.evaluations else math.nan
        found = math.isfinite(progress.best_average)
        return {
            "status": "finished" if self.finished else "stopped",
            "step": self.saved_step,
            "episode_return_avg": last if math.isfinite(last) else None,
            "best": progress.best_average if found else None,
            "best_step": progress.best_step if found else None,
            "until_reached": progress.reached(self.settings.until),
            "seconds": round(progress.seconds, 3),
            "diagnosis": progress.diagnosis,
        }

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
        self.bar.close()
        self._stack.close()
        if error is not None:
            failed = self.result() | {"status": "failed", "step": self.progress.step}
            attempt(write_json, self.folder / RESULT_FILE, failed)


def configuration(settings: Mapping[str, Any], command: str, env: Environment) -> dict[str, Any]:
    """What config.json says of a run: its settings, the command that started it, versions."""
    packages = ("tensorflow", "keras", env.package, "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions["python"] = platform.python_version()
    return {**settings, "command": command, "package": env.package, "versions": versions}
