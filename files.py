"""Files that are written whole or not at all, and lines on the screen."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from arguments import UsageError
from snapshot_reader import CHECKSUM

try:
    import fcntl
except ImportError:
    fcntl = None  # Windows


def say(line):
    """Print a line at once, above a progress bar if there is one; nobody has to read it."""
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough: the rest goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        pass  # a full disk, or a terminal that is gone; the next line tries again


def create_log_folder(name=None, kind="log"):
    """Make the folder `NAME-log` (or another kind), by default named after the date; return it.

    Raises:
        UsageError: if a given name holds a path, or if the folder exists or can't be made.
    """
    dated = time.strftime("%m-%d-%H-%M")
    if name is not None and (not name.strip(". ") or set(name) & set("/\\:\0")):
        raise UsageError(f"--name: expected a plain name without a path, not {name!r}")
    for number in range(1, 1000):
        folder = Path(f"{name or dated}{'' if number == 1 else f'-{number}'}-{kind}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            if name is not None:
                raise UsageError(f"--name: {folder} exists already; choose another name") from None
        except OSError as error:
            raise UsageError(f"can't make the folder {folder}: {error.strerror}") from None
    raise UsageError(f"the folders up to {folder} exist already; give a name with --name")


@contextlib.contextmanager
def claimed(folder):
    """Inside the `with`, no other process trains in a log folder; half-written files are removed.

    Raises:
        UsageError: if another process is training there.
    """
    if not fcntl:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"--resume: another process is training in {folder}") from None
    except OSError:
        pass  # a file system without locks
    try:
        for leftover in folder.glob(".*.partial.*"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


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
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "out of memory"
        say(f"warning: can't write {path}: {reason}; training goes on")
        return False


def write_sealed(path, content):
    """Write bytes with their checksum behind them, whole or not at all."""

    def write(temporary):
        with open(temporary, "wb") as file:
            file.write(content)
            file.write(CHECKSUM.seal(content))

    write_file(path, write)


def save_json(path, values):
    """Write a dict as JSON, whole or not at all."""
    write_file(path, lambda temporary: temporary.write_text(json.dumps(values, indent=2) + "\n"))


class ProgressBar(tqdm):
    """A bar in a terminal, with rate, time left and the latest results; nothing in a pipe."""

    def __init__(self, total, unit, **options):
        # tqdm's own format leaves no room for the results in a terminal of 80 columns.
        shape = "{desc}{bar}| {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left{postfix}"
        options |= {"disable": None, "dynamic_ncols": True, "bar_format": shape}
        super().__init__(total=total, unit=f" {unit}", **options)
        self.results = {}

    def reach(self, number, name=None, result=None):
        """Show that `number` of the total is done, and a named result until its next."""
        if name:
            self.results[name] = f"{name} {result:.1f}"
        self.set_postfix_str(", ".join(self.results.values()), refresh=False)
        self.update(number - self.n)
