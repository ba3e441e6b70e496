"""Watching an agent: in gym's window, as an animated GIF, as PNG frames, or in numbers only."""

import contextlib
import os
import tempfile

import numpy as np

from harness.environments import make_environment, names
from harness.errors import UsageError
from harness.frames import gif_file, png_files
from harness.terminal import ProgressBar, log


class EndOfWatching(Exception):  # noqa: N818, it isn't an error
    """Ctrl-C, or a closed window."""


@contextlib.contextmanager
def window():
    """Keep the title of gym's window up to date; its close button, Escape and q end watching."""
    import pygame

    # SDL's own error names no remedy, and without a display it may pick a hidden driver.
    hidden = ("dummy", "offscreen")
    with contextlib.suppress(pygame.error):
        pygame.display.init()
    visible = pygame.display.get_init() and pygame.display.get_driver() not in hidden
    if not visible and os.environ.get("SDL_VIDEODRIVER") not in hidden:
        raise UsageError(
            "there is no display to open a window on; try --gif FILE, --images, or, "
            "for a trained policy, --eval"
        )

    def draw(env):
        title = f"{env.env.spec.id}: episode {env.episode}, return {env.episode_return:g}"
        if env.action is not None:
            title += f", {names(env.env)[1][env.action]}"
        pygame.display.set_caption(title)
        for event in pygame.event.get():
            key = event.type == pygame.KEYDOWN and event.key
            if event.type == pygame.QUIT or key in (pygame.K_ESCAPE, pygame.K_q):
                raise EndOfWatching

    yield draw


class WatchedEnvironment:
    """A gym environment that draws every step and prints the return of every episode.

    `returns` lists those of the completed episodes; the other attributes describe the running one.
    """

    def __init__(self, env, draw, bar, stop, seed):
        self.env, self.draw, self.bar, self.stop = env, draw, bar, stop
        self.rng = np.random.default_rng(seed)
        self.action_space = env.action_space
        self.action_space.seed(seed)
        self.episode, self.returns = 0, []

    def reset(self):
        """Begin the next episode, with a seed of its own; return what gym's `reset` does."""
        result = self.env.reset(seed=int(self.rng.integers(2**31)))
        self.episode, self.step_number, self.episode_return = self.episode + 1, 0, 0.0
        self.action, self.ended = None, False
        self.draw(self)
        return result

    def step(self, action):
        """Take one step; return what gym's `step` does."""
        result = _, reward, terminated, truncated, _ = self.env.step(action)
        self.action, self.ended = action, terminated or truncated
        self.step_number += 1
        self.episode_return += float(reward)
        if self.ended:
            self.returns.append(self.episode_return)
            log(f"episode {self.episode} return {self.episode_return:.1f}")
            self.bar.reach(self.episode)
        self.draw(self)
        if self.stop.number:
            raise EndOfWatching
        return result


@contextlib.contextmanager
def watching(settings, stop):
    """Yield a WatchedEnvironment; Ctrl-C or closing the window ends the `with` without an error.

    Args:
        settings: Namespace of `env`, `episodes`, and those of `seed`, `set`, `force`, `gif`,
            `images` and `eval` that were given; without the last three, a window opens.
        stop: StopSignal.

    Raises:
        UsageError: if there is no display for a window, or a picture can't be written.
    """
    given = vars(settings)
    gif, images, force = given.get("gif"), given.get("images"), given.get("force")
    if gif is not None and images:
        raise UsageError("--gif and --images can't be combined; choose one")
    if gif is not None:
        render_mode, drawing = "rgb_array", gif_file(gif, force)
    elif images:
        render_mode, drawing = "rgb_array", png_files(settings.episodes, force)
    elif given.get("eval"):
        render_mode, drawing = None, contextlib.nullcontext(lambda env: None)
    else:
        render_mode, drawing = "human", window()
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # gym starts pygame's sound, too
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # else SDL complains
    if render_mode != "human":
        os.environ["SDL_VIDEODRIVER"] = "dummy"
    with drawing as draw, ProgressBar(settings.episodes, "episodes", delay=1, leave=False) as bar:
        env = make_environment(settings.env, given.get("set"), render_mode)
        if render_mode and not {render_mode, "rgb_array"} & {*env.metadata.get("render_modes", ())}:
            raise UsageError(f"--env {settings.env}: this environment can't be drawn")
        watched = WatchedEnvironment(env, draw, bar, stop, given.get("seed"))
        with contextlib.closing(env), contextlib.suppress(EndOfWatching):
            yield watched
    returns = watched.returns
    log(f"episode_return_avg {np.mean(returns):.3f}" if returns else "no episode was completed")


def play(settings, stop, policy):
    """Play the episodes that `watching` shows; `policy` is a function of an observation."""
    with watching(settings, stop) as env:
        for _ in range(settings.episodes):
            observation, _ = env.reset()
            terminated = truncated = False
            while not (terminated or truncated):
                observation, _, terminated, truncated, _ = env.step(policy(observation))
