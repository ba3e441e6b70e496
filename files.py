"""Files that are written whole or not at all, and lines on the screen."""

import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from arguments import UsageError


def say(line):
    """Print a line at once, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def create_log_folder(name=None):
    """Make the folder `NAME-log`, by default named after the date; return its Path.

    Raises:
        UsageError: if a given name holds a path, or if the folder exists or can't be made.
    """
    dated = time.strftime("%m-%d-%H-%M")
    if name is not None and (not name.strip(". ") or set(name) & set("/\\:\0")):
        raise UsageError(f"--name: expected a plain name without a path, not {name!r}")
    for number in range(1, 1000):
        folder = Path(f"{name or dated}{'' if number == 1 else f'-{number}'}-log")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            if name is not None:
                raise UsageError(f"--name: {folder} exists already; choose another name") from None
        except OSError as error:
            raise UsageError(f"can't make the folder {folder}: {error.strerror}") from None
    raise UsageError(f"the folders up to {folder} exist already; give a name with --name")


def write_file(path, write):
    """Write a file whole or not at all: beside its name, flushed to disk, then renamed.

    Args:
        path: Path of the file, replaced if it exists.
        write: function that is given a temporary path of the same suffix and writes there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself must reach the disk too
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def attempt(save, path, *arguments):
    """Call `save(path, *arguments)`; return whether it worked, and warn if it didn't.

    A full disk or a folder that is gone must not end a training: the next snapshot tries again.
    """
    try:
        save(path, *arguments)
        return True
    except (OSError, RuntimeError) as error:  # h5py raises either
        reason = getattr(error, "strerror", None) or str(error)
        say(f"warning: can't write {path}: {reason}; training goes on")
        return False


def save_json(path, values):
    """Write a dict as JSON, whole or not at all."""
    write_file(path, lambda temporary: temporary.write_text(json.dumps(values, indent=2) + "\n"))
