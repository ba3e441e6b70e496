"""Watching an agent: in a window, as an animated GIF, as PNG frames, or in numbers only."""

import contextlib
import csv
import importlib
import inspect
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from harness.environments import Environment, check_environment, make_environment, names
from harness.errors import UsageError, usage_error
from harness.gif import GifWriter, frame_seconds, picture_of
from harness.registries import undisturbed
from harness.settings import PlaySettings
from harness.terminal import ProgressBar, log
from harness.whole_files import write_file

GIF_PAUSE_SECONDS = 1.5  # at the end of each episode
FRAMES_FOLDER = "frames"
LEAST_EPISODES = 3  # whose returns are worth more than a mean
HIDDEN_DRIVERS = "offscreen", "dummy"  # of SDL; the second draws some pictures black


class EndOfWatching(Exception):  # noqa: N818, it isn't an error
    """Ctrl-C, or a closed window."""


Draw = Callable[["Watcher"], None]


class Watcher:
    """Draws each step that it is told of, and prints each episode's return.

    Attributes:
        env: the Environment that is played.
        returns: those of the completed episodes.
        episode, step_number, episode_return, action, ended: of the episode that runs.
    """

    def __init__(self, env: Environment, draw: Draw, bar: ProgressBar, stop: Any) -> None:
        self.env, self.returns = env, list[float]()
        self.episode, self.step_number, self.episode_return = 0, 0, 0.0
        self.action: int | None = None
        self.ended = False
        self._draw, self._bar, self._stop = draw, bar, stop

    def reset(self) -> None:
        """Show the begin of the next episode; EndOfWatching if its window was closed."""
        self.episode, self.step_number, self.episode_return = self.episode + 1, 0, 0.0
        self.action, self.ended = None, False
        self._draw(self)

    def step(self, action: int, reward: float, ended: bool) -> None:
        """Show a step; EndOfWatching after Ctrl-C, or if its window was closed."""
        self.action, self.ended = action, ended
        self.step_number += 1
        self.episode_return += reward
        if ended:
            self.returns.append(self.episode_return)
            log(f"episode {self.episode} return {self.episode_return:.1f}")
            self._bar.reach(self.episode)
        self._draw(self)
        if self._stop and self._stop.number:
            raise EndOfWatching

    def give_up(self) -> None:
        """Say that the episode that runs doesn't end."""
        log(
            f"episode {self.episode} doesn't end; give the environment a time limit, such as "
            "--set max_episode_steps=1000"
        )


@contextlib.contextmanager
def watching(settings: PlaySettings, stop: Any = None) -> Iterator[tuple[Environment, Watcher]]:
    """Yield an environment to play, and the Watcher to tell of each reset and step.

    EndOfWatching, which the Watcher raises, ends the `with` without an error. At its end the
    summary of the returns is printed. Environments that draw from `random` or `np.random` find
    them seeded.

    Args:
        settings: without `gif`, `images` and `eval`, a window opens.

    Raises:
        UsageError: if there is no display for a window, a file can't be written, or the
            environment can't be played or drawn.
        EnvironmentFault: if the environment does something wrong later.
    """
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # gym starts pygame's sound, too
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # else SDL complains
    render_mode, drawing = _drawing(settings)
    csv_path = None if settings.csv is None else new_file("--csv", settings.csv, settings.force)
    with (
        contextlib.nullcontext() if render_mode == "human" else hidden_windows(),
        drawing as draw,
        undisturbed(),
        own_randomness(settings.seed),
        ProgressBar(settings.episodes, "episodes", delay=1, leave=False) as bar,
    ):
        with contextlib.closing(make_environment(settings.env, settings.set)) as undrawn:
            check_environment(undrawn)  # before a window opens
        env = make_environment(settings.env, settings.set, render_mode)
        # Again, since the check may have drawn numbers.
        with contextlib.closing(env), own_randomness(settings.seed):
            watcher = Watcher(env, draw, bar, stop)
            with contextlib.suppress(EndOfWatching):
                yield env, watcher
    returns = watcher.returns
    if csv_path:
        with usage_error(f"--csv: can't write {csv_path}"):
            write_file(csv_path, lambda path: write_returns(path, returns))
        log(f"Saved {settings.csv}")
    for line in summary_lines(returns, env.reward_threshold, settings.seed):
        log(line)


