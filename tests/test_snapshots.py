import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import (
    ROOT,
    config_of_2018,
    damaged,
    equal,
    load_weights,
    random_weights,
    snapshot_of_2018,
)

from harness import snapshots
from harness.environments import make_environment
from harness.errors import UsageError
from harness.snapshot_reader import SnapshotFile
from harness.snapshots import Snapshot, load_snapshot
from harness.whole_files import write_sealed

# Reads each file named on standard input as `load_snapshot` would, in a process of its own, but
# forked; a line each of exit status, seconds and memory.
READER = """
import io, os, sys, time, types
import h5py
from harness import snapshot_reader, snapshots
for path in sys.stdin.read().splitlines():
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        sys.stdout, sys.stderr, refused = open(path + ".out", "w"), open(path + ".err", "w"), False
        try:
            sys.stdin = types.SimpleNamespace(buffer=io.BytesIO(snapshots.read_content(path)))
            snapshot_reader.main()
        except (ValueError, SystemExit):
            refused = True
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(refused)
    _, status, usage = os.wait4(pid, 0)
    print(status, time.monotonic() - started, usage.ru_maxrss / 2**20)
"""


def read_all(paths):
    """What each file holds, or the line with which it is refused; quickly, and in little memory."""
    reader = subprocess.run(
        [sys.executable, "-c", READER],
        input="\n".join(map(str, paths)),
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # a fork copies one thread
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    results = []
    for path, line in zip(paths, reader.stdout.splitlines(), strict=True):
        status, seconds, gigabytes = map(float, line.split())
        assert seconds < 10, path
        assert gigabytes < 2, path
        output, errors = (path.with_name(path.name + end).read_bytes() for end in (".out", ".err"))
        results.append(errors.decode().strip() if status else SnapshotFile.from_bytes(output))
    return results


def weights_of(result):
    """The weights of a chain that was read; None where it was refused."""
    if isinstance(result, str):
        return None
    try:
        return Snapshot(Path("x.h5"), result.config, result.arrays, {}).weights
    except (UsageError, ValueError):
        return None


def replace(weight, make):
    """A change that lets `make(group, name)` make another thing in place of a kernel."""

    def change(file):
        group = file[weight].parent
        del file[weight]
        make(group, "kernel:0")

    return change


KERNEL = "model_weights/dense_1/dense_1/kernel:0"


def write_files(folder, contents):
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"{number}.h5")
        paths[-1].write_bytes(content)
    return paths


def test_200_damaged_snapshots_are_refused_or_load_the_same_weights(tmp_path):
    weights = random_weights()
    write_sealed(tmp_path / "whole.h5", snapshot_of_2018(weights))
    data = (tmp_path / "whole.h5").read_bytes()
    paths = write_files(tmp_path, [data, *damaged(data, 200, seed=1)])
    whole, *results = map(weights_of, read_all(paths))
    assert equal(whole, weights)
    for path, result in zip(paths[1:], results, strict=True):
        assert result is None or equal(result, weights), path
    # Only where the checksum itself is hit the weights can still be read.
    assert sum(result is None for result in results) > 180


def test_160_damaged_snapshots_without_checksum_crash_and_hang_nothing(tmp_path):
    weights = random_weights()
    data = snapshot_of_2018(weights)
    whole, *results = read_all(write_files(tmp_path, [data, *damaged(data, 160, seed=2)]))
    assert equal(weights_of(whole), weights)
    # All of those that were cut short are refused.
    assert sum(weights_of(result) is None for result in results) >= 80


def refused(path):
    """What `--model PATH` says, in one line."""
    started = time.monotonic()
    with pytest.raises(UsageError) as error:
        load_weights(path, make_environment("MountainCar-v0"))
    assert time.monotonic() - started < 20
    message = str(error.value)
    assert message.startswith(f"can't use {path}: ")
    assert len(message) < 400
    assert message.isprintable()
    return message


def dataset(shape, kind="f4", **options):
    return lambda group, name: group.create_dataset(name, shape, kind, **options)


def link(target):
    return lambda group, name: group.update({name: target})


def bomb(group, name):
    dataset((2**15, 2**14), compression="gzip", chunks=(2**12,) * 2)(group, name)
    group[name][: 2**12] = np.zeros((2**12, 2**14), "f4")


