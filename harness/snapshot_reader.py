"""Reads the weights out of an `.h5` snapshot, as a program of its own with bounded resources.

`snapshots.load_snapshot` runs it, with the file on standard input. Nothing of the file but numbers
is used: no layer is deserialised, no link to another file followed, no more memory or time taken
than a large network needs.
"""

import contextlib
import io
import math
import sys

import numpy as np

MOST_WEIGHTS = 10**8  # of a network: `--hidden 8192,8192` has 67 million
MOST_LAYERS = 500
ORIGIN = "run"  # the attribute that says which run a snapshot comes from, as JSON
MOST_ORIGIN = 1 << 16  # characters
MEMORY_BYTES = 4 << 30
CPU_SECONDS = 30


def read_snapshot(data):
    """The kernels and biases in the bytes of an `.h5` file, layer by layer, and its ORIGIN.

    Returns:
        list of float32 arrays; str, empty in a file that this program didn't write.

    Raises:
        ValueError: says what is wrong with it; h5py raises many other kinds for a damaged file.
    """
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        layers = _child(file, "model_weights", h5py.Group)
        arrays, left = [], MOST_WEIGHTS
        for layer in _names(layers, "layer_names"):
            group = _child(layers, layer, h5py.Group)
            for name in _names(group, "weight_names"):
                arrays.append(_array(_child(group, name, h5py.Dataset), left))
                left -= arrays[-1].size
                if len(arrays) > 2 * MOST_LAYERS:
                    raise ValueError(f"it has more than {MOST_LAYERS} layers")
        origin = file.attrs.get(ORIGIN, "")
        if not isinstance(origin, str) or len(origin) > MOST_ORIGIN:
            raise ValueError(f"its attribute {ORIGIN!r} isn't a short text")
    return check_network(arrays), origin


def check_network(arrays):
    """`arrays` itself if it is a chain of Dense layers; ValueError if not."""
    width = None
    for kernel, bias in zip(arrays[0::2], arrays[1::2], strict=False):
        fits = kernel.ndim == 2 and bias.shape == kernel.shape[1:] and width in (None, len(kernel))
        width = kernel.shape[1] if fits and kernel.size else None
        if width is None:
            break
    if width is None or len(arrays) % 2 or len(arrays) < 4:
        shapes = ", ".join(str(array.shape) for array in arrays[:8]) or "none"
        raise ValueError(f"expected the weights of a chain of Dense layers, found {shapes}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("its weights aren't finite numbers")
    return arrays


def _names(group, attribute):
    if attribute not in group.attrs:
        raise ValueError("it isn't a Keras model's snapshot: it has no " + attribute)
    names = np.asarray(group.attrs[attribute]).ravel()
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _child(group, path, kind):
    """The group or dataset at `path`, reached through plain links inside the file alone."""
    import h5py

    for part in path.strip("/").split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(
            group.get(part, getlink=True), h5py.HardLink
        ):
            raise ValueError(f"it isn't a Keras model's snapshot: it has no {path[:60]!r}")
        group = group[part]
    if not isinstance(group, kind):
        raise ValueError(f"it isn't a Keras model's snapshot: {path[:60]!r} is of another kind")
    return group


def _array(dataset, most):
    if dataset.is_virtual or dataset.external or dataset.dtype.kind != "f":
        raise ValueError(f"{dataset.name[:60]!r} isn't an array of numbers in the file itself")
    chunk = math.prod(dataset.chunks or ())  # is unpacked whole, however little of it is used
    if dataset.size is None or max(dataset.size, chunk) > most:
        raise ValueError(f"it has more than {MOST_WEIGHTS:,} weights")
    return np.asarray(dataset[()], np.float32)


def pack(arrays, origin):
    """What `unpack` takes apart again, as bytes."""
    content = io.BytesIO()
    numbered = {str(number): array for number, array in enumerate(arrays)}
    np.savez(content, origin=np.frombuffer(origin.encode(), np.uint8), **numbered)
    return content.getvalue()


def unpack(data):
    """The list of arrays and the text that `pack` put together."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        origin = arrays["origin"].tobytes().decode()
        return [arrays[str(number)] for number in range(len(arrays.files) - 1)], origin


def limit_resources():
    """Take only so much memory and time; the caller's time-out holds where this can't be set."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_CPU": CPU_SECONDS, "RLIMIT_CORE": 0}
    for name, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(getattr(resource, name), (most, most))


def main():
    """Write what the file on standard input holds to standard output."""
    limit_resources()
    try:
        packed = pack(*read_snapshot(sys.stdin.buffer.read()))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except Exception:  # h5py turns damage into many kinds of errors
        print("HDF5 can't read it", file=sys.stderr)
        sys.exit(2)
    sys.stdout.buffer.write(packed)


if __name__ == "__main__":
    main()
