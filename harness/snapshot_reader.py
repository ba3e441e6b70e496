"""Reads the weights out of an `.h5` snapshot, in a process of its own with bounded resources.

`snapshots.load_snapshot` starts it, with the file on standard input. Nothing of the file but
numbers and two texts is used: no layer is deserialised, no link to another file followed, no more
memory or time taken than a large network needs.
"""

import contextlib
import io
import json
import math
import re
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.arrays import Array, Weights
from harness.model_config import DenseLayer, dense_layers

MOST_WEIGHTS = 10**8  # of a network: `--hidden 8192,8192` has 67 million
MOST_LAYERS = 500
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
        weights: list of float32 arrays, a kernel and a bias for each Dense layer, in order.
        origin: JSON text of the run that it comes from, empty if this program didn't write it.
        described: whether a `model_config` says which network they belong to.
    """

    weights: Weights
    origin: str
    described: bool

    def to_bytes(self) -> bytes:
        """All of it as bytes."""
        content = io.BytesIO()
        text = json.dumps({"origin": self.origin, "described": self.described})
        arrays = {str(number): array for number, array in enumerate(self.weights)}
        encoded = np.frombuffer(text.encode(), np.uint8)
        # The types of NumPy 2.4 take the values for `allow_pickle`.
        np.savez(content, text=encoded, **arrays)  # type: ignore[arg-type, unused-ignore]
        return content.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "SnapshotFile":
        """Take apart what `to_bytes` put together."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            fields = json.loads(arrays["text"].tobytes())
            weights = [arrays[str(number)] for number in range(len(arrays.files) - 1)]
        return cls(weights, **fields)


def read_snapshot(data: bytes) -> SnapshotFile:
    """Read the bytes of an `.h5` file.

    Keras saves a whole model as a description, `model_config`, and weights in `model_weights`. Its
    `save_weights` leaves out the description: Keras 2 puts the layers at the top, Keras 3 into
    `layers`.

    Raises:
        ValueError: says what is wrong with it; h5py raises many other kinds for a damaged file.
    """
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        config = _text(file, "model_config", MOST_CONFIG)
        origin = _text(file, ORIGIN, MOST_ORIGIN)
        if config is not None:
            arrays = _described_arrays(file, dense_layers(config))
        elif "model_weights" in file:
            arrays = _arrays_in_order(_child(file, "model_weights", h5py.Group))
        elif "layers" in file and "layer_names" not in file.attrs:
            arrays = _keras_3_arrays(_child(file, "layers", h5py.Group))
        else:
            arrays = _arrays_in_order(file)
    return SnapshotFile(check_network(arrays), origin or "", config is not None)


def check_network(arrays: Weights) -> Weights:
    """`arrays` itself if it is a chain of Dense layers; ValueError if not."""
    if not _is_chain(arrays):
        shapes = ", ".join(str(array.shape) for array in arrays[:8]) or "none"
        raise ValueError(f"expected the weights of a chain of Dense layers, found {shapes}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("its weights aren't finite numbers")
    return arrays


def _is_chain(arrays: Weights) -> bool:
    if len(arrays) % 2 or len(arrays) < 4:
        return False
    width = None  # of the layer before
    for kernel, bias in zip(arrays[0::2], arrays[1::2], strict=True):
        if kernel.ndim != 2 or not kernel.size or bias.shape != kernel.shape[1:]:
            return False
        if width not in (None, len(kernel)):
            return False
        width = kernel.shape[1]
    return True


def _described_arrays(file: Any, layers: list[DenseLayer]) -> Weights:
    """A kernel and a bias for each Dense layer of the description, in its order."""
    import h5py

    arrays = Reading()
    weights = _child(file, "model_weights", h5py.Group)
    for layer in layers:
        group = _child(weights, layer.name, h5py.Group)
        names = _names(group, "weight_names")
        if len(names) != 2:
            raise ValueError(f"layer {layer.name[:60]!r} has {len(names)} arrays; expected two")
        for name in names:
            arrays.read(_child(group, name, h5py.Dataset))
        units = arrays.found[-1].size
        if layer.units not in (None, units):
            raise ValueError(
                f"layer {layer.name[:60]!r} has {layer.units} units, but weights for {units}"
            )
    return arrays.found


def _arrays_in_order(layers: Any) -> Weights:
    """All arrays of a group of layers, in the order that its attribute gives."""
    import h5py

    arrays = Reading()
    for layer in _names(layers, "layer_names"):
        group = _child(layers, layer, h5py.Group)
        for name in _names(group, "weight_names"):
            arrays.read(_child(group, name, h5py.Dataset))
    return arrays.found


def _keras_3_arrays(layers: Any) -> Weights:
    """The arrays of what Keras 3's `save_weights` wrote: its Dense layers are counted by name."""
    import h5py

    numbers: dict[str, int] = {}  # of dense, dense_1, …
    for name in layers:
        match = re.fullmatch(r"dense(?:_([1-9]\d{0,5}))?", name)
        if match:
            numbers[name] = int(match[1] or 0)
        elif len(_child(layers, f"{name}/vars", h5py.Group)):
            raise ValueError(f"layer {name[:60]!r} has weights; expected Dense layers only")
    arrays = Reading()
    for name in sorted(numbers, key=numbers.__getitem__):
        for part in ("0", "1"):
            arrays.read(_child(layers, f"{name}/vars/{part}", h5py.Dataset))
    return arrays.found


class Reading:
    """The arrays read so far, in `found`: no more than a network may have."""

    def __init__(self) -> None:
        self.found: Weights = []
        self.left = MOST_WEIGHTS

    def read(self, dataset: Any) -> None:
        """Read one array of an h5py.Dataset; ValueError if it isn't plain numbers, or too many."""
        array = _array(dataset, self.left)
        self.found.append(array)
        self.left -= array.size
        if len(self.found) > 2 * MOST_LAYERS:
            raise ValueError(f"it has more than {MOST_LAYERS} layers")


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
    if attribute not in group.attrs:
        raise ValueError("it isn't a Keras model's snapshot: it has no " + attribute)
    names = np.asarray(group.attrs[attribute]).ravel()
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
            raise ValueError(f"it isn't a Keras model's snapshot: it has no {path[:60]!r}")
        group = group[part]
    if not isinstance(group, kind):
        raise ValueError(f"it isn't a Keras model's snapshot: {path[:60]!r} is of another kind")
    return group


def _array(dataset: Any, most: int) -> Array:
    if dataset.is_virtual or dataset.external or dataset.dtype.kind != "f":
        raise ValueError(f"{dataset.name[:60]!r} isn't an array of numbers in the file itself")
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
