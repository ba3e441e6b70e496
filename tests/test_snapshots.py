import itertools
import json
import os
import random
import re
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from conftest import ROOT, config_of_2018, load_weights, snapshot_of_2018

from harness.environments import make_environment
from harness.errors import UsageError
from harness.model_config import dense_layers
from harness.snapshot_reader import SnapshotFile, read_snapshot
from harness.snapshots import load_snapshot
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
        results.append(None if status else SnapshotFile.from_bytes(arrays).weights)
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
    arrays = [np.arange(n, dtype=np.float32) for n in (2, 3, 700)]
    arrays[2] = arrays[2].reshape(350, 2)
    progress = Progress(Episode(3, 7, [0, 1, 2]), *arrays, "python run.py", step=40)
    save_state(path, {"gamma": 0.99}, progress, {"rng": np.random.default_rng(1)})
    loaded = load_state(path).progress
    observed = loaded.observation, loaded.q_values, loaded.q_validation_observations
    assert equal(observed, arrays)
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


def without_description(change):
    """The same change of a file whose `layer_names` say what is in it."""

    def changed(file):
        del file.attrs["model_config"]
        change(file)

    return changed


@pytest.mark.parametrize(
    "change",
    [deep, loop, many_times, large_many_times, disguise, numbers, no_names, not_finite],
)
def test_a_file_of_another_structure_is_refused(tmp_path, change):
    path = tmp_path / "harm.h5"
    path.write_bytes(snapshot_of_2018(random_weights(), without_description(change)))
    refused(path)
    assert read_all([path]) == [None]


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
    assert "layer 'harm' is of type Lambda" in refused(path)
    with h5py.File(path, "a") as file:
        description = file.attrs.pop("model_config")
    assert equal(load_weights(path, make_environment("MountainCar-v0")), model.get_weights())
    assert not marker.exists()
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = description
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


def chain(keras, *layers):
    return keras.Sequential([keras.layers.Input((2,)), *layers])


def residual(keras):
    observations = keras.layers.Input((2,))
    first = keras.layers.Dense(8, activation="relu")(observations)
    second = keras.layers.Dense(8, activation="relu")(first)
    added = keras.layers.Add(name="shortcut")([first, second])
    return keras.Model(observations, keras.layers.Dense(3)(added))


def gated(keras):
    observations = keras.layers.Input((2,))
    hidden = keras.layers.Dense(8, activation="relu")(observations)
    output = keras.layers.Dense(2)(hidden)
    return keras.Model(observations, keras.layers.Multiply(name="gate")([output, observations]))


def shared(keras):
    observations = keras.layers.Input((2,))
    twice = keras.layers.Dense(2, activation="relu", name="twice")
    return keras.Model(observations, keras.layers.Dense(3)(twice(twice(observations))))


def two_heads(keras):
    observations = keras.layers.Input((2,))
    hidden = keras.layers.Dense(8, activation="relu")(observations)
    return keras.Model(observations, [keras.layers.Dense(3)(hidden), keras.layers.Dense(1)(hidden)])


def nested(keras):
    inner = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(2)], name="inner")
    return chain(keras, inner, keras.layers.Dense(3))


def between(kind, first="relu", **options):
    """A chain of two Dense layers with a layer of another kind before the last of them."""

    def make(keras):
        layer = getattr(keras.layers, kind)(**options, name="odd")
        return chain(keras, keras.layers.Dense(8, first), layer, keras.layers.Dense(3))

    return make


OTHER_NETWORKS = {
    "layer 'odd' has the activation tanh; expected relu": between(
        "Dense", units=8, activation="tanh"
    ),
    "layer 'odd' has the activation linear; expected relu": between("Dense", units=8),
    "layer 'odd' has no bias; expected one": between(
        "Dense", units=8, activation="relu", use_bias=False
    ),
    "layer 'odd' is of type Rescaling; expected a chain": between("Rescaling", scale=10.0),
    "layer 'odd' is of type Dropout; expected a chain": between("Dropout", rate=0.5),
    "layer 'odd' has the activation 'ReLU with limits'; expected relu": between(
        "ReLU", max_value=6, first="linear"
    ),
    "layer 'odd' has the activation tanh; expected relu, after a Dense layer": between(
        "Activation", activation="tanh", first="linear"
    ),
    "layer 'odd' has the activation relu; expected relu, after a Dense layer without": between(
        "Activation", activation="relu", first="tanh"
    ),
    "layer 'odd' has the activation LeakyReLU; expected relu": lambda keras: chain(
        keras,
        keras.layers.Dense(8, activation=keras.layers.LeakyReLU(), name="odd"),
        keras.layers.Dense(3),
    ),
    "layer 'odd' has the activation softmax; expected linear": lambda keras: chain(
        keras,
        keras.layers.Dense(8, activation="relu"),
        keras.layers.Dense(3, activation="softmax", name="odd"),
    ),
    "layer 'inner' is of type Sequential; expected a chain": nested,
    "layer 'shortcut' is of type Add; expected a chain": residual,
    "layer 'gate' multiplies by the observations, not a mask": gated,
    "layer 'twice' is used more than once": shared,
    "its network has 2 outputs; expected one": two_heads,
}


