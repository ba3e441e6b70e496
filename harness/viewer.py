"""Watching an agent: in a window, as an animated GIF, as PNG frames, or in numbers only."""

import contextlib
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from harness.arrays import Array
from harness.environments import (
    PATIENCE,
    Environment,
    check_environment,
    make_environment,
    names,
)
from harness.errors import UsageError
from harness.frames import frame_seconds, gif_file, picture_of, png_files
from harness.terminal import ProgressBar, StopSignal, log

Draw = Callable[["WatchedEnvironment"], None]


class EndOfWatching(Exception):  # noqa: N818, it isn't an error
    """Ctrl-C, or a closed window."""


class WatchedEnvironment:
    """An Environment that draws every step and prints the return of every episode.

    Attributes:
        id, metadata, action_space, observation_size, n_actions, time_limit: the environment's.
        returns: those of the completed episodes.
        episode, step_number, episode_return, action, ended: of the episode that runs.
    """

    def __init__(
        self, env: Environment, draw: Draw, bar: ProgressBar, stop: StopSignal, seed: int | None
    ) -> None:
        self.env, self.draw, self.bar, self.stop = env, draw, bar, stop
        self.id, self.metadata, self.time_limit = env.id, env.metadata, env.time_limit
        self.observation_size, self.n_actions = env.observation_size, env.n_actions
        self.rng = np.random.default_rng(seed)
        self.action_space = env.action_space
        self.action_space.seed(seed)
        self.episode, self.step_number, self.episode_return = 0, 0, 0.0
        self.action: int | None = None
        self.ended = False
        self.returns: list[float] = []

    def reset(self, seed: int | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin the next episode, without a seed given with one of our own; as Environment's."""
        result = self.env.reset(int(self.rng.integers(2**31)) if seed is None else seed)
        self.episode, self.step_number, self.episode_return = self.episode + 1, 0, 0.0
        self.action, self.ended = None, False
        self.draw(self)
        return result

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Take one step, as Environment's."""
        result = _, reward, terminated, truncated, _ = self.env.step(action)
        self.action, self.ended = action, terminated or truncated
        self.step_number += 1
        self.episode_return += reward
        if self.ended:
            self.returns.append(self.episode_return)
            log(f"episode {self.episode} return {self.episode_return:.1f}")
            self.bar.reach(self.episode)
        self.draw(self)
        if self.time_limit is None and self.step_number == PATIENCE:
            log(
                f"episode {self.episode} doesn't end; give the environment a time limit, such as "
                "--set max_episode_steps=1000"
            )
            raise EndOfWatching
        if self.stop.number:
            raise EndOfWatching
        return result

    def render(self) -> Any:
        """What the environment's own `render` returns."""
        return self.env.render()


@contextlib.contextmanager
def window() -> Iterator[Draw]:
    """Keep a window's title up to date; its close button, Escape and q end watching.

    The environment opens the window, or it is ours, for one that draws frames only.
    """
    try:
        import pygame
    except ModuleNotFoundError:
        raise UsageError(
            "a window needs pygame, which isn't installed: pip install pygame"
        ) from None

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
    clock = pygame.time.Clock()

    def show(env: WatchedEnvironment) -> None:
        picture = picture_of(env)
        screen = pygame.display.get_surface()
        if screen is None or screen.get_size() != picture.size:
            screen = pygame.display.set_mode(picture.size)
        screen.blit(pygame.image.frombytes(picture.tobytes(), picture.size, "RGB"), (0, 0))
        pygame.display.flip()
        clock.tick(1 / frame_seconds(env))

    def draw(env: WatchedEnvironment) -> None:
        if env.env.render_mode == "rgb_array":
            show(env)
        if (env.episode, env.step_number) == (1, 0):
            log("q or Escape closes the window")
        title = f"{env.env.spec.id}: episode {env.episode}, return {env.episode_return:g}"
        if env.action is not None:
            title += f", {names(env.env)[1][env.action]}"
        pygame.display.set_caption(title)
        for event in pygame.event.get():
            key = event.type == pygame.KEYDOWN and event.key
            if event.type == pygame.QUIT or key in (pygame.K_ESCAPE, pygame.K_q):
                raise EndOfWatching

    yield draw


@contextlib.contextmanager
def hidden_windows() -> Iterator[None]:
    """Let environments draw without a display: on "dummy", a few of them draw black pictures.

    Afterwards, windows can be opened again: on "offscreen", they crash the process.
    """
    former = os.environ.get("SDL_VIDEODRIVER")
    pygame: Any = None
    for driver in "offscreen", "dummy":
        os.environ["SDL_VIDEODRIVER"] = driver
        with contextlib.suppress(Exception):  # not every pygame has it; some need no pygame
            import pygame

            pygame.display.init()
            break
    try:
        yield
    finally:
        if pygame:
            pygame.display.quit()
        if former is None:
            del os.environ["SDL_VIDEODRIVER"]
        else:
            os.environ["SDL_VIDEODRIVER"] = former


@contextlib.contextmanager
def watching(settings: Namespace, stop: StopSignal) -> Iterator[WatchedEnvironment]:
    """Yield a WatchedEnvironment; Ctrl-C or closing the window ends the `with` without an error.

    Args:
        settings: Namespace of `env`, `episodes`, `set`, `seed`, `force`, `gif`, `images` and
            `eval`; without the last three, a window opens.

    Raises:
        UsageError: if there is no display for a window, a picture can't be written, or the
            environment can't be played or drawn.
        EnvironmentFault: if the environment does something wrong later.
    """
    gif, images = settings.gif, settings.images
    if gif is not None and images:
        raise UsageError("--gif and --images can't be combined; choose one")
    if settings.force and gif is None and not images:
        raise UsageError("--force overwrites pictures; it needs --gif or --images")
    drawing: contextlib.AbstractContextManager[Draw]
    if gif is not None:
        render_mode, drawing = "rgb_array", gif_file(gif, settings.force)
    elif images:
        render_mode, drawing = "rgb_array", png_files(settings.episodes, settings.force)
    elif settings.eval:
        render_mode, drawing = None, contextlib.nullcontext(lambda env: None)
    else:
        render_mode, drawing = "human", window()
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # gym starts pygame's sound, too
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # else SDL complains
    with (
        contextlib.nullcontext() if render_mode == "human" else hidden_windows(),
        drawing as draw,
        ProgressBar(settings.episodes, "episodes", delay=1, leave=False) as bar,
    ):
        with contextlib.closing(make_environment(settings.env, settings.set)) as undrawn:
            check_environment(undrawn)  # before a window opens
        env = make_environment(settings.env, settings.set, render_mode)
        watched = WatchedEnvironment(env, draw, bar, stop, settings.seed)
        with contextlib.closing(env), contextlib.suppress(EndOfWatching):
            yield watched
    returns = watched.returns
    log(f"episode_return_avg {np.mean(returns):.3f}" if returns else "no episode was completed")
