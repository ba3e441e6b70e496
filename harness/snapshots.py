"""The `.h5` snapshots: written whole, and read so that a malicious one can do no harm."""

import contextlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness import PROJECT
from harness.arrays import Array, Weights
from harness.description import (
    DenseLayer,
    compare,
    dense_chain,
    description_of,
    input_sizes,
    quoted,
)
from harness.errors import UsageError, usage_error
from harness.snapshot_reader import ORIGIN, SnapshotFile, read_snapshot
from harness.whole_files import unseal, write_sealed

# A Python program: `-I` keeps what the user has set for Python out of it. It searches where this
# process does, for packages of the user's own too; the reader itself is asked for after them.
READER = """
import sys
sys.path[:] = sys.argv[2:]
try:
    import h5py, numpy
except ModuleNotFoundError as error:
    print(error.name, "isn't installed", file=sys.stderr)
    sys.exit(2)
sys.path.insert(0, sys.argv[1])
from harness.snapshot_reader import main
main()
"""
READER_SECONDS = 60
MOST_BYTES = 1 << 30
START_BYTES = 1 << 16  # that say what kind of file it is
SAVE_AS_H5 = 'save the whole model with model.save("NAME.h5")'


@dataclass
class Snapshot:
    """What a snapshot's file holds.

    Attributes:
        path: of the file.
        config: JSON text that describes the network, as `description_of` a keras.Model gives it.
        arrays: float32 arrays of each layer that has some, by its name, in the file's order.
        origin: dict of what `save_snapshot` was told of the run, not checked yet, empty if nothing.
    """

    path: Path
    config: str
    arrays: dict[str, list[Array]]
    origin: dict[str, Any]

    @cached_property
    def chain(self) -> list[DenseLayer] | None:
        """The network's Dense layers, if it is a chain of them, which needs no TensorFlow."""
        return dense_chain(self.config)

    @cached_property
    def weights(self) -> Weights:
        """Of a chain: a kernel (inputs, units) and a bias (units,) for each layer, in order.

        The bias of a layer that has none is zeros.

        Raises:
            UsageError: if it isn't a chain, or has other arrays than its description says.
        """
        with usage_error(f"can't use {self.path}"):
            if self.chain is None:
                raise ValueError("its network isn't a chain of Dense layers")
            weights: Weights = []
            width = None  # of the layer before
            for layer in self.chain:
                arrays = self.arrays.get(layer.name, [])
                found = [array.shape for array in arrays]
                inputs = found[0][0] if width is None and found and found[0] else width
                expected = [(inputs, layer.units), (layer.units,)][: 1 + layer.use_bias]
                if found != expected or not arrays[0].size:
                    raise ValueError(
                        f"layer {quoted(layer.name)} has weights of shape {_listed(found)}; "
                        f"expected {_listed(expected)}"
                    )
                weights += [*arrays, np.zeros(layer.units, np.float32)][:2]
                width = layer.units
            return weights

    def weights_for(self, keras_model: Any) -> Weights:
        """The weights for a model that computes what the file describes.

        Returns:
            float32 arrays in the order and of the shapes of `keras_model.trainable_variables`.

        Raises:
            UsageError: names the first layer in which the file's network is another one.
        """
        with usage_error(f"can't use {self.path}"):
            return self._weights_for(keras_model)

    def _weights_for(self, keras_model: Any) -> Weights:
        """`weights_for`; ValueError names the first difference."""
        layers = {layer.name: layer for layer in keras_model.layers}
        values: dict[int, Array] = {}
        difference, pairs = compare(self.config, description_of(keras_model))
        if difference:
            raise ValueError(difference)
        for theirs, ours in pairs:
            arrays = self.arrays.get(theirs, [])
            layer = layers.get(ours)  # an operation of keras.ops isn't one
            variables = layer.trainable_weights + layer.non_trainable_weights if layer else []
            shapes = [tuple(variable.shape) for variable in variables]
            found = [array.shape for array in arrays]
            if found != shapes:
                raise ValueError(
                    f"layer {quoted(ours)} has weights of shape {_listed(found)} in the file, "
                    f"{_listed(shapes)} in create_model"
                )
            values |= {id(one): array for one, array in zip(variables, arrays, strict=True)}
        if any(id(one) not in values for one in keras_model.trainable_variables):
            raise ValueError("create_model has weights outside of its layers")
        return [values[id(one)] for one in keras_model.trainable_variables]


def save_snapshot(path: Path, keras_model: Any, origin: dict[str, Any] | None = None) -> None:
    """Save a keras.Model as `.h5`, with a checksum after HDF5's own end of the file.

    Args:
        origin: dict that JSON can hold, says which run the model comes from; Keras ignores it.

    Raises:
        OSError: if the file can't be written.
    """
    write_sealed(path, _content(keras_model, origin))


def can_be_saved(keras_model: Any) -> str | None:
    """Why a keras.Model can't be saved as `.h5` and read as the same; None if it can.

    It is tried, in memory: layers of one's own may do as they like.
    """
    try:
        borrowed = [_borrowed_name(layer) for layer in keras_model._flatten_layers()]
        for why in filter(None, borrowed):
            return why
        if "layers" not in json.loads(description_of(keras_model))["config"]:
            return "it is a subclass of keras.Model; make it with keras.Model(inputs, outputs)"
        content = read_snapshot(bytes(_content(keras_model)))
        snapshot = Snapshot(Path(), content.config, content.arrays, {})
        weights = snapshot._weights_for(keras_model)
        if not all(map(np.array_equal, weights, keras_model.trainable_variables)):
            return "its weights aren't float32"
    except Exception as error:  # whatever a layer's get_config raises
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _borrowed_name(layer: Any) -> str | None:
    """What a layer has of its author's own by a name of Keras', which is all that a file keeps."""
    import keras

    activation = getattr(layer, "activation", None)
    places = [
        (type(layer), keras.layers),
        (type(layer), keras.models),
        (activation, keras.activations),
    ]
    for used, of_keras in places:
        name = getattr(used, "__name__", "")
        if getattr(of_keras, name, used) is not used:
            return (
                f"layer {quoted(layer.name)} is made with another {name} than Keras' own, and a "
                "file can't tell them apart; give it another name"
            )
    return None


