"""What surrounds the training loop: log lines, plots, snapshots, the state, and the clock."""

import csv
import gc
import io
import math
import time

import numpy as np

from harness.errors import TrainingError, finite
from harness.log_folder import run_name
from harness.network import q_function
from harness.report import configuration
from harness.settings import plain
from harness.snapshots import save_snapshot
from harness.state import STATE_FILE, Episode, Progress, restore, save_state
from harness.terminal import ProgressBar, log
from harness.whole_files import attempt, write_json, write_text

EVALUATIONS_FILE = "evaluations.csv"
# Settings that a snapshot and TensorBoard's HPARAMS leave out.
PRIVATE = {"command", "model", "name", "threads", "train", "until"}
EVALUATION = ("step", "episode", "episode_return_avg", "avg_max_q_value", "seconds")


class TrainingRun:
    """The training loop tells it what happened; it decides what to print, plot and save.

    Attributes:
        progress: Progress, where the run is.
        first_step, first_seconds: where this process took over.
    """

    def __init__(self, settings, folder, stop, logger, parts):
        """`parts`: dict of the rng, replay_buffer, model and target_model, for `save_state`."""
        self.settings, self.folder, self.stop, self.logger = settings, folder, stop, logger
        self.parts, self.rng = parts, parts["rng"]
        self.model, self.replay_buffer = parts["model"], parts["replay_buffer"]
        # Drawn at the latest when the first evaluation needs them, but not from an empty buffer.
        first_evaluation = min(settings.eval_every or settings.max_steps, settings.max_steps)
        self.q_validation_step = max(
            min(settings.q_validation_size, first_evaluation), settings.n_step
        )
        self.saved_step = None
        self.bar = None

    def start(self, env, state=None):
        """Begin at step 0, or where `state` (of `load_state`) ends.

        Returns:
            the observation there, float32, and its Q values.
        """
        self.env, episode = env, Episode(1, self.draw_seed())
        observation = episode.replay(env)
        q_values = q_function(self.model.get_weights(), observation)
        self.progress = Progress(episode, q_values, np.zeros((0, *observation.shape), np.float32))
        if state:
            self.progress, observation = restore(state, self.progress, self.parts, env)
        self.first_step, self.first_seconds = self.progress.step, self.progress.seconds
        self.model.keras_model.summary(print_fn=lambda text: log(text.rstrip()))
        resumed = f"Resumed {self.folder} at step {self.first_step}"
        log(resumed if state else f"Created {self.folder}\nSeed {self.settings.seed}")
        config = configuration(self.settings)
        attempt(write_json, self.folder / "config.json", config)
        columns = plain(self.settings).keys() - PRIVATE - {"seed"}
        self.logger.log_start(self.first_step, config, columns)
        self.bar = ProgressBar(self.settings.max_steps, "steps", initial=self.first_step)
        gc.freeze()  # what is loaded by now stays: nothing is gained by walking through it
        self.now = time.perf_counter()
        return observation, self.progress.q_values

    def draw_seed(self):
        """A seed for the next episode: with it, `env.reset` starts the same episode again."""
        self.next_seed = int(self.rng.integers(2**31))
        return self.next_seed

    @property
    def finished(self):
        """Whether no step is left to take."""
        return self.progress.finished(self.settings)

    def is_due(self, every):
        """Whether this step is the last or a multiple of `every`; 0 means never."""
        step = self.progress.step
        return every and (step % every == 0 or step == self.settings.max_steps)

    def steps(self):
        """Yield the number of each step to take, until the run is finished or stopped."""
        while not (self.finished or self.stop.number):
            self.progress.step += 1
            yield self.progress.step

    def log_step(self, action, reward, episode_ended, loss, q_values):
        """Count a step; if it ended the episode, print and plot that now and then.

        Args:
            loss, q_values: what `fit_and_predict` returned, or stands in for it.
        """
        progress = self.progress
        episode, step = progress.episode, progress.step
        progress.loss, progress.q_values = float(loss), q_values
        episode.actions.append(action)
        episode.episode_return += float(reward)
        episode.seconds += self._lap()
        self.episode_number = episode.number
        if step == self.q_validation_step:
            progress.q_validation_observations = self.replay_buffer.draw_observations(
                self.settings.q_validation_size, seed=[self.settings.seed, 2]
            )
        if episode_ended:
            self.bar.reach(step, "return", episode.episode_return)
            every = self.settings.log_every
            if step // every > (step - len(episode.actions)) // every:
                self.logger.log_episode(episode, step, progress.loss)
            progress.best_return = max(progress.best_return, episode.episode_return)
            progress.worst_return = min(progress.worst_return, episode.episode_return)
            progress.episode = Episode(episode.number + 1, self.next_seed)
            progress.repeats_left = 0

    def log_evaluation(self, episode_return_avg):
        """Print, plot and keep the result of an evaluation; save the best snapshot so far."""
        progress, weights = self.progress, self.model.averaged_weights()
        max_q_values = q_function(weights, progress.q_validation_observations).max(axis=1)
        avg_max_q_value = float(max_q_values.mean()) if len(max_q_values) else math.nan
        results = episode_return_avg, avg_max_q_value
        self.logger.log_evaluation(self.episode_number, progress.step, *results)
        from harness import plots  # imports Matplotlib, which --help must not wait for

        pictures = plots.draw_pictures(self.env, lambda states: q_function(weights, states))
        if pictures:
            self.logger.log_images(progress.step, plots.SIZE, pictures)
        self.bar.reach(progress.step, "evaluation", episode_return_avg)
        self._lap()
        progress.evaluations.append(
            [progress.step, self.episode_number, *results, round(progress.seconds, 3)]
        )
        attempt(self._write_evaluations, self.folder / EVALUATIONS_FILE)
        if episode_return_avg > progress.best_average and self._save_snapshot("best"):
            progress.best_average, progress.best_step = episode_return_avg, progress.step

    def save(self):
        """Save a snapshot, and the state that `--resume` goes on from."""
        self._lap()
        state = plain(self.settings), self.progress, self.parts
        saved = self._save_snapshot(self.progress.step)
        self.saved = attempt(save_state, self.folder / STATE_FILE, *state) and saved
        self.saved_step = self.progress.step
        self._lap()

    def finish(self):
        """Save once more where the last step wasn't saved; TrainingError if that failed."""
        if self.saved_step != self.progress.step:
            self.save()
        self.bar.reach(self.progress.step)
        if not self.saved:
            raise TrainingError(f"the last snapshot or state couldn't be saved in {self.folder}")

    def _save_snapshot(self, label):
        progress = self.progress
        finite(self.model.theta.numpy(), progress.step)
        path = self.folder / f"{run_name(self.folder)}-{label}.h5"
        origin = {k: v for k, v in plain(self.settings).items() if k not in PRIVATE}
        origin["step"] = progress.step
        return attempt(save_snapshot, path, self.model.as_keras(), origin)

    def _write_evaluations(self, path):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([EVALUATION, *self.progress.evaluations])
        write_text(path, text.getvalue())

    def _lap(self):
        """The seconds since the last call, counted as trained."""
        last, self.now = self.now, time.perf_counter()
        self.progress.seconds += self.now - last
        return self.now - last

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.logger.close()
        if self.bar is not None:
            self.bar.close()
