"""The folder of a run or of a sweep: made under a new name, found, used by one process at a time.

A log folder is what it holds, not what it is called: its user may move, copy or rename it.
"""

import contextlib
import csv
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UsageError, usage_error

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows

# What a log folder holds beside snapshots and events; the last is a sweep's.
CONFIG_FILE, EVALUATIONS_FILE, STATE_FILE = "config.json", "evaluations.csv", "state.npz"
RESULT_FILE = "result.json"
SWEEP_FILE = "sweep.json"
MOST_LISTED = 5  # runs that a message names


def create_log_folder(
    name: str | None = None, kind: str = "log", place: Path | None = None
) -> Path:
    """Make the folder `NAME-log` (or another kind), by default named after the date; return it.

    Args:
        place: the folder to make it in, by default the current one.

    Raises:
        UsageError: if a given name holds a path, or if the folder exists or can't be made.
    """
    if name is not None and not _is_plain(name):
        raise UsageError(f"--name: expected a plain name without a path, not {name!r}")
    dated = time.strftime("%m-%d-%H-%M")
    for number in range(1, 1000):
        folder = Path(f"{name or dated}{'' if number == 1 else f'-{number}'}-{kind}")
        folder = place / folder if place else folder
        with usage_error(f"can't make the folder {folder}"), contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
        if name is not None:
            raise UsageError(f"--name: {folder} exists already; choose another name")
    raise UsageError(f"the folders up to {folder} exist already; give a name with --name")


def _is_plain(name: str) -> bool:
    # In an ASCII locale, Python has other letters as surrogates, which aren't printable.
    readable = os.fsencode(name).decode(errors="replace")
    return bool(name.strip(". ")) and readable.isprintable() and not set(name) & set("/\\:")


def run_name(folder: Path) -> str:
    """NAME of a log folder `NAME-log`, which its snapshots' names begin with."""
    return folder.resolve().name.removesuffix("-log")


def find_log_folder(text: str, flag: str = "--resume", kind: str = "log") -> Path:
    """The folder that a user means: its path, or NAME for `NAME-log` (or another kind).

    Args:
        flag: that the text was given to, named in the error.

    Raises:
        UsageError: if there is no such folder; it names the newest runs that there are.
    """
    path = Path(text)
    candidates = [path] if text else []
    if path.name:
        # A sweep's folder is none of a run, but whoever names a sweep is told so.
        kinds = dict.fromkeys((kind, "sweep"))
        candidates += [path.with_name(f"{path.name}-{one}") for one in kinds]
    folders = [folder for folder in candidates if _is_folder(folder)]
    for folder in folders:
        if _holds_run(folder, kind):
            return folder
    if folders:
        return folders[0]  # whose reader finds out what is missing there
    if os.path.isfile(path) and flag == "--resume" and _holds_run(path.parent, kind):
        raise UsageError(f"--resume names a folder, not a file: --resume {path.parent}")
    raise UsageError(f"{flag} {text!r}: no such folder; {_existing_runs(path.parent, kind)}")


def find_snapshot(text: str) -> Path:
    """The snapshot that `--model` means: a file, or the best one of a log folder.

    Raises:
        UsageError: if there is neither, or no snapshot in the folder; it says why.
    """
    path = Path(text)
    if text and not _is_folder(path) and os.path.lexists(path):
        return path
    if path.suffix == ".h5" and not _is_folder(path):
        raise UsageError(f"can't use {path}: no such file; {_existing_runs(path.parent, 'log')}")
    return snapshot_of(find_log_folder(text, "--model"))


def snapshot_of(folder: Path) -> Path:
    """The best snapshot in a log folder, whatever the folder is called by now.

    Where there are several, as after a run was renamed and resumed, it is the one of the folder's
    name, else the newest. Where there is none, but a single other snapshot, it is that.

    Raises:
        UsageError: if there is none; it says why, and what to do.
    """
    with usage_error(f"can't use {folder}"):
        snapshots = sorted(folder.glob("[!.]*.h5"), key=_changed)
    best = [path for path in snapshots if path.name.endswith("-best.h5")]
    named = folder / f"{run_name(folder)}-best.h5"
    if named in best:
        return named
    if best:
        return best[-1]
    if len(snapshots) == 1:
        return snapshots[0]
    if snapshots:
        why = f"has no best snapshot, since {_why_none_is_best(folder)}"
        raise UsageError(f"--model: {folder} {why}; name another one, such as {snapshots[-1]}")
    if _holds_run(folder, "log"):
        cure = f"continue it with --resume {folder}"
        if not (folder / STATE_FILE).exists():
            cure = "start it again"
        raise UsageError(
            f"--model: {folder} holds no snapshot yet; if no process is training there, {cure}"
        )
    raise UsageError(f"--model: {folder} isn't a log folder: there is no snapshot in it")


def _why_none_is_best(folder: Path) -> str:
    try:
        with open(folder / EVALUATIONS_FILE, encoding="utf-8", newline="") as file:
            averages = [float(row["episode_return_avg"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        averages = []
    except (OSError, ValueError, KeyError, TypeError):
        return "its evaluations.csv can't be read"
    if not averages:
        return "it was never evaluated"
    if all(map(math.isnan, averages)):
        return "no evaluation completed an episode"
    return "it was moved or couldn't be saved"


def _holds_run(folder: Path, kind: str) -> bool:
    """Whether a folder is that of a run, or of a sweep: config.json alone is a common name."""
    if kind == "sweep":
        return (folder / SWEEP_FILE).exists()
    if folder.name.endswith("-log") and (folder / CONFIG_FILE).exists():
        return True
    return (folder / STATE_FILE).exists()


def _existing_runs(place: Path, kind: str) -> str:
    """What a message says of the runs in a folder, newest first."""
    here = "here" if place == Path() else f"in {place}"
    try:
        folders = [path for path in place.iterdir() if _is_folder(path) and _holds_run(path, kind)]
    except OSError:
        folders = []
    what = "sweep" if kind == "sweep" else "run"
    if not folders:
        return f"there is no {what} {here}"
    names = [path.name for path in sorted(folders, key=_changed, reverse=True)]
    return f"the newest {what}s {here}: {', '.join(map(_shown, names[:MOST_LISTED]))}"


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it has just gone
        return 0.0


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside the `with`, no other process trains in a log folder; half-written files are removed.

    Whatever is read of a run that is resumed must be read inside: before, another process may
    still be changing it.

    Raises:
        UsageError: if the folder is missing, if it can't be written, or if another process is
            training there.
    """
    with contextlib.ExitStack() as stack:
        if fcntl:
            stack.enter_context(_flock(folder))
        with usage_error(f"can't write in {folder}"):
            # Permissions alone don't tell: a file system may be read-only, or the user root.
            (folder / ".written.partial.tmp").touch()
            for leftover in folder.glob(".*.partial.*"):
                leftover.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def _flock(folder: Path) -> Iterator[None]:
    with usage_error(f"can't use {folder}"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"--resume: another process is using {folder}") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(descriptor)