def _content(keras_model: Any, origin: dict[str, Any] | None = None) -> memoryview:
    """The bytes of a keras.Model's `.h5` file.

    HDF5 writes to memory, since a full disk would make it crash the process. `keras_model.save`
    takes nothing but a path, so this calls the function that it calls.
    """
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_model_to_hdf5

    content = io.BytesIO()
    with h5py.File(content, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on code in a file, which isn't run here
        save_model_to_hdf5(keras_model, file, include_optimizer=False)
        file.attrs["model_config"] = description_of(keras_model)
        if origin:
            file.attrs[ORIGIN] = json.dumps(origin)
    return content.getbuffer()


def load_snapshot(path: Path) -> Snapshot:
    """Read a snapshot, whichever Keras wrote it: its network, its weights, where it comes from.

    The file may come from anyone, and HDF5's own code isn't safe against a malicious one. So a
    process with little memory and time reads it, and passes on plain numbers and two texts.

    Raises:
        UsageError: if the file can't be read, or isn't a whole model's.
    """
    with usage_error(f"can't use {path}"):
        content = _read_apart(read_content(path))
        try:
            origin = dict(json.loads(content.origin or "{}"))
        except (ValueError, TypeError, RecursionError):
            raise ValueError("what it says about its run can't be understood") from None
    snapshot = Snapshot(path, content.config, content.arrays, origin)
    if snapshot.chain:
        _ = snapshot.weights  # checked when they are first asked for
    return snapshot


def _read_apart(data: bytes) -> SnapshotFile:
    """Let a process of its own read a file's bytes; ValueError says why it can't."""
    try:
        reader = subprocess.run(
            [sys.executable, "-I", "-c", READER, str(PROJECT), *_search_path()],
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


def _search_path() -> list[str]:
    """Where this process looks for packages, for another one.

    The current folder and this program's come last, so that no file there shadows a package.
    """
    folders = [folder for folder in sys.path if isinstance(folder, str) and folder]
    last = {str(PROJECT)}
    with contextlib.suppress(OSError):  # the current folder was removed
        last.add(os.getcwd())
    return sorted(folders, key=lambda folder: folder in last)


def check_fit_for(env: Any, snapshot: Snapshot) -> None:
    """Raise UsageError if a snapshot's network doesn't fit the environment `env`."""
    if snapshot.chain:
        found: list[int | None] = [len(snapshot.weights[0]), len(snapshot.weights[-1])]
    else:
        found = input_sizes(snapshot.config)  # others than these two: `weights_for` says so
    expected = [env.observation_size, env.n_actions]
    if len(found) == 2 and found != expected:
        raise UsageError(
            f"can't use {snapshot.path}: its observations have {found[0]} numbers and its actions "
            f"are {found[1]}, but {env.id} has {expected[0]} and {expected[1]}; is --env right?"
        )


def read_content(path: Path) -> bytes:
    """The bytes of an HDF5 file, its checksum verified; ValueError or OSError if it isn't one."""
    path = Path(path)
    if path.is_dir() and (kind := foreign_kind(path)):
        raise ValueError(kind)
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it isn't a file")
        if not status.st_size:
            raise ValueError("the file is empty")
        data = file.read(START_BYTES)
        if not data.startswith(b"\x89HDF\r\n\x1a\n"):
            expected = "it isn't an HDF5 file; expected a snapshot such as NAME-200000.h5"
            raise ValueError(foreign_kind(path, data) or expected)
        if status.st_size > MOST_BYTES:
            raise ValueError("the file is larger than any snapshot")
        data += file.read(MOST_BYTES)
    content = unseal(data)
    return data if content is None else content


def foreign_kind(path: Path, start: bytes = b"") -> str | None:
    """What a file or a folder of another tool is, and what to do; None if it isn't known.

    Args:
        start: the first bytes of a file.
    """
    if (path / "saved_model.pb").is_file():
        return f"it is a SavedModel of TensorFlow; load it where it was made and {SAVE_AS_H5}"
    if path.name == "checkpoint" or re.search(r"\.(index|data-\d+-of-\d+)$", path.name):
        return (
            "it belongs to a TensorFlow checkpoint, which holds weights alone; load them into "
            f"their model and {SAVE_AS_H5}"
        )
    if path.suffix in (".pt", ".pth") or b"/data.pkl" in start:
        return "it is a PyTorch file; expected a snapshot such as NAME-200000.h5"
    if start.startswith(b"PK") and (path.suffix == ".keras" or b"metadata.json" in start):
        return f"it is a .keras file; open it with keras.models.load_model and {SAVE_AS_H5}"
    return None


def _listed(shapes: list[Any]) -> str:
    return " and ".join(map(str, shapes[:4])) or "none"


def _open_at_once(path: str, flags: int) -> int:
    # A pipe without a writer would be waited for.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