def virtual(group, name):
    layout = h5py.VirtualLayout((2, 8), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "kernel", (2, 8))
    group.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(dataset((10**6, 10**6), chunks=(100, 100)), id="huge"),
        bomb,
        pytest.param(dataset((2, 8), chunks=(2, 2**28), maxshape=(None, None)), id="wide chunk"),
        pytest.param(link(h5py.SoftLink("/model_weights/dense_1/dense_1/bias:0")), id="soft link"),
        pytest.param(link(h5py.ExternalLink("/etc/hostname.h5", "/kernel")), id="external link"),
        virtual,
        pytest.param(dataset((2, 8), external=[("/etc/passwd", 0, 64)]), id="external"),
        pytest.param(dataset((2, 8), "S30", data=[[b"cos\nsystem\n"] * 8] * 2), id="text"),
        pytest.param(dataset((2, 8), h5py.vlen_dtype(np.uint8)), id="objects"),
        pytest.param(h5py.Group.create_group, id="a group"),
    ],
)
def test_a_weight_that_is_not_plain_numbers_in_the_file_is_refused(tmp_path, make):
    path = tmp_path / "harm.h5"
    path.write_bytes(snapshot_of_2018(random_weights(), replace(KERNEL, make)))
    assert path.stat().st_size < 2**20
    (says,) = read_all([path])
    assert re.search("isn't an array|more than|has no|of another kind", says)


def weight_names(layer, *names):
    """A change that lets a layer have weights of these names, and nothing else."""

    def change(file):
        file[f"model_weights/{layer}"].attrs["weight_names"] = names

    return change


def deep(file):
    group = file["model_weights/dense_1"]
    for _ in range(3000):
        group = group.create_group("a")
    weight_names("dense_1", "a/" * 3000, "bias")(file)


def loop(file):
    file["model_weights/dense_1/self"] = file["model_weights/dense_1"]
    weight_names("dense_1", "self/" * 5000 + "dense_1/kernel:0", "bias")(file)


def many_times(file):
    # 60 000 weights, in 120 kB.
    file["model_weights/dense_1/w"] = np.ones((1, 1), np.float32)
    file["model_weights/dense_1"].attrs["weight_names"] = np.array([b"w"] * 60000)


def large_many_times(file):
    group = file["model_weights/dense_1"]
    group.create_dataset("w", (2**12, 2**12), "f4", fillvalue=1, chunks=(64, 64))
    group.attrs["weight_names"] = np.array([b"w"] * 900)


def numbers(file):
    file["model_weights/dense_1"].attrs["weight_names"] = np.arange(5)


def no_names(file):
    del file["model_weights/dense_1"].attrs["weight_names"]


def not_finite(file):
    file[KERNEL][0, 0] = np.nan


def linked_layer(file):
    del file["model_weights/dense_1"]
    file["model_weights/dense_1"] = h5py.ExternalLink("/etc/hostname.h5", "/dense_1")


def described_as(text):
    """The change of a file that gives it another `model_config`."""

    def change(file):
        file.attrs["model_config"] = text

    return change


def altered(before, after):
    """The change of a file that replaces something in its `model_config`."""
    text = json.dumps(config_of_2018(random_weights()))
    assert before in text
    return described_as(text.replace(before, after))


