"""Reads the weights out of an `.h5` snapshot, as a program of its own with bounded resources.

`loggers.load_weights` runs it. Nothing of the file but numbers is used: no layer is deserialised,
no link to another file followed, no more memory or time taken than a large network needs.
"""

import hashlib
import io
import math
import os
import stat
import sys

import numpy as np

MOST_BYTES = 1 << 30  # of a file
MOST_NUMBERS = 1 << 26  # of a network, about `--hidden 8192,8192`
MOST_ARRAYS = 1000
MEMORY_BYTES = 4 << 30
CPU_SECONDS = 30


class Checksum:
    """A SHA-256 behind the content of a file, where HDF5 and zip readers don't look."""

    mark = b"\nsha256 "
    length = len(mark) + 64 + 1

    def seal(self, content):
        """The bytes to append to `content`."""
        return self.mark + hashlib.sha256(content).hexdigest().encode() + b"\n"

    def open(self, data):
        """The content of sealed `data`, or None if it isn't sealed; ValueError if it is damaged."""
        content, seal = data[: -self.length], data[-self.length :]
        if not seal.startswith(self.mark):
            return None
        if seal != self.seal(content):
            raise ValueError("the file is damaged: its checksum doesn't match")
        return content


CHECKSUM = Checksum()


def read_weights(path):
    """The kernels and biases in `path`, layer by layer; ValueError says what is wrong with it."""
    import h5py

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
    content = CHECKSUM.open(data)
    with h5py.File(io.BytesIO(data if content is None else content), "r") as file:
        layers = _child(file, "model_weights", h5py.Group)
        arrays, numbers = [], MOST_NUMBERS
        for layer in _names(layers, "layer_names"):
            group = _child(layers, layer, h5py.Group)
            for name in _names(group, "weight_names"):
                arrays.append(_array(_child(group, name, h5py.Dataset), numbers))
                numbers -= arrays[-1].size
                if len(arrays) > MOST_ARRAYS:
                    raise ValueError("its layers are more than any network here has")
    return check_network(arrays)


def _open_at_once(path, flags):
    # A pipe without a writer would be waited for.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


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
        raise ValueError(
            f"expected the weights of Dense layers, one behind the other, found {shapes}"
        )
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
        raise ValueError("its weights are more than any network here has")
    return np.asarray(dataset[()], np.float32)


def write_arrays(arrays, file):
    """Write a list of arrays for `read_arrays`."""
    np.savez(file, **{str(number): array for number, array in enumerate(arrays)})


def read_arrays(data):
    """The list of arrays that `write_arrays` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return [arrays[str(number)] for number in range(len(arrays.files))]


def main():
    """Write the arrays of the file that the command line names to standard output."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except ImportError:
        pass  # Windows has no such limits; the caller's time-out still holds
    try:
        arrays = io.BytesIO()
        write_arrays(read_weights(sys.argv[1]), arrays)
    except OSError as error:
        sys.exit(_refuse(error.strerror.lower() if error.strerror else "HDF5 can't read it"))
    except ValueError as error:
        sys.exit(_refuse(error))
    except Exception:  # h5py turns damage into many kinds of errors
        sys.exit(_refuse("HDF5 can't read it"))
    sys.stdout.buffer.write(arrays.getvalue())


def _refuse(reason):
    print(reason, file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
