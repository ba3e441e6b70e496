"""A film of a policy that learns: one greedy episode at twelve moments of a run, in one GIF."""

import contextlib
import functools
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from harness.environments import make_environment
from harness.errors import EnvironmentFault, UsageError, reason, usage_error
from harness.gif import GifWriter, frame_seconds, picture_of
from harness.terminal import log
from harness.watching import EndOfWatching, copy_to, hidden_windows, new_gif, own_randomness
from harness.whole_files import write_file

MOMENTS = 12  # that are filmed, the start and the end among them
SPEED = 3  # times the environment's own
FRAME_SECONDS = 0.045  # of a frame in the film; the steps between are left out
PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.8, 2.5  # at an episode's end, and at the film's
MOST_FRAMES = 250  # of an episode, which is left then
MOST_PIXELS = 300  # of a frame's width and height; larger pictures are scaled down
CAPTION_PIXELS, FONT_PIXELS = 24, 15
PAPER, INK = "white", "black"


class Film:
    """Films the policy at twelve moments: at the start, at the end, and more often early.

    It is a listener of `evaluate`, and a `with` that writes the film at its end, however that
    came about. What can't be drawn or written later than at the start is a warning.

        if film.is_due(step):
            with film.scene(step):
                evaluate(film.env, q_function, seed, listener=film)

    Attributes:
        env: an Environment of the film's own.
        moments: the steps of the run at which a scene is due, in order; those past are removed.
    """

    def __init__(
        self,
        path: str | Path,
        env_id: str,
        changes: Mapping[str, Any] | None,
        max_steps: int,
    ) -> None:
        """Make the environment and draw it once, so that what can't be filmed is refused now.

        Args:
            path: of the GIF, which is written at the end.
            changes: of the environment, as `make_environment` takes them.
            max_steps: of the run.

        Raises:
            UsageError: if the environment can't be drawn, or the file can't be written.
            EnvironmentCrash: if the environment's own code fails.
        """
        self._name, self._path = path, new_gif("--film", path, force=False)
        # Squares: learning happens early (`tuned` solves MountainCar at an eighth of its run).
        last = MOMENTS - 1
        self.moments = sorted({round(max_steps * (n / last) ** 2) for n in range(MOMENTS)})
        self._step = -1  # of the run, in the latest scene
        self._episode_step, self._return, self._frames = 0, 0.0, 0
        self._last_frame: Image.Image | None = None  # of the latest scene
        self._due, self._written = True, False
        with contextlib.ExitStack() as stack:
            stack.enter_context(hidden_windows())
            with usage_error(f"--film: can't write {path}"):
                file = tempfile.TemporaryFile(dir=self._path.parent)
            self._file = stack.enter_context(file)
            with own_randomness(0):
                self.env = make_environment(env_id, changes, "rgb_array")
                stack.callback(self.env.close)
                self.env.reset(seed=0)
                picture_of(self.env)
            self._open = stack.pop_all()
        self._gif = GifWriter(self._file)
        self._seconds = frame_seconds(self.env) / SPEED  # of a step
        self._every = max(1, round(FRAME_SECONDS / self._seconds))

    def is_due(self, step: int, ended: bool = False) -> bool:
        """Whether a scene is to be filmed at a step of the run, and wasn't yet.

        Args:
            ended: whether the run is over; then it is, wherever the run ended.
        """
        if not self._due or step == self._step:
            return False
        return ended or (bool(self.moments) and step >= self.moments[0])

    @contextlib.contextmanager
    def scene(self, step: int) -> Iterator["Film"]:
        """Film what the `with` plays, at a step of the run.

        A failure to draw or to write is a warning, and no further scene is due. The random numbers
        of the process are as before after it.
        """
        self._step = step
        self.moments = [moment for moment in self.moments if moment > step]
        try:
            with own_randomness(0):
                yield self
        except EndOfWatching:
            pass
        except (UsageError, EnvironmentFault) as error:
            self._due = False
            cause = f" {error.__cause__}" if error.__cause__ else ""
            log(f"warning: --film ends here: {error}{cause}; training goes on")
        except (OSError, MemoryError) as error:
            self._give_up(error)

    def reset(self) -> None:
        """Show the begin of an episode."""
        self._episode_step, self._return, self._frames = 0, 0.0, 0
        self._show(is_last=False)

    def step(self, action: int, reward: float, ended: bool) -> None:
        """Show a step, if it is one of those shown.

        Raises:
            EndOfWatching: if the episode is too long to be shown to its end.
        """
        self._episode_step += 1
        self._return += reward
        too_long = self._frames == MOST_FRAMES
        if ended or self._episode_step % self._every == 0:
            self._show(is_last=ended or too_long)
            if too_long:
                raise EndOfWatching

    def finish(self) -> None:
        """Write the film as far as it goes, and close the environment; a second time, nothing."""
        with self._open:
            filmed = self._last_frame or self._gif.waiting
            if filmed and not self._written:
                try:
                    if self._last_frame:
                        self._gif.add(self._last_frame, LAST_PAUSE_SECONDS)
                    self._gif.end()
                    write_file(self._path, lambda part: copy_to(part, self._file))
                    log(f"Saved {self._name}")
                except (OSError, MemoryError) as error:
                    self._give_up(error)
        self._due, self._written = False, True

    def _show(self, is_last: bool) -> None:
        """Add a frame; the last one of a scene waits, since it may be the film's."""
        picture = captioned(picture_of(self.env), self._step, self._return)
        if self._last_frame:
            self._gif.add(self._last_frame, PAUSE_SECONDS)
        self._last_frame = picture if is_last else None
        if not is_last:
            self._gif.add(picture, self._seconds * self._every)
        self._frames += 1

    def _give_up(self, error: OSError | MemoryError) -> None:
        log(f"warning: --film: can't write {self._name}: {reason(error)}; training goes on")
        self._due, self._written = False, True

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()


@functools.cache
def caption_font() -> Any:
    """Pillow's own font."""
    return ImageFont.load_default(FONT_PIXELS)


def captioned(picture: Image.Image, step: int, episode_return: float) -> Image.Image:
    """A picture, scaled down if it is large, with the run's step and the return below it."""
    # Means of whole blocks, in a tenth of the time of a `resize`.
    picture = picture.reduce(math.ceil(max(picture.size) / MOST_PIXELS))
    width, height = picture.size
    whole = Image.new("RGB", (width, height + CAPTION_PIXELS), PAPER)
    whole.paste(picture)
    draw = ImageDraw.Draw(whole)
    font = caption_font()
    middle = height + CAPTION_PIXELS // 2
    draw.text((6, middle), f"after {step:,} steps", INK, font, "lm")
    draw.text((width - 6, middle), f"return {episode_return:g}", INK, font, "rm")
    return whole