HOSTILE = {
    "deep": (deep, "has no 'a/a/"),
    "loop": (loop, "has no 'self/"),
    "many times": (many_times, "more than 2000 arrays"),
    "large many times": (large_many_times, "more than 100,000,000 weights"),
    "disguise": (weight_names("dense_1", "\x1b[2J\n" + "x" * 9000), r"has no '\x1b[2J\nxx"),
    "numbers": (numbers, "has no '0'"),
    "no names": (no_names, "has no weight_names"),
    "not finite": (not_finite, "aren't finite numbers"),
    "linked layer": (linked_layer, "has no 'dense_1'"),
    "one name": (weight_names("dense_2", "dense_2/bias:0"), "shape (8,); expected (8, 8) and (8,)"),
    "a huge description": (described_as("[" + "0," * 2**21 + "0]"), "isn't a text of at most"),
    "a deep description": (described_as("[" * 10**6), "isn't JSON"),
    "no description": (described_as("[]"), "isn't a description"),
    "a circle": (altered('[["observations", 0, 0, {}]]', '[["dense_2", 0, 0, {}]]'), "a circle"),
    "other units": (
        altered('"dense_2", "trainable": true, "units": 8', '"dense_2", "units": 9'),
        "layer 'dense_2' has weights of shape (8, 8) and (8,); expected (8, 9) and (9,)",
    ),
    "fewer layers": (
        described_as(json.dumps(config_of_2018(random_weights((2, 8, 3))))),
        "layer 'dense_2' has weights of shape (8, 8) and (8,); expected (8, 3) and (3,)",
    ),
    "more layers": (
        described_as(json.dumps(config_of_2018(random_weights((2, 8, 8, 8, 3))))),
        "layer 'dense_3' has weights of shape (8, 3) and (3,); expected (8, 8) and (8,)",
    ),
    "a layer without arrays": (altered("dense_2", "multiply_2"), "shape none; expected (8, 8)"),
    "a long name": (altered("dense_2", "x" * 10**5), "layer 'xxxx"),
    "a path": (altered("dense_2", "../model_weights/dense_2"), "shape none"),
    "control characters": (altered("dense_2", r"\u001b[2J\n\ud800"), r"layer '\x1b[2J\n\ud800'"),
    "no text": (described_as(np.arange(5)), "its attribute 'model_config' isn't a text"),
    "texts": (described_as(["{}"] * 5), "its attribute 'model_config' isn't a text"),
    "nothing": (described_as(h5py.Empty("S10")), "its attribute 'model_config' isn't a text"),
    "bytes": (described_as(b"\xff\xfe"), "isn't JSON"),
}


def test_files_that_are_not_what_they_say_are_refused(tmp_path):
    contents = [snapshot_of_2018(random_weights(), change) for change, _ in HOSTILE.values()]
    results = read_all(write_files(tmp_path, contents))
    for name, result in zip(HOSTILE, results, strict=True):
        says = result
        if isinstance(result, SnapshotFile):
            with pytest.raises(UsageError) as error:
                _ = Snapshot(Path("x.h5"), result.config, result.arrays, {}).weights
            says = str(error.value)
        assert HOSTILE[name][1] in says, name


@pytest.mark.parametrize("name", ["control characters", "a long name", "disguise", "a circle"])
def test_a_hostile_file_gets_one_plain_line(tmp_path, name):
    path = tmp_path / "harm.h5"
    path.write_bytes(snapshot_of_2018(random_weights(), HOSTILE[name][0]))
    refused(path)


def test_a_damaged_file_that_keeps_hdf5_busy_forever_is_given_up(tmp_path, monkeypatch):
    """Why a process of its own reads: no Ctrl-C ends what HDF5 does here."""
    data = bytearray(snapshot_of_2018(random_weights()))
    counts = bytes([12, 0, 0, 0, 0, 0, 0, 0, 14, 0, 0, 0, 0, 0, 0, 0])
    place = data.index(counts) + 8  # in the heap that holds the model_config
    data[place] = 127
    path = tmp_path / "endless.h5"
    path.write_bytes(data)
    monkeypatch.setattr(snapshots, "READER_SECONDS", 3)
    assert refused(path).endswith("reading it took over 3 s")


def test_nothing_of_a_model_is_executed(tmp_path, tensorflow):
    import keras

    marker = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    harm = keras.layers.Lambda(eval(f"lambda x: ({code}, x)[1]"), output_shape=(8,), name="harm")
    dense = keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)
    model = keras.Sequential([keras.layers.Input((2,)), dense[0], harm, dense[1]])
    path = tmp_path / "lambda.h5"
    model.save(path)
    marker.unlink(missing_ok=True)
    pickled = b"cposix\nsystem\n(S'touch " + os.fsencode(marker) + b"'\ntR."
    with h5py.File(path, "a") as file:
        file.attrs["custom_objects"] = np.void(pickled)
        file["model_weights"].attrs["backend"] = np.void(pickled)
    snapshot = load_snapshot(path)
    assert snapshot.chain is None
    with pytest.raises(UsageError, match="layer 'harm' has another function in the file"):
        snapshot.weights_for(model)
    assert not marker.exists()
    keras.models.load_model(path, safe_mode=False, compile=False)(np.zeros((1, 2), np.float32))
    assert marker.exists()  # so the file could have


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    assert refused(tmp_path / "pipe.h5").endswith("it isn't a file")
    assert refused("/dev/zero").endswith("it isn't a file")
    assert refused(tmp_path).endswith("is a directory")
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    refused(tmp_path / "loop.h5")