def _drawing(
    settings: PlaySettings,
) -> tuple[str | None, contextlib.AbstractContextManager[Draw]]:
    """The render mode, and the `with` that yields what draws, as the settings ask for them."""
    if settings.gif is not None and settings.images:
        raise UsageError("--gif and --images can't be combined; choose one")
    if settings.force and settings.gif is None and settings.csv is None and not settings.images:
        raise UsageError("--force overwrites files; it needs --gif, --images or --csv")
    if settings.gif is not None:
        return "rgb_array", gif_file(settings.gif, settings.force)
    if settings.images:
        return "rgb_array", png_files(FRAMES_FOLDER, settings.force)
    if settings.eval:
        return None, contextlib.nullcontext(lambda watcher: None)
    return "human", window()


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed `random` and `np.random`, which some environments draw from; give them back after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def summary_lines(returns: Sequence[float], threshold: float | None, seed: int) -> list[str]:
    """The lines that sum up the returns of so many episodes, `episode_return_avg` last.

    Args:
        threshold: the mean return that solves the environment, if it has one.
        seed: that plays the same episodes again.
    """
    if not returns:
        return ["no episode was completed"]
    mean, lines = statistics.fmean(returns), []
    if len(returns) >= LEAST_EPISODES:
        deviation = statistics.stdev(returns)
        half = t_quantile(len(returns) - 1) * deviation / len(returns) ** 0.5
        lines = [
            f"{len(returns)} episodes: mean {mean:.2f}, standard deviation {deviation:.2f}, "
            f"least {min(returns):.1f}, most {max(returns):.1f}",
            f"95 % interval of the mean: {mean - half:.2f} to {mean + half:.2f}",
        ]
        if threshold is not None:
            share = sum(one >= threshold for one in returns) / len(returns)
            lines.append(f"Solved: {100 * share:.0f} % of the episodes ({threshold:g} or more)")
    return [*lines, f"The same episodes again: --seed {seed}", f"episode_return_avg {mean:.3f}"]


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution, within 1 % from 2 degrees of freedom on.

    Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", formula 26.7.5.
    """
    x = statistics.NormalDist().inv_cdf(0.975)
    return (
        x
        + (x**3 + x) / 4 / freedom
        + (5 * x**5 + 16 * x**3 + 3 * x) / 96 / freedom**2
        + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384 / freedom**3
        + (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160 / freedom**4
    )


def write_returns(path: Path, returns: Sequence[float]) -> None:
    """Write a CSV file of each episode's number and return."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = [("episode", "return"), *enumerate(returns, start=1)]
        csv.writer(file, lineterminator="\n").writerows(rows)


def new_file(flag: str, name: str | Path, force: bool) -> Path:
    """The absolute path of a file that is going to be written, if it can be.

    An environment may leave the folder in which the user stands.

    Raises:
        UsageError: if it exists and `force` is False, or can't be written; the line begins with
            the flag that named it.
    """
    path = Path(name)
    with usage_error(f"{flag}: can't write {name}"):
        if path.is_dir() or not path.name:
            raise IsADirectoryError("it is a folder")
        if path.exists() and not force:
            raise UsageError(f"{flag}: {path} exists already; --force overwrites it")
        # What `write_file` makes; a name that is too long, or a folder that is missing, fails here.
        path.with_name(f".{path.stem}.partial{path.suffix}").exists()
        tempfile.TemporaryFile(dir=path.parent).close()
        return path.absolute()


def new_gif(flag: str, name: str | Path, force: bool) -> Path:
    """`new_file` for a name that must end in .gif."""
    if Path(name).suffix.lower() != ".gif":
        raise UsageError(f"{flag}: expected a file name that ends in .gif, not {str(name)!r}")
    return new_file(flag, name, force)


@contextlib.contextmanager
def gif_file(name: str, force: bool) -> Iterator[Draw]:
    """Write an animated GIF that loops, with a pause at the end of each episode."""
    path = new_gif("--gif", name, force)
    problem = f"--gif: can't write {name}"
    with usage_error(problem):
        file = tempfile.TemporaryFile(dir=path.parent)
    with file:
        gif = GifWriter(file)

        def draw(watcher: Watcher) -> None:
            picture = picture_of(watcher.env)
            with usage_error(problem):
                gif.add(picture, GIF_PAUSE_SECONDS if watcher.ended else frame_seconds(watcher.env))

        yield draw
        with usage_error(problem):
            gif.end()
            write_file(path, lambda part: copy_to(part, file))
    log(f"Saved {name}")


