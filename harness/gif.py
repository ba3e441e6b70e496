"""An animated GIF, written a frame at a time, and the pictures that go into it."""

import numbers
from typing import IO, Any

import numpy as np
from PIL import GifImagePlugin, Image, ImageChops, ImageOps

from harness.environments import Environment
from harness.errors import UsageError

COLOURS = 16  # of the first frame, beside which there is a cube of others
SHADES = 0, 51, 102, 153, 204, 255  # of the cube's red, green and blue
UNCHANGED = 255  # the palette's last entry: the pixel of the frame before shows through
FRAME_SECONDS = 0.03  # where the environment doesn't say
MOST_PIXELS = 65535
LEAST_DELAY, MOST_DELAY = 2, 65535  # hundredths; browsers slow a GIF of shorter ones down


class GifWriter:
    """Writes an animated GIF that loops, and holds no more than three of its frames.

    Pillow's own `save` and imageio keep all of them: of 20 episodes of MountainCar, 0.6 and 2.9 GB.
    A frame stores the pixels that differ from the one before, and one that differs in nothing only
    lasts longer. The delays are whole hundredths of a second; their sum is right.
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

        Raises:
            OSError: if the file can't be written.
            ValueError: if the picture is too large for a GIF.
        """
        if self.palette is None:
            self.palette = _palette_for(picture)
            header, _ = GifImagePlugin.getheader(self.palette, info={"loop": 0, "optimize": False})
            self.file.writelines(header)
        if picture.size != self.palette.size:  # all frames of a GIF have the size of its first
            picture = ImageOps.pad(picture, self.palette.size)
        # No dithering: what doesn't move stays the same, and takes no room in the file.
        frame = picture.quantize(palette=self.palette, dither=Image.Dither.NONE)
        now = round(self.clock)
        if self.waiting is not None and now - self.start >= LEAST_DELAY:
            changed = _difference(frame, self.waiting).getbbox()
            if changed or now - self.start > MOST_DELAY // 2:
                self._write_waiting(now)
        self.waiting = frame
        self.clock += 100 * seconds

    def end(self) -> None:
        """Write the last frame, if there is one."""
        if self.waiting is not None:
            self._write_waiting(max(round(self.clock), self.start + LEAST_DELAY))
            self.file.write(b";")

    def _write_waiting(self, end: int) -> None:
        assert self.waiting is not None
        frame, corner, options = self.waiting, (0, 0), {}
        if self.written is not None:
            difference = _difference(frame, self.written)
            left, top, right, bottom = difference.getbbox() or (0, 0, 1, 1)
            frame = frame.copy()
            frame.paste(UNCHANGED, mask=difference.point(lambda grey: 0 if grey else 255))
            frame, corner = frame.crop((left, top, right, bottom)), (left, top)
            options = {"transparency": UNCHANGED, "disposal": 1}
        delay = min(end - self.start, MOST_DELAY)
        self.file.writelines(GifImagePlugin.getdata(frame, corner, duration=10 * delay, **options))
        self.written, self.start = self.waiting, end


def _palette_for(picture: Image.Image) -> Image.Image:
    """An image of the size of a GIF's first picture, with one palette for all of them."""
    if max(picture.size) > MOST_PIXELS:
        raise ValueError(f"the pictures have more than {MOST_PIXELS} pixels on a side")
    colours = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).getpalette() or []
    colours = colours[: 3 * COLOURS]
    for red in SHADES:
        for green in SHADES:
            for blue in SHADES:
                colours += red, green, blue
    colours += colours[:3] * (256 - len(colours) // 3)  # twice the first: `quantize` takes that
    palette = Image.new("P", picture.size)
    palette.putpalette(colours)
    return palette


def _difference(frame: Image.Image, other: Image.Image) -> Image.Image:
    """The greys of two frames' numbers of colours subtracted: 0 where they are the same."""
    greys = [Image.frombytes("L", one.size, one.tobytes()) for one in (frame, other)]
    return ImageChops.difference(*greys)


def picture_of(env: Environment) -> Image.Image:
    """What the environment's `render` shows, in RGB.

    Raises:
        UsageError: if it shows no picture.
    """
    frame: Any = env.render()
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


def frame_seconds(env: Environment) -> float:
    """How long a frame lasts in the environment's own time."""
    rate = env.metadata.get("render_fps")
    if isinstance(rate, numbers.Real) and 0.01 <= float(rate) <= 1000:
        return 1 / float(rate)
    return FRAME_SECONDS
