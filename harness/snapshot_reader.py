"""Reads the weights out of an `.h5` snapshot, in a process of its own with bounded resources.

`snapshots.load_snapshot` starts it, with the file on standard input. Nothing of the file but
numbers and two texts is used: no layer is deserialised, no link to another file followed, no more
memory or time taken than a large network needs.
"""

import contextlib
import io
import json
import math
import sys
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from harness.arrays import Array
from harness.description import dense_chain, layer_names, quoted

MOST_WEIGHTS = 10**8  # of a network: `--hidden 8192,8192` has 67 million
MOST_LAYERS = 500  # of a network that the command line asks for
MOST_ARRAYS = 4 * MOST_LAYERS
MOST_PATH = 1000  # characters of a name inside the file
ORIGIN = "run"  # the attribute that says which run a snapshot comes from, as JSON
MOST_ORIGIN = 1 << 16  # characters
MOST_CONFIG = 1 << 21  # characters; the description of 500 layers has 600 000
MEMORY_BYTES = 4 << 30
CPU_SECONDS = 30


@dataclass
class SnapshotFile:
    """What is in an `.h5` file.

    Attributes:
        config: JSON text that describes the model.
        origin: JSON text of the run that it comes from, empty if this program didn't write it.
        arrays: the float32 arrays of each layer that has some, in the order of the description.
    """

    config: str
    origin: str
    arrays: dict[str, list[Array]]

    def to_bytes(self) -> bytes:
        """All of it as bytes."""
        content = io.BytesIO()
        layers = [(name, len(arrays)) for name, arrays in self.arrays.items()]
        text = json.dumps([self.config, self.origin, layers])
        found = [array for arrays in self.arrays.values() for array in arrays]
        np.savez(content, np.frombuffer(text.encode(), np.uint8), *found)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "SnapshotFile":
        """Take apart what `to_bytes` put together."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            text, *found = [file[f"arr_{number}"] for number in range(len(file.files))]
        config, origin, layers = json.loads(text.tobytes())
        left = iter(found)
        return cls(config, origin, {name: [*islice(left, count)] for name, count in layers})


def read_snapshot(data: bytes) -> SnapshotFile:
    """Read the bytes of an `.h5` file of a whole model, which Keras 2 or 3 wrote.

    Raises:
        ValueError: says what is wrong with it; h5py raises many other kinds for a damaged file.
    """
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        config = _text(file, "model_config", MOST_CONFIG)
        if config is None:
            raise ValueError(
                "it isn't a Keras model's snapshot: it doesn't describe a network; save the whole "
                'model, with model.save("NAME.h5") rather than save_weights'
            )
        dense_chain(config)  # has the limits of this process, as whoever reads it later has not
        arrays = _arrays_by_layer(_child(file, "model_weights", h5py.Group), layer_names(config))
        return SnapshotFile(config, _text(file, ORIGIN, MOST_ORIGIN) or "", arrays)


def _arrays_by_layer(weights: Any, layers: list[str]) -> dict[str, list[Array]]:
    """The arrays of those layers that have some."""
    import h5py

    reading = Reading()
    arrays = {}
    groups = set(weights)  # whatever their names lead to
    for layer in layers:
        if layer in groups:
            group = _child(weights, layer, h5py.Group)
            names = _names(group, "weight_names")
            if names:
                arrays[layer] = [reading.read(_child(group, name, h5py.Dataset)) for name in names]
    return arrays


class Reading:
    """Counts what is read: no more than a network may have."""

    def __init__(self) -> None:
        self.arrays_left, self.weights_left = MOST_ARRAYS, MOST_WEIGHTS

    def read(self, dataset: Any) -> Array:
        """One array of an h5py.Dataset; ValueError if it isn't finite numbers, or too many."""
        array = _array(dataset, self.weights_left)
        self.arrays_left -= 1
        self.weights_left -= array.size
        if self.arrays_left < 0:
            raise ValueError(f"it has more than {MOST_ARRAYS} arrays")
        if not np.isfinite(array).all():
            raise ValueError("its weights aren't finite numbers")
        return array


def _text(group: Any, attribute: str, most: int) -> str | None:
    """An attribute's text, None if there is no such attribute."""
    if attribute not in group.attrs:
        return None
    text = None
    if group.attrs.get_id(attribute).shape == ():  # one text, not many
        text = group.attrs[attribute]
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if not isinstance(text, str) or len(text) > most:
        raise ValueError(f"its attribute {attribute!r} isn't a text of at most {most:,} characters")
    return text


def _names(group: Any, attribute: str) -> list[str]:
    """The texts of an attribute, which Keras cuts in numbered parts where it is too long."""
    parts = [attribute]
    if attribute not in group.attrs:
        parts = [f"{attribute}{number}" for number in range(len(group.attrs))]
        parts = [part for part in parts if part in group.attrs]
    if not parts:
        raise ValueError(f"it isn't a Keras model's snapshot: it has no {attribute}")
    names = [name for part in parts for name in np.asarray(group.attrs[part]).ravel()]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _child(group: Any, path: str, kind: type) -> Any:
    """The group or dataset at `path`, reached through plain links inside the file alone."""
    import h5py

    # A long path may lead through thousands of groups.
    parts = path.strip("/").split("/") if len(path) <= MOST_PATH else [""]
    for part in parts:
        if not isinstance(group, h5py.Group) or not isinstance(
            group.get(part, getlink=True), h5py.HardLink
        ):
            raise ValueError(f"it isn't a Keras model's snapshot: it has no {quoted(path)}")
        group = group[part]
    if not isinstance(group, kind):
        raise ValueError(f"it isn't a Keras model's snapshot: {quoted(path)} is of another kind")
    return group


def _array(dataset: Any, most: int) -> Array:
    if dataset.is_virtual or dataset.external or dataset.dtype.kind != "f":
        raise ValueError(f"{quoted(dataset.name)} isn't an array of numbers in the file itself")
    chunk = math.prod(dataset.chunks or ())  # is unpacked whole, however little of it is used
    if dataset.size is None or max(dataset.size, chunk) > most:
        raise ValueError(f"it has more than {MOST_WEIGHTS:,} weights")
    return np.asarray(dataset[()], np.float32)


def limit_resources() -> None:
    """Take only so much memory and time; the caller's time-out holds where this can't be set."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_CPU": CPU_SECONDS, "RLIMIT_CORE": 0}
    for name, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(getattr(resource, name), (most, most))


def main() -> None:
    """Write what the file on standard input holds to standard output."""
    limit_resources()
    try:
        content = read_snapshot(sys.stdin.buffer.read()).to_bytes()
    except ValueError as error:
        message = str(error).encode("ascii", "backslashreplace")
        sys.stderr.buffer.write(message + b"\n")
        sys.exit(2)
    except Exception:  # h5py turns damage into many kinds of errors
        print("HDF5 can't read it", file=sys.stderr)
        sys.exit(2)
    sys.stdout.buffer.write(content)