def copy_to(path: Path, file: IO[bytes]) -> None:
    """Copy an open file, from its beginning, to a path."""
    file.seek(0)
    with open(path, "wb") as copied:
        shutil.copyfileobj(file, copied)


@contextlib.contextmanager
def png_files(name: str, force: bool) -> Iterator[Draw]:
    """Write PNG frames EPISODE_STEP.png into a folder of their own, in place of earlier ones."""
    problem = f"--images: can't write {name}"
    folder = Path(name).absolute()  # an environment may leave the folder where the user stands
    with usage_error(problem):
        if folder.exists() and not force:
            raise UsageError(f"--images: {name} exists already; --force overwrites its frames")
        folder.mkdir(exist_ok=True)
    saved = 0

    def draw(watcher: Watcher) -> None:
        nonlocal saved
        picture = picture_of(watcher.env)
        path = folder / f"{watcher.episode}_{watcher.step_number:06}.png"
        with usage_error(f"{problem}/{path.name}"):
            if not saved:
                for earlier in folder.glob("*.png"):
                    if re.fullmatch(r"[1-9]\d*_\d{6,}\.png", earlier.name):
                        earlier.unlink()
            picture.save(path)
        saved += 1

    try:
        yield draw
    finally:
        if not saved:
            with contextlib.suppress(OSError):  # it holds earlier frames
                folder.rmdir()
    log(f"Saved {saved} frames in {name}")


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
    with contextlib.suppress(pygame.error):
        pygame.display.init()
    visible = pygame.display.get_init() and pygame.display.get_driver() not in HIDDEN_DRIVERS
    if not visible and os.environ.get("SDL_VIDEODRIVER") not in HIDDEN_DRIVERS:
        raise UsageError(
            "there is no display to open a window on; try --gif FILE, --images, or, "
            "for a trained policy, --eval"
        )
    clock = pygame.time.Clock()

    def show(env: Environment) -> None:
        picture = picture_of(env)
        screen = pygame.display.get_surface()
        if screen is None or screen.get_size() != picture.size:
            screen = pygame.display.set_mode(picture.size)
        screen.blit(pygame.image.frombytes(picture.tobytes(), picture.size, "RGB"), (0, 0))
        pygame.display.flip()
        clock.tick(1 / frame_seconds(env))

    def draw(watcher: Watcher) -> None:
        env = watcher.env
        if env.render_mode == "rgb_array":
            show(env)
        if (watcher.episode, watcher.step_number) == (1, 0):
            log("q or Escape closes the window")
        title = f"{env.spec.id}: episode {watcher.episode}, return {watcher.episode_return:g}"
        if watcher.action is not None:
            title += f", {names(env)[1][watcher.action]}"
        pygame.display.set_caption(title)
        for event in pygame.event.get():
            key = event.type == pygame.KEYDOWN and event.key
            if event.type == pygame.QUIT or key in (pygame.K_ESCAPE, pygame.K_q):
                raise EndOfWatching

    yield draw


@contextlib.contextmanager
def hidden_windows() -> Iterator[None]:
    """Let environments draw without a display.

    Afterwards, windows can be opened again: on "offscreen", they crash the process.
    """
    former = os.environ.get("SDL_VIDEODRIVER")
    pygame: Any = None
    for driver in HIDDEN_DRIVERS:
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


def how_to_watch(env: Environment, snapshot: Path) -> list[str]:
    """The flags, beside --model, that show a policy here: a window's none, --gif's or --eval's.

    Args:
        env: its environment, as training has made it.
        snapshot: the policy's file, which names the GIF.
    """
    if not can_be_drawn(env):
        return ["--eval"]
    if has_display():
        return []
    if "rgb_array" in env.metadata["render_modes"]:
        return ["--gif", f"{snapshot.stem}.gif"]
    return ["--eval"]


def can_be_drawn(env: Environment) -> bool:
    """Whether an environment says that it draws, and what makes it takes a render_mode."""
    if not {"human", "rgb_array"} & {*env.metadata["render_modes"]}:
        return False
    maker = env.spec.entry_point
    if isinstance(maker, str):
        module, _, name = maker.partition(":")
        maker = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(maker).parameters.values()
    return any(one.name == "render_mode" or one.kind is one.VAR_KEYWORD for one in parameters)


def has_display() -> bool:
    """Whether a window can be opened where the program runs, as far as one can tell."""
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
