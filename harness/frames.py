"""An agent's pictures as files: an animated GIF, or a PNG for each frame.

Each function here is a `with` that yields what draws a WatchedEnvironment as it is now.
"""

import contextlib
import numbers
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from PIL import GifImagePlugin, Image, ImageChops, ImageOps

from harness.errors import UsageError, usage_error
from harness.terminal import log
from harness.whole_files import write_file

GIF_COLOURS = 16  # of the first frame, beside which there is a cube of others
GIF_SHADES = 0, 51, 102, 153, 204, 255  # of the cube's red, green and blue
GIF_FRAME_SECONDS, GIF_PAUSE_SECONDS = 0.03, 1.5
GIF_MOST_PIXELS = 65535
GIF_LEAST_DELAY, GIF_MOST_DELAY = 2, 65535  # hundredths; browsers slow a GIF of shorter ones down


class Watched(Protocol):
    """What pictures show of a WatchedEnvironment."""

    id: str
    metadata: dict[str, Any]
    episode: int
    step_number: int
    ended: bool

    def render(self) -> Any:
        """What the environment's own `render` returns."""


Draw = Callable[[Watched], None]


class GifWriter:
    """Writes an animated GIF that loops, a frame at a time: it holds no more than three.

    Pillow's own `save` keeps all of them. A frame stores the rectangle that differs from the one
    before, and one that differs in nothing only lasts longer. The delays are whole hundredths of a
    second; their sum is right.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.palette: Image.Image | None = None
        self.waiting: Image.Image | None = None  # not written, since its end isn't known yet
        self.written: Image.Image | None = None
        self.start = 0  # of the waiting frame, in hundredths
        self.clock = 0.0  # where the next one begins

    def add(self, picture: Image.Image, seconds: float) -> None:
        """Show a picture for some seconds.

        A frame too short for a GIF makes room for the next one.
        """
        if self.palette is None:
            self._begin(picture)
        assert self.palette is not None
        if picture.size != self.palette.size:  # all frames of a GIF have the size of its first
            picture = ImageOps.pad(picture, self.palette.size)
        # No dithering: what doesn't move stays the same, and takes no room in the file.
        frame = picture.quantize(palette=self.palette, dither=Image.Dither.NONE)
        now = round(self.clock)
        if self.waiting is not None and now - self.start >= GIF_LEAST_DELAY:
            difference = ImageChops.difference(as_indices(frame), as_indices(self.waiting))
            if difference.getbbox() or now - self.start > GIF_MOST_DELAY // 2:
                self._write_waiting(now)
        self.waiting = frame
        self.clock += 100 * seconds

    def end(self) -> None:
        """Write the last frame."""
        self._write_waiting(max(round(self.clock), self.start + GIF_LEAST_DELAY))
        self.file.write(b";")

    def _begin(self, picture: Image.Image) -> None:
        """Write the header, with one palette for all frames."""
        if max(picture.size) > GIF_MOST_PIXELS:
            raise ValueError(f"the pictures have more than {GIF_MOST_PIXELS} pixels on a side")
        colours = picture.quantize(GIF_COLOURS, Image.Quantize.MAXCOVERAGE).getpalette() or []
        colours = colours[: 3 * GIF_COLOURS]
        for red in GIF_SHADES:
            for green in GIF_SHADES:
                for blue in GIF_SHADES:
                    colours += red, green, blue
        colours += [0] * (3 * 256 - len(colours))
        self.palette = Image.new("P", picture.size)
        self.palette.putpalette(colours)
        header, _ = GifImagePlugin.getheader(self.palette, info={"loop": 0, "optimize": False})
        self.file.writelines(header)

    def _write_waiting(self, end: int) -> None:
        assert self.waiting is not None
        frame, corner = self.waiting, (0, 0)
        if self.written is not None:
            changed = ImageChops.difference(as_indices(frame), as_indices(self.written)).getbbox()
            box = changed or (0, 0, 1, 1)
            frame, corner = frame.crop(box), (box[0], box[1])
        delay = min(end - self.start, GIF_MOST_DELAY)
        self.file.writelines(GifImagePlugin.getdata(frame, corner, duration=10 * delay))
        self.written, self.start = self.waiting, end


def as_indices(frame: Image.Image) -> Image.Image:
    """The numbers of a frame's colours, as the greys that Pillow can subtract."""
    return Image.frombytes("L", frame.size, frame.tobytes())


def picture_of(env: Watched) -> Image.Image:
    """What the environment's `render` shows, in RGB.

    Raises:
        UsageError: if it shows no picture.
    """
    frame = env.render()
    is_picture = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.size
    if not is_picture or frame.ndim not in (2, 3) or frame.shape[2:] not in ((), (3,), (4,)):
        found = f"a {type(frame).__name__}" if frame is not None else "None"
        if isinstance(frame, np.ndarray):
            found = f"an array {frame.shape} of {frame.dtype}"
        raise UsageError(
            f"--env {env.id}: this environment can't be drawn: its render returns {found}; "
            "expected an array (height, width, 3) of uint8"
        )
    return Image.fromarray(frame).convert("RGB")


def frame_seconds(env: Watched) -> float:
    """How long a frame lasts in the environment's own time."""
    rate = env.metadata.get("render_fps")
    if isinstance(rate, numbers.Real) and 0.01 <= float(rate) <= 1000:
        return 1 / float(rate)
    return GIF_FRAME_SECONDS


@contextlib.contextmanager
def gif_file(name: str, force: bool) -> Iterator[Draw]:
    """Write an animated GIF that loops, with a pause at the end of each episode."""
    path = Path(name)
    if path.suffix.lower() != ".gif":
        raise UsageError(f"--gif: expected a file name that ends in .gif, not {name!r}")
    problem = f"--gif: can't write {path}"
    with usage_error(problem):
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        if path.exists() and not force:
            raise UsageError(f"--gif: {path} exists already; --force overwrites it")
        path.with_name(f".{path.name}").exists()  # a name that is too long fails here
        file = tempfile.TemporaryFile(dir=path.parent)
    with file:
        gif = GifWriter(file)

        def draw(env: Watched) -> None:
            picture = picture_of(env)
            with usage_error(problem):
                gif.add(picture, GIF_PAUSE_SECONDS if env.ended else frame_seconds(env))

        def copy(part: Path) -> None:
            file.seek(0)
            with open(part, "wb") as copied:
                shutil.copyfileobj(file, copied)

        yield draw
        with usage_error(problem):
            gif.end()
            write_file(path, copy)
    log(f"Saved {path}")


@contextlib.contextmanager
def png_files(episodes: int, force: bool) -> Iterator[Draw]:
    """Write PNG frames EPISODE_STEP.png into the current folder, in place of earlier ones."""
    names = [re.fullmatch(r"([1-9]\d*)_\d{6,}\.png", path.name) for path in Path().glob("*.png")]
    earlier = {Path(name[0]) for name in names if name and int(name[1]) <= episodes}
    if earlier and not force:
        raise UsageError(f"--images: {min(earlier)} exists already; --force overwrites it")
    saved = []

    def draw(env: Watched) -> None:
        picture, path = picture_of(env), Path(f"{env.episode}_{env.step_number:06}.png")
        with usage_error(f"--images: can't write {path}"):
            picture.save(path)
        saved.append(path)

    yield draw
    for path in earlier.difference(saved):
        with usage_error(f"--images: can't remove {path}"):
            path.unlink()
    log(f"Saved {len(saved)} frames in {Path.cwd()}")
