"""The `.h5` snapshots: written whole, and read so that a malicious one can do no harm."""

import io
import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import PROJECT
from harness.arrays import Weights
from harness.errors import UsageError, usage_error
from harness.snapshot_reader import ORIGIN, SnapshotFile
from harness.terminal import log
from harness.whole_files import unseal, write_sealed

# A Python program: `-I` keeps the user's modules out of it, and also the folder of this program.
READER = """
import sys
sys.path.insert(0, sys.argv[1])
from harness.snapshot_reader import main
main()
"""
READER_SECONDS = 60
MOST_BYTES = 1 << 30


@dataclass
class Snapshot:
    """A snapshot's network, and where it comes from.

    Attributes:
        weights: float32 arrays, a kernel and a bias for each Dense layer, from the input on.
        origin: dict of what `save_snapshot` was told of the run, not checked yet, empty if nothing.
    """

    weights: Weights
    origin: dict[str, Any]


def save_snapshot(path: Path, keras_model: Any, origin: dict[str, Any] | None = None) -> None:
    """Save a keras.Model as `.h5`, with a checksum after HDF5's own end of the file.

    HDF5 writes to memory, since a full disk would make it crash the process. `keras_model.save`
    takes nothing but a path, so this calls the function that it calls.

    Args:
        origin: dict that JSON can hold, says which run the model comes from; Keras ignores it.

    Raises:
        OSError: if the file can't be written.
    """
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_model_to_hdf5

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        save_model_to_hdf5(keras_model, file, include_optimizer=False)
        if origin:
            file.attrs[ORIGIN] = json.dumps(origin)
    write_sealed(path, content.getbuffer())
    log(f"Saved {path}")


def load_snapshot(path: Path) -> Snapshot:
    """Read the weights of a snapshot, whichever Keras wrote it, and which run it comes from.

    The file may come from anyone, and HDF5's own code isn't safe against a malicious one. So a
    process with little memory and time reads it, and passes on plain numbers and one text.

    Raises:
        UsageError: if the file can't be read, or isn't a snapshot of a Q network.
    """
    with usage_error(f"can't use {path}"):
        content = _read_apart(read_content(path))
        try:
            origin = dict(json.loads(content.origin or "{}"))
        except (ValueError, TypeError, RecursionError):
            raise ValueError("what it says about its run can't be understood") from None
    if not content.described:
        log(f"{path} holds weights only: its hidden layers are assumed to be ReLU")
    return Snapshot(content.weights, origin)


def _read_apart(data: bytes) -> SnapshotFile:
    """Let a process of its own read a file's bytes; ValueError says why it can't."""
    try:
        reader = subprocess.run(
            [sys.executable, "-I", "-c", READER, str(PROJECT)],
            input=data,
            capture_output=True,
            timeout=READER_SECONDS,
            check=False,
            # Ctrl-C is for this process; and threads would count as memory.
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"reading it took over {READER_SECONDS} s") from None
    if reader.returncode:
        lines = reader.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1] if reader.returncode == 2 and lines else "HDF5 can't read it"
        raise ValueError("".join(c if c.isprintable() else "?" for c in why[:200]))
    return SnapshotFile.from_bytes(reader.stdout)


def check_fit_for(env: Any, weights: Weights, path: Path) -> None:
    """Raise UsageError if the weights of the snapshot `path` don't fit the environment `env`."""
    found = len(weights[0]), len(weights[-1])
    expected = env.observation_size, env.n_actions
    if found != expected:
        raise UsageError(
            f"can't use {path}: its observations have {found[0]} numbers and its actions are "
            f"{found[1]}, but {env.id} has {expected[0]} and {expected[1]}; is --env right?"
        )


def read_content(path: Path) -> bytes:
    """The bytes of an HDF5 file, its checksum verified; ValueError or OSError if it isn't one."""
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it isn't a file")
        if not status.st_size:
            raise ValueError("the file is empty")
        if status.st_size > MOST_BYTES:
            raise ValueError("the file is larger than any snapshot")
        data = file.read(MOST_BYTES)
    if not data.startswith(b"\x89HDF\r\n\x1a\n"):
        raise ValueError("it isn't an HDF5 file; expected a snapshot such as NAME-200000.h5")
    content = unseal(data)
    return data if content is None else content


def _open_at_once(path: str, flags: int) -> int:
    # A pipe without a writer would be waited for.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
