import itertools
import os
import random
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from conftest import ROOT, load_weights, snapshot_of_2018

from harness.environments import make_environment
from harness.errors import UsageError
from harness.snapshot_reader import unpack
from harness.state import Episode, Progress, load_state, save_state
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
        sys.stdout, refused = open(path + ".out", "w"), False
        try:
            sys.stdin = types.SimpleNamespace(buffer=io.BytesIO(snapshots.read_content(path)))
            snapshot_reader.main()
        except (ValueError, SystemExit):
            refused = True
        sys.stdout.flush()
        os._exit(refused)
    _, status, usage = os.wait4(pid, 0)
    print(status, time.monotonic() - started, usage.ru_maxrss / 2**20)
"""


def read_all(paths):
    """The weights in each file, or None if it was refused; each quickly, and in little memory."""
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
        arrays = path.with_name(path.name + ".out").read_bytes()
        results.append(None if status else unpack(arrays)[0])
    return results


def random_weights(sizes=(2, 8, 8, 3)):
    rng = np.random.default_rng(0)
    weights = []
    for size, next_size in itertools.pairwise(sizes):
        weights += [rng.normal(size=(size, next_size)), rng.normal(size=next_size)]
    return [array.astype(np.float32) for array in weights]


def replace(weight, make):
    """A change that lets `make(group, name)` make another thing in place of a kernel."""

    def change(file):
        group = file[weight].parent
        del file[weight]
        make(group, "kernel:0")

    return change


KERNEL = "model_weights/dense_1/dense_1/kernel:0"


def equal(weights, others):
    return len(weights) == len(others) and all(map(np.array_equal, weights, others))


def damaged(data, count, seed):
    """Copies of `data`, half of them cut short, half with one bit flipped; the ends among them."""
    rng = random.Random(seed)
    for length in [0, 1, len(data) - 1, *rng.sample(range(len(data)), count // 2 - 3)]:
        yield data[:length]
    for place in [0, len(data) - 1, *rng.sample(range(len(data)), count // 2 - 2)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        yield bytes(flipped)


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
    whole, *results = read_all(paths)
    assert equal(whole, weights)
    for path, result in zip(paths[1:], results, strict=True):
        assert result is None or equal(result, weights), path
    # Only where the checksum itself is hit the weights can still be read.
    assert sum(result is None for result in results) > 180


def test_160_damaged_snapshots_without_checksum_crash_and_hang_nothing(tmp_path):
    weights = random_weights()
    data = snapshot_of_2018(weights)
    whole, *results = read_all(write_files(tmp_path, [data, *damaged(data, 160, seed=2)]))
    assert equal(whole, weights)
    assert sum(result is None for result in results) >= 80  # all of those cut short


def test_200_damaged_states_are_refused(tmp_path):
    path = tmp_path / "state.npz"
    arrays = np.arange(3, dtype=np.float32), np.arange(700, dtype=np.float32).reshape(350, 2)
    progress = Progress(Episode(3, 7, [0, 1, 2]), *arrays, step=40)
    save_state(path, {"gamma": 0.99}, progress, {"rng": np.random.default_rng(1)})
    loaded = load_state(path)["progress"]
    assert equal((loaded.q_values, loaded.q_validation_observations), arrays)
    data = path.read_bytes()
    for content in damaged(data, 200, seed=3):
        path.write_bytes(content)
        with pytest.raises(UsageError) as error:
            load_state(path)
        assert "\n" not in str(error.value)


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
    assert "HDF5 can't" not in refused(path)  # it is refused knowingly
    assert read_all([path]) == [None]


def named(*names):
    def change(file):
        file["model_weights"].attrs["layer_names"] = names

    return change


def deep(file):
    group = file["model_weights"]
    for _ in range(3000):
        group = group.create_group("a")
    named("a/" * 3000)(file)


def loop(file):
    file["model_weights/self"] = file["model_weights"]
    named("self/" * 5000 + "dense_1")(file)


def many_times(file):
    # 60 000 layers of 60 000 weights, in 120 kB.
    group = file["model_weights"].create_group("l")
    group["w"] = np.ones((1, 1), np.float32)
    group.attrs["weight_names"] = np.array([b"w"] * 60000)
    file["model_weights"].attrs["layer_names"] = np.array([b"l"] * 60000)


def large_many_times(file):
    group = file["model_weights"].create_group("l")
    group.create_dataset("w", (2**12, 2**12), "f4", fillvalue=1, chunks=(64, 64))
    group.attrs["weight_names"] = np.array([b"w"] * 900)
    named("l")(file)


def disguise(file):
    named("\x1b[2J\n" + "x" * 9000)(file)


def numbers(file):
    file["model_weights"].attrs["layer_names"] = np.arange(5)


def no_names(file):
    del file["model_weights"].attrs["layer_names"]


def not_finite(file):
    file[KERNEL][0, 0] = np.nan


@pytest.mark.parametrize(
    "change",
    [deep, loop, many_times, large_many_times, disguise, numbers, no_names, not_finite],
)
def test_a_file_of_another_structure_is_refused(tmp_path, change):
    path = tmp_path / "harm.h5"
    path.write_bytes(snapshot_of_2018(random_weights(), change))
    refused(path)
    assert read_all([path]) == [None]


def test_nothing_of_a_model_but_its_numbers_is_used(tmp_path, tensorflow):
    import keras

    marker = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    harm = keras.layers.Lambda(eval(f"lambda x: ({code}, x)[1]"), output_shape=(8,))
    dense = keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)
    model = keras.Sequential([keras.layers.Input((2,)), dense[0], harm, dense[1]])
    path = tmp_path / "lambda.h5"
    model.save(path)
    marker.unlink(missing_ok=True)
    pickled = b"cposix\nsystem\n(S'touch " + os.fsencode(marker) + b"'\ntR."
    with h5py.File(path, "a") as file:
        file.attrs["custom_objects"] = np.void(pickled)
        file["model_weights"].attrs["backend"] = np.void(pickled)
    weights = load_weights(path, make_environment("MountainCar-v0"))
    assert equal(weights, model.get_weights())
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
    assert read_all([path]) == [None]