@pytest.mark.parametrize("says", OTHER_NETWORKS)
def test_a_network_other_than_ours_is_refused_by_its_layer(tmp_path, tensorflow, says):
    import keras

    path = tmp_path / "other.h5"
    OTHER_NETWORKS[says](keras).save(path)
    assert says in refused(path)


def test_relu_layers_of_their_own_are_read_as_the_same_network(tmp_path, tensorflow, capsys):
    import keras

    model = chain(
        keras,
        keras.layers.Dense(8),
        keras.layers.ReLU(),
        keras.layers.Dense(6),
        keras.layers.Activation("relu"),
        keras.layers.Dense(5, activation=keras.activations.relu),
        keras.layers.Dense(3, activation=keras.activations.linear),
    )
    model.save(tmp_path / "layers.h5")
    assert equal(load_snapshot(tmp_path / "layers.h5").weights, model.get_weights())
    assert "assumed" not in capsys.readouterr().out


def test_the_layers_are_ordered_by_their_connections_not_by_the_file(tmp_path):
    weights = random_weights((2, 8, 8, 3))

    def reverse(file):
        layers = file["model_weights"]
        layers.attrs["layer_names"] = layers.attrs["layer_names"][::-1]
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].reverse()
        file.attrs["model_config"] = json.dumps(config)

    path = tmp_path / "reversed.h5"
    path.write_bytes(snapshot_of_2018(weights, reverse))
    assert equal(load_snapshot(path).weights, weights)


def test_weights_without_a_description_are_read_and_a_line_says_what_is_assumed(
    tmp_path, tensorflow, capsys
):
    import keras
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    # More than ten layers: dense_10 comes before dense_2 in the file.
    hidden = [keras.layers.Dense(units, activation="relu") for units in range(4, 16)]
    model = chain(keras, *hidden, keras.layers.Dense(3))
    with h5py.File(tmp_path / "keras2.h5", "w") as file:
        save_weights_to_hdf5_group(file, model)
    model.save_weights(tmp_path / "keras3.weights.h5")
    for name in ("keras2.h5", "keras3.weights.h5"):
        path = tmp_path / name
        assert equal(load_snapshot(path).weights, model.get_weights())
        assert capsys.readouterr().out == (
            f"{path} holds weights only: its hidden layers are assumed to be ReLU\n"
        )
    normalised = chain(keras, hidden[0], keras.layers.BatchNormalization(), keras.layers.Dense(3))
    normalised.save_weights(tmp_path / "normalised.weights.h5")
    assert "layer 'batch_normalization' has weights" in refused(tmp_path / "normalised.weights.h5")


def described_as(text):
    """The change of a file that gives it another `model_config`."""

    def change(file):
        file.attrs["model_config"] = text

    return change


def altered(**changes):
    """A description whose layer `dense_2` has other settings."""
    config = config_of_2018(random_weights((2, 8, 8, 3)))
    for layer in config["config"]["layers"]:
        if layer["name"] == "dense_2":
            layer["config"].update(changes)
    return json.dumps(config)


def connected(name, *sources):
    """A description in which one layer takes other layers' outputs."""
    config = config_of_2018(random_weights((2, 8, 8, 3)))
    for layer in config["config"]["layers"]:
        if layer["name"] == name:
            layer["inbound_nodes"] = [[[source, 0, 0, {}] for source in sources]]
    return json.dumps(config)


def renamed(name):
    return json.dumps(config_of_2018(random_weights((2, 8, 8, 3)))).replace("dense_2", name)