def test_a_file_larger_than_any_snapshot_is_refused(tmp_path):
    path = tmp_path / "large.h5"
    with open(path, "wb") as file:
        file.write(b"\x89HDF\r\n\x1a\n")
        file.truncate(2**40)  # takes no room on the disk
    assert refused(path).endswith("the file is larger than any snapshot")


# Files of other kinds, and other places ---------------------------------------------------------


def test_weights_alone_are_refused_with_the_way_to_save_a_whole_model(tmp_path, tensorflow):
    import keras
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(3)])
    with h5py.File(tmp_path / "keras2.h5", "w") as file:
        save_weights_to_hdf5_group(file, model)
    model.save_weights(tmp_path / "keras3.weights.h5")
    for name in ("keras2.h5", "keras3.weights.h5"):
        assert refused(tmp_path / name).endswith(
            "it isn't a Keras model's snapshot: it doesn't describe a network; save the whole "
            'model, with model.save("NAME.h5") rather than save_weights'
        )


def test_files_of_other_tools_are_named_as_what_they_are(tmp_path, tensorflow):
    import keras

    keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(3)]).save(
        tmp_path / "model.keras"
    )
    assert "it is a .keras file; open it with keras.models.load_model" in refused(
        tmp_path / "model.keras"
    )
    (tmp_path / "copy.h5").write_bytes((tmp_path / "model.keras").read_bytes())
    assert "it is a .keras file" in refused(tmp_path / "copy.h5")
    for name in "checkpoint", "model.index", "model.data-00000-of-00001":
        (tmp_path / name).write_bytes(b"model_checkpoint_path")
        assert "it belongs to a TensorFlow checkpoint" in refused(tmp_path / name)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    assert "it is a SavedModel of TensorFlow" in refused(tmp_path / "saved")
    with zipfile.ZipFile(tmp_path / "torch", "w") as file:
        file.writestr("archive/data.pkl", b"")
    (tmp_path / "old.pt").write_bytes(b"\x80\x02")
    for name in "torch", "old.pt":
        assert "it is a PyTorch file" in refused(tmp_path / name)
    (tmp_path / "other.h5").write_bytes(b"something else")
    assert "it isn't an HDF5 file; expected a snapshot such as" in refused(tmp_path / "other.h5")


LOAD = """
import sys
from pathlib import Path
from harness import snapshots
sys.path[:] = sys.argv[1:] + [path for path in sys.path if "site-packages" not in path]
try:
    print(len(snapshots.load_snapshot(Path("x.h5")).weights))
except snapshots.UsageError as error:
    print(error)
"""


@pytest.mark.parametrize("packages", ["elsewhere", "nowhere"])
def test_the_reader_finds_packages_where_this_process_does(tmp_path, packages):
    """As if they weren't installed in Python's own folder; the current one shadows nothing."""
    (tmp_path / "elsewhere").symlink_to(Path(h5py.__file__).parent.parent)
    (tmp_path / "x.h5").write_bytes(snapshot_of_2018(random_weights()))
    for package in "numpy", "json":
        (tmp_path / f"{package}.py").write_text("raise SystemExit('shadowed')")
    found = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, tmp_path, tmp_path / packages],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = "can't use x.h5: h5py isn't installed" if packages == "nowhere" else "6"
    assert found.stdout.strip() == expected


NO_FOLDERS = """
import errno, os, stat

true_fsync = os.fsync

def fsync(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "Invalid argument")
    true_fsync(descriptor)

os.fsync = fsync
"""


def test_a_file_is_written_where_folders_cannot_be_flushed(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_FOLDERS)
    program = """from pathlib import Path; from harness.whole_files import write_text
write_text(Path("written"), "all of it")"""
    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "written").read_text() == "all of it"
