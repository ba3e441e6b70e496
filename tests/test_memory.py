"""Memory that compiled code sees: arrays of any size, place and dtype, each kind in a process."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import run
from harness import backend
from harness.arrays import aligned_buffer
from harness.environments import make_environment
from harness.network import FlatModel

# Fits and predicts with arrays that lie where NumPy may put them, of the sizes that are named.
# A crash kills the process, so its status tells; what it was at is its last line.
PROBE = """
import sys
import numpy as np
import run
from types import SimpleNamespace
from harness import backend
from harness.network import FlatModel
from replay_buffer import row_width

def misaligned(array):
    memory = np.zeros(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + 4
    moved = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved

def odd_address(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    moved = memory[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved

def strided(array):
    wide = np.zeros((*array.shape[:-1], 3 * array.shape[-1]), array.dtype)
    wide[..., ::-3] = array
    return wide[..., ::-3]

def read_only(array):
    array = misaligned(array)
    array.flags.writeable = False
    return array

def double(array):
    return array.astype(np.float64)

def big_endian(array):
    return array.astype(">f4")

backend.start_tensorflow(1, 0)
for size in map(int, sys.argv[1:]):
    env = SimpleNamespace(observation_size=size, n_actions=3)
    keras_model = run.create_model(env, (16, 8))
    model = FlatModel(keras_model, keras_model.optimizer)
    target_model = FlatModel(keras_model)
    step = run.compile_fit_and_predict(model, target_model, 5)
    before, rng = model.get_state(), np.random.default_rng(size)
    for make in misaligned, odd_address, strided, read_only, double, big_endian:
        print(size, make.__name__, flush=True)
        batch = rng.normal(size=(5, row_width(size))).astype(np.float32)
        batch[:, size] = rng.integers(3, size=5)
        observation = rng.normal(size=size).astype(np.float32)
        results = []
        for fitted in (
            lambda: step(make(batch), make(observation)),
            lambda: step.compiled(batch, observation).numpy(),
        ):
            model.set_state(before)
            results.append(np.concatenate([fitted(), model.theta.numpy()]))
        assert (results[0] == results[1]).all()
"""
SIZES = [7, 64]  # of larger ones, nearly every fit crashed without aligned memory


def test_arrays_of_any_size_place_and_dtype_are_fitted_as_tensorflow_does():
    command = [sys.executable, "-c", PROBE, *map(str, SIZES)]
    probe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert probe.returncode == 0, f"at {probe.stdout.splitlines()[-1:]}: {probe.stderr}"


def test_an_array_of_another_shape_is_refused_not_broadcast(tensorflow):
    step = backend.compile_step(lambda row: row + 1, (3,))
    assert step(np.arange(3)).tolist() == [1, 2, 3]
    for array in np.zeros(1), np.zeros((3, 1)), np.zeros((1, 3)), np.zeros(4):
        with pytest.raises(ValueError, match=r"expected an array of shape \(3,\), not"):
            step(array)


def test_a_buffer_is_aligned_whatever_its_size():
    for size in range(1, 201):
        for shape in (size,), (size, 3), (64, size):
            buffer = aligned_buffer(shape)
            assert (buffer.shape, buffer.dtype) == (shape, np.float32)
            assert buffer.ctypes.data % 64 == 0 and buffer.flags.c_contiguous


def test_weights_and_states_that_were_read_do_not_change_when_training_goes_on(tensorflow):
    env = make_environment("MountainCar-v0")
    keras_model = run.create_model(env, ema_momentum=0.9)
    model = FlatModel(keras_model, keras_model.optimizer)
    target_model = FlatModel(model.keras_model)
    step = run.compile_fit_and_predict(model, target_model, 64)
    results, copies = [], []
    for number in range(5):
        fitted = step(np.full((64, 7), number / 9), np.full(2, number))
        read = [fitted, *model.get_weights(), *model.averaged_weights()]
        read += model.get_state().values()
        results.append(read)
        copies.append([np.array(array) for array in read])
    for read, copied in zip(results, copies, strict=True):
        assert all(map(np.array_equal, read, copied))