HOSTILE = {
    "huge": ("[" + "0," * 2**21 + "0]", "isn't a text of at most"),
    "deep lists": ("[" * 10**6, "isn't JSON"),
    "deep dicts": ('{"a":' * 10**5, "isn't JSON"),
    "deep connection": (connected("dense_2").replace("[[]]", "[" * 200 + "]" * 200), "isn't a"),
    "no JSON": ("{'class_name': Model}", "isn't JSON"),
    "NaN": (altered(units=float("nan")), "isn't JSON"),
    "long number": (altered().replace("8", "8" * 9000), "isn't JSON"),
    "a list": ("[]", "isn't a description"),
    "a number": ("7", "isn't a description"),
    "no layers": ('{"class_name": "Model", "config": {}}', "isn't a description"),
    "layers of numbers": (
        '{"class_name": "Sequential", "config": {"layers": [1, 2]}}',
        "isn't a description",
    ),
    "a layer's name is a number": (
        '{"class_name": "Sequential", "config": [{"class_name": "Dense", "config": {"name": 3}}]}',
        "isn't a description",
    ),
    "units are a text": (altered(units="8"), "isn't a description"),
    "an activation is a number": (altered(activation=8), "isn't a description"),
    "other units": (altered(units=9), "layer 'dense_2' has 9 units, but weights for 8"),
    "fewer layers": (
        json.dumps(config_of_2018(random_weights((2, 8, 3)))),
        "layer 'dense_2' has 3 units, but weights for 8",
    ),
    "more layers": (
        json.dumps(config_of_2018(random_weights((2, 8, 8, 8, 3)))),
        "layer 'dense_3' has 8 units, but weights for 3",
    ),
    "a layer without arrays": (renamed("multiply_2"), "it has no 'multiply_2'"),
    "two of a name": (renamed("dense_1"), "have the same name"),
    "a circle": (connected("dense_1", "dense_3"), "layer 'dense_3' takes 'dense_2'"),
    "no such source": (connected("dense_1", "nowhere"), "isn't a description"),
    "a branch": (connected("dense_3", "dense_1"), "layer 'dense_2' doesn't lead to the output"),
    "another mask": (connected("multiply", "dense_3"), "layer 'multiply' multiplies 'dense_3'"),
    "another model": ('{"class_name": "Robot", "config": []}', "its model is of type Robot"),
    "control characters": (
        renamed("\\u001b[2J\\n\\ud800").replace('"relu"', '"tanh"'),
        "has the activation tanh",
    ),
    "a long name": (renamed("x" * 10**5), "it has no 'xxxx"),
    "a path": (renamed("../dense_2"), "it has no '../dense_2'"),
    "no text": (np.arange(5), "its attribute 'model_config' isn't a text"),
    "texts": (["{}"] * 5, "its attribute 'model_config' isn't a text"),
    "nothing": (h5py.Empty("S10"), "its attribute 'model_config' isn't a text"),
    "bytes": (b"\xff\xfe", "isn't JSON"),
}


def described(name):
    """The bytes of a snapshot whose `model_config` is one of HOSTILE."""
    return snapshot_of_2018(random_weights((2, 8, 8, 3)), described_as(HOSTILE[name][0]))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_description_of_no_model_or_of_another_one_is_refused(name):
    with pytest.raises(ValueError, match=re.escape(HOSTILE[name][1])):
        read_snapshot(described(name))


def test_hostile_descriptions_take_little_time_and_memory(tmp_path):
    paths = write_files(tmp_path, map(described, HOSTILE))
    assert read_all(paths) == [None] * len(HOSTILE)


@pytest.mark.parametrize("name", ["control characters", "a long name", "deep lists"])
def test_a_hostile_description_gets_one_plain_line(tmp_path, name):
    path = tmp_path / "harm.h5"
    path.write_bytes(described(name))
    assert HOSTILE[name][1] in refused(path)


def test_keras_1_and_its_words_are_understood():
    dense = [
        {"name": "dense_1", "output_dim": 8, "activation": "linear", "bias": True},
        {"name": "dense_2", "output_dim": 3, "activation": "linear", "bias": True},
    ]
    relu = {"class_name": "Activation", "config": {"name": "relu_1", "activation": "relu"}}
    layers = [{"class_name": "Dense", "config": config} for config in dense]
    layers.insert(1, relu)
    found = dense_layers(json.dumps({"class_name": "Sequential", "config": layers}))
    assert [layer.name for layer in found] == ["dense_1", "dense_2"]


ODD_VALUES = [None, True, -1, 1.5, "", [], {}, [[]], ["a", 0, 0], "Dense", "Multiply", "relu"]


def altered_at_random(value, share, rng):
    """A JSON value, of which a share of the parts is missing or something else."""
    if rng.random() < share:
        return rng.choice(ODD_VALUES)
    if isinstance(value, dict):
        kept = [name for name in value if rng.random() > share]
        return {name: altered_at_random(value[name], share, rng) for name in kept}
    if isinstance(value, list):
        return [altered_at_random(part, share, rng) for part in value if rng.random() > share]
    return value


def test_2000_descriptions_altered_at_random_are_read_or_refused():
    rng = random.Random(4)
    with h5py.File(ROOT / "assets" / "mountain.h5") as file:
        configs = [json.loads(file.attrs["model_config"])]
    configs.append(config_of_2018(random_weights()))
    refusals = set()
    for number in range(2000):
        config = altered_at_random(configs[number % 2], rng.choice([0.001, 0.01, 0.05]), rng)
        try:
            dense_layers(json.dumps(config))
        except ValueError as error:
            refusals.add(str(error))
    assert len(refusals) > 50
    assert all(refusal.isprintable() for refusal in refusals)
