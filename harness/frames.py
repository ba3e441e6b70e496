"""An agent's pictures as files: an animated GIF, or a PNG for each frame.

Each function here is a `with` that yields what draws a WatchedEnvironment as it is now.
"""

import contextlib
import re
import tempfile
from pathlib import Path

from PIL import Image

from harness.errors import UsageError, usage_error
from harness.terminal import log
from harness.whole_files import write_file

GIF_COLOURS = 16
GIF_FRAME_MS, GIF_PAUSE_MS = 30, 1500


@contextlib.contextmanager
def gif_file(name, force):
    """Write an animated GIF that loops, with a pause at the end of each episode."""
    path, frames, milliseconds, palette = Path(name), [], [], None
    if path.suffix.lower() != ".gif":
        raise UsageError(f"--gif: expected a file name that ends in .gif, not {name!r}")
    with usage_error(f"--gif: can't write {path}"):
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        if path.exists() and not force:
            raise UsageError(f"--gif: {path} exists already; --force overwrites it")
        tempfile.TemporaryFile(dir=path.parent).close()  # fails before anything is played

    def draw(env):
        nonlocal palette
        picture = Image.fromarray(env.env.render())
        # One palette for all: what doesn't move stays the same, and takes no room in the file.
        palette = palette or picture.quantize(GIF_COLOURS, Image.Quantize.MAXCOVERAGE)
        frames.append(picture.quantize(palette=palette, dither=Image.Dither.NONE))
        milliseconds.append(GIF_PAUSE_MS if env.ended else GIF_FRAME_MS)

    yield draw
    options = {"save_all": True, "append_images": frames[1:], "loop": 0, "optimize": True}
    with usage_error(f"--gif: can't write {path}"):
        write_file(path, lambda part: frames[0].save(part, duration=milliseconds, **options))
    log(f"Saved {path}")


@contextlib.contextmanager
def png_files(episodes, force):
    """Write PNG frames EPISODE_STEP.png into the current folder, in place of earlier ones."""
    names = [re.fullmatch(r"([1-9]\d*)_\d{6,}\.png", path.name) for path in Path().glob("*.png")]
    earlier = {Path(name[0]) for name in names if name and int(name[1]) <= episodes}
    if earlier and not force:
        raise UsageError(f"--images: {min(earlier)} exists already; --force overwrites it")
    saved = []

    def draw(env):
        path = Path(f"{env.episode}_{env.step_number:06}.png")
        with usage_error(f"--images: can't write {path}"):
            Image.fromarray(env.env.render()).save(path)
        saved.append(path)

    yield draw
    for path in earlier.difference(saved):
        with usage_error(f"--images: can't remove {path}"):
            path.unlink()
    log(f"Saved {len(saved)} frames")
