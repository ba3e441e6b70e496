"""The folder of a run or of a sweep: made under a new name, used by one process at a time."""

import contextlib
import os
import time
from pathlib import Path

from harness.errors import UsageError, usage_error

try:
    import fcntl
except ImportError:
    fcntl = None  # Windows


def create_log_folder(name=None, kind="log"):
    """Make the folder `NAME-log` (or another kind), by default named after the date; return it.

    Raises:
        UsageError: if a given name holds a path, or if the folder exists or can't be made.
    """
    dated = time.strftime("%m-%d-%H-%M")
    plain = name is None or (
        name.strip(". ") and name.isprintable() and not set(name) & set("/\\:")
    )
    if not plain:
        raise UsageError(f"--name: expected a plain name without a path, not {name!r}")
    for number in range(1, 1000):
        folder = Path(f"{name or dated}{'' if number == 1 else f'-{number}'}-{kind}")
        with usage_error(f"can't make the folder {folder}"), contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
        if name is not None:
            raise UsageError(f"--name: {folder} exists already; choose another name")
    raise UsageError(f"the folders up to {folder} exist already; give a name with --name")


def run_name(folder):
    """NAME of a log folder `NAME-log`, which its snapshots' names begin with."""
    return folder.resolve().name.removesuffix("-log")


@contextlib.contextmanager
def locked(folder):
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
        raise UsageError(f"--resume: another process is using {folder}") from None
    except OSError:
        pass  # a file system without locks
    try:
        for leftover in folder.glob(".*.partial.*"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)
