"""Watching a policy: in gym's window, as an animated GIF, as PNG frames, or as mere numbers."""

import os
import re
import tempfile
from pathlib import Path

import numpy as np

from arguments import UsageError
from environments import action_names, make_environment
from files import ProgressBar, say, write_file

GIF_COLOURS = 16
GIF_FRAME_MS = 30
GIF_PAUSE_MS = 1500


def watch(
    env_id,
    changes,
    choose_action,
    stop,
    seed,
    episodes,
    eval=False,
    gif=None,
    images=False,
    force=False,
):
    """Play episodes, show them, and print the return of each and `episode_return_avg`.

    Args:
        env_id, changes: as for make_environment.
        choose_action: function of an observation and a numpy Generator, returns an action.
        stop: StopSignal, ends the playing.
        eval, gif, images, force: the flags; with none of the first three, a window opens.

    Raises:
        UsageError: if there is no display for a window, or a picture can't be written.
    """
    if gif and images:
        raise UsageError("--gif and --images exclude each other; choose one")
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # gym starts pygame's sound, too
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # else SDL complains of it
    if gif or images or eval:
        os.environ["SDL_VIDEODRIVER"] = "dummy"
    if gif:
        show = Gif(gif, force)
    elif images:
        show = Images(episodes, force)
    else:
        show = Nothing() if eval else Window(env_id)
    env = make_environment(env_id, changes, show.render_mode)
    with ProgressBar(episodes, "episodes", delay=1, leave=False) as bar:
        returns = list(play(env, choose_action, stop, seed, episodes, show, bar))
    env.close()
    show.close()
    say(f"episode_return_avg {np.mean(returns):.3f}" if returns else "no episode was completed")


def play(env, choose_action, stop, seed, episodes, show, bar):
    """Yield the return of each completed episode; ends early on `stop` or a closed window."""
    rng = np.random.default_rng(seed)
    for episode in range(1, episodes + 1):
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        show.frame(env, episode, 0, 0.0, None)
        step, episode_return, ended = 0, 0.0, False
        while not ended:
            action = choose_action(observation, rng)
            observation, reward, terminated, truncated, _ = env.step(action)
            step, episode_return = step + 1, episode_return + float(reward)
            ended = terminated or truncated
            show.frame(env, episode, step, episode_return, action)
            if stop.number or show.closed:
                return
        say(f"episode {episode} return {episode_return:.1f}")
        bar.reach(episode)
        yield episode_return


class Nothing:
    """Shows nothing: `--eval`."""

    render_mode = None
    closed = False

    def frame(self, env, episode, step, episode_return, action):
        """Called at an episode's start (step 0) and behind every step."""

    def close(self):
        """Called when the last episode is over."""


class Window(Nothing):
    """gym's own window, with the episode, its return so far and the action in the title."""

    render_mode = "human"

    def __init__(self, env_id):
        # SDL's own error names no remedy, and without a display it may pick a hidden driver.
        hidden = ("dummy", "offscreen")
        import pygame

        self.pygame, self.env_id = pygame, env_id
        try:
            pygame.display.init()
            driver = pygame.display.get_driver()
        except pygame.error:
            driver = "dummy"
        if driver in hidden and os.environ.get("SDL_VIDEODRIVER") not in hidden:
            raise UsageError(
                "there is no display to open a window on; try --gif FILE, --images, or, "
                "for a trained policy, --eval"
            )

    def frame(self, env, episode, step, episode_return, action):
        title = f"{self.env_id}: episode {episode}, return {episode_return:g}"
        if action is not None:
            title += f", {action_names(env)[action]}"
        self.pygame.display.set_caption(title)
        self.closed = bool(self.pygame.event.get(self.pygame.QUIT))


class Gif(Nothing):
    """An animated GIF that loops, with a pause at the end of each episode."""

    render_mode = "rgb_array"

    def __init__(self, path, force):
        from PIL import Image

        self.image, self.path = Image, Path(path)
        refuse_existing("--gif", self.path, force)
        if not self.path.parent.is_dir():
            raise UsageError(f"--gif: there is no folder {self.path.parent}")
        if self.path.is_dir():
            raise UsageError(f"--gif: {self.path} is a folder")
        self.frames, self.milliseconds = [], []

    def frame(self, env, episode, step, episode_return, action):
        if step == 0 and self.frames:
            self.milliseconds[-1] = GIF_PAUSE_MS
        picture = self.image.fromarray(env.render())
        if not self.frames:
            self.palette = picture.quantize(GIF_COLOURS, self.image.Quantize.MAXCOVERAGE)
        # One palette for all: what doesn't move stays the same, and takes no room in the file.
        dither = self.image.Dither.NONE
        self.frames.append(picture.quantize(palette=self.palette, dither=dither))
        self.milliseconds.append(GIF_FRAME_MS)

    def close(self):
        self.milliseconds[-1] = GIF_PAUSE_MS
        first, *others = self.frames

        def write(path):
            options = {"save_all": True, "append_images": others, "loop": 0, "optimize": True}
            first.save(path, "GIF", duration=self.milliseconds, **options)

        try:
            write_file(self.path, write)
        except OSError as error:
            raise UsageError(f"--gif: can't write {self.path}: {error.strerror}") from None
        say(f"Saved {self.path}")


class Images(Nothing):
    """PNG frames in the current folder, named `EPISODE_STEP.png`."""

    render_mode = "rgb_array"

    def __init__(self, episodes, force):
        from PIL import Image

        self.image = Image
        for path in sorted(Path().glob("*_*.png")):
            name = re.fullmatch(r"(\d+)_\d+", path.stem)
            if name and int(name[1]) <= episodes:
                refuse_existing("--images", path, force)

    def frame(self, env, episode, step, episode_return, action):
        path = Path(f"{episode}_{step}.png")
        try:
            self.image.fromarray(env.render()).save(path)
        except OSError as error:
            raise UsageError(f"--images: can't write {path}: {error.strerror}") from None


def refuse_existing(flag, path, force):
    """Raise UsageError if `path` exists, unless it may be overwritten."""
    if path.exists() and not force:
        raise UsageError(f"{flag}: {path} exists already; --force overwrites it")
