import contextlib
import io
import itertools
import json
import os
import pty
import random
import re
import subprocess
import sys
import termios
import threading
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from forked import train_forked

import run
from harness.backend import start_tensorflow, tf
from harness.settings import training_settings
from harness.snapshot_reader import read_snapshot
from harness.snapshots import check_fit_for, load_snapshot, read_content

with contextlib.redirect_stderr(io.StringIO()):  # gym's notice would come after pytest's last line
    import gym

ROOT = Path(__file__).parent.parent
GOING_ON = SimpleNamespace(number=0, exit_status=0)  # stands in for a StopSignal
SHORT = ["--max-steps=2500", "--eval-every=1000", "--eval-steps=400", "--log-every=400", "--seed=1"]
SCALARS = {
    *("episode_return", "episode_steps", "episode_seconds", "steps_per_second"),
    *("memory_used", "loss", "episode_return_avg", "avg_max_q_value"),
}


class Corridor(gym.Env):
    """Four cells in a row; 0 goes left, 1 goes right; the rightmost ends the episode with 1.

    Each step costs 0.1. The observation is the cell, one-hot, so that Q can be exact. Rewards are
    NumPy numbers, as those of some environments are.
    """

    cells = 4

    def __init__(self, render_mode=None):
        self.observation_space = gym.spaces.Box(0, 1, (self.cells,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(self.cells))
        return self._observe(), {}

    def step(self, action):
        terminated = action == 1 and self.cell == self.cells - 1
        self.cell = int(np.clip(self.cell + (1 if action else -1), 0, self.cells - 1))
        return self._observe(), np.float32(1.0 if terminated else -0.1), terminated, False, {}

    def _observe(self):
        return np.eye(self.cells, dtype=np.float32)[self.cell]

    @classmethod
    def exact_q_values(cls, gamma):
        """Value iteration: float64 array (cells, 2)."""
        q = np.zeros((cls.cells, 2))
        for _ in range(2000):
            left, *others = -0.1 + gamma * q.max(axis=1)
            q = np.column_stack([[left, left, *others[:-1]], [*others, 1.0]])
        return q


class Endless(Corridor):
    """A corridor without an end."""

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


class Wayward(Corridor):
    """A corridor that takes no notice of its seed: each reset begins in the next cell."""

    resets = itertools.count()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = next(self.resets) % self.cells
        return self._observe(), {}


gym.register("Wayward-v0", entry_point=Wayward, max_episode_steps=20)
gym.register("Corridor-v0", entry_point=Corridor, max_episode_steps=20)
gym.register("Endless-v0", entry_point=Endless)


def weights_in(path):
    """The weights in a snapshot that we trust, without the process that reads others."""
    return [*itertools.chain(*read_snapshot(read_content(path)).arrays.values())]


def random_weights(sizes=(2, 8, 8, 3)):
    """A kernel and a bias for each of the layers between these sizes."""
    rng = np.random.default_rng(0)
    weights = []
    for size, next_size in itertools.pairwise(sizes):
        weights += [rng.normal(size=(size, next_size)), rng.normal(size=next_size)]
    return [array.astype(np.float32) for array in weights]


def config_of_2018(weights):
    """The `model_config` that Keras 2.1.5 wrote for the tutorial's network, as a dict."""

    def layer(name, kind, sources=(), **config):
        nodes = [[[source, 0, 0, {}] for source in sources]] if sources else []
        config = {"name": name, **config}
        return {"name": name, "class_name": kind, "config": config, "inbound_nodes": nodes}

    def input_layer(name, size):
        shape = {"batch_input_shape": [None, size], "dtype": "float32", "sparse": False}
        return layer(name, "InputLayer", **shape)

    layers, source = [input_layer("observations", len(weights[0]))], "observations"
    for number, bias in enumerate(weights[1::2], start=1):
        activation = "linear" if number == len(weights) // 2 else "relu"
        config = {"units": len(bias), "activation": activation, "use_bias": True}
        layers.append(layer(f"dense_{number}", "Dense", [source], trainable=True, **config))
        source = f"dense_{number}"
    layers.append(input_layer("action_mask", len(weights[-1])))
    layers.append(layer("multiply", "Multiply", [source, "action_mask"], trainable=True))
    ends = {
        "input_layers": [["observations", 0, 0], ["action_mask", 0, 0]],
        "output_layers": [["multiply", 0, 0]],
    }
    return {"class_name": "Model", "config": {"name": "model", "layers": layers, **ends}}


def snapshot_of_2018(weights, change=None):
    """The bytes of a snapshot as Keras 2.1.5 wrote it, whose model_config Keras 3 can't read.

    `change(file)` may alter it before it is closed.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        config = config_of_2018(weights)
        file.attrs["keras_version"] = b"2.1.5-tf"
        file.attrs["backend"] = b"tensorflow"
        file.attrs["model_config"] = json.dumps(config).encode()
        names = [layer["name"] for layer in config["config"]["layers"]]
        layers = file.create_group("model_weights")
        layers.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            layers.create_group(name).attrs["weight_names"] = []
        dense = [name for name in names if name.startswith("dense")]
        for name, kernel, bias in zip(dense, weights[0::2], weights[1::2], strict=True):
            paths = [f"{name}/kernel:0", f"{name}/bias:0"]
            layers[name].attrs["weight_names"] = [path.encode() for path in paths]
            layers[name][paths[0]], layers[name][paths[1]] = kernel, bias
        if change:
            change(file)
    return content.getvalue()


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


def load_weights(path, env):
    """The weights in a snapshot that anyone may have written, checked to fit `env`."""
    snapshot = load_snapshot(path)
    check_fit_for(env, snapshot)
    return snapshot.weights


def relu_network(weights):
    """The Q function of Dense layers with ReLU between them, written without the program's own."""

    def q_function(observations):
        layer = observations
        *hidden, (kernel, bias) = zip(weights[0::2], weights[1::2], strict=True)
        for hidden_kernel, hidden_bias in hidden:
            layer = np.maximum(layer @ hidden_kernel + hidden_bias, 0)
        return layer @ kernel + bias

    return q_function


@pytest.fixture(scope="session")
def tensorflow():
    """TensorFlow, started as the tool starts it; its import is the suite's longest wait."""
    start_tensorflow(threads=1, seed=0)
    return tf


@pytest.fixture
def train(tensorflow, tmp_path, monkeypatch):
    """Trains in this process and an empty folder: `train(**given)` gives folder and TrainingRun."""
    monkeypatch.chdir(tmp_path)

    def train(**given):
        settings = training_settings(run.Settings, given, run.PRESETS)
        ended = run.train(settings, GOING_ON)
        return ended.folder, ended

    return train


def python(program, arguments):
    program = ROOT / program if program.endswith(".py") else program
    return [sys.executable, program, *map(str, arguments)]


def start_command(program, *arguments, **options):
    """Start `python PROGRAM …`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(python(program, arguments), **pipes, **options)


def run_command(program, *arguments, **options):
    """Run `python PROGRAM …`; return the finished process."""
    options |= {"capture_output": True, "text": True, "timeout": 300}
    return subprocess.run(python(program, arguments), check=False, **options)


@contextlib.contextmanager
def terminal():
    """A pseudo-terminal of 80 columns: its file descriptor, and a bytearray of what it shows."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    shown = bytearray()

    def read():
        with contextlib.suppress(OSError):  # its last user has closed it
            while data := os.read(ours, 1 << 16):
                shown.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    yield theirs, shown
    os.close(theirs)
    reader.join(timeout=10)
    os.close(ours)


@pytest.fixture
def refused(here, capsys):
    """Runs a program that must refuse: one line, status 2, nothing written; returns the line."""

    def files():
        # A folder's own time changes when its lock tries whether it can be written.
        return {path: path.is_dir() or path.lstat().st_mtime_ns for path in here.rglob("*")}

    def refused(*words, main=run.main):
        before = files()
        capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert (status, out) == (2, "")
        assert re.fullmatch(r"(run|see)\.py: error: [^\n]+\n", err), err
        assert files() == before
        return err

    return refused


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """The log folder of a run that nothing happened to; run once for each set of flags."""
    folders = {}

    def unbroken(flags):
        if flags not in folders:
            folder = tmp_path_factory.mktemp("unbroken")
            training = train_forked(folder, f"--name whole {flags}")
            assert training.exitcode == 0, training.output
            folders[flags] = folder / "whole-log"
        return folders[flags]

    return unbroken


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder of two short runs: car-log, pole-log."""
    folder = tmp_path_factory.mktemp("runs")
    with contextlib.chdir(folder):
        for name, env in ("car", "MountainCar-v0"), ("pole", "CartPole-v1"):
            assert run.main([*SHORT, "--name", name, "--env", env]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def environments(monkeypatch):
    """Lets `--env fields:…` and `--env paths:…` find the environments made for the tests."""
    monkeypatch.syspath_prepend(ROOT / "tests/environments")
