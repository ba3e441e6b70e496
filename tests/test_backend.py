"""Nothing that a user has set for other projects changes a run."""

import json
import os

import numpy as np
import pytest
from conftest import run_command, weights_in

SHORT_RUN = [
    *("--name", "run", "--seed", "1", "--max-steps", "300", "--train-start", "60"),
    *("--eval-every", "150", "--eval-steps", "400", "--hidden", "8,8"),
]
VARIABLES = {
    "KERAS_BACKEND": "jax",
    "KERAS_MAX_EPOCHS": "many",
    "NVIDIA_TF32_OVERRIDE": "0",
    "TF2_BEHAVIOR": "0",
    "TF_DETERMINISTIC_OPS": "1",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_XLA_FLAGS": "--no_such_flag",
    "XLA_FLAGS": "--no_such_flag=8",
    "TMPDIR": "/no/such/folder",
}
KERAS = {"epsilon": 0.1, "image_data_format": "channels_first", "backend": "jax"}
MATPLOTLIB = "text.usetex: True\nfont.size: 40\nbackend: none\nno.such.key: 1\nimage.cmap: gray\n"


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The folder of a run as it is without any configuration."""
    return run_with(tmp_path_factory.mktemp("usual"), {}, KERAS_HOME=None)


def run_with(home, files, **variables):
    """A short run of a user with these files and variables; returns its log folder."""
    for name, text in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": cache, **variables}
    environment = {name: value for name, value in environment.items() if value is not None}
    folder = home / "here"
    folder.mkdir(exist_ok=True)
    result = run_command("run.py", *SHORT_RUN, cwd=folder, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    written = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert {name for name in written if "run-log" not in name} == set(files)
    return folder / "run-log"


def pictures_in(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"images": 0}).Reload()
    return [
        event.encoded_image_string
        for tag in ("value_function", "policy")
        for event in events.Images(tag)
    ]


def test_a_users_own_files_and_variables_change_no_bit(tmp_path, usual):
    files = {
        ".keras/keras.json": json.dumps({**KERAS, "floatx": "float16"}),
        "keras/keras.json": json.dumps({**KERAS, "floatx": "float64"}),
        ".config/matplotlib/matplotlibrc": MATPLOTLIB,
        "here/matplotlibrc": "axes.facecolor: black\n",
    }
    folder = run_with(tmp_path, files, KERAS_HOME=str(tmp_path / "keras"), **VARIABLES)
    for name in ("run-best.h5", "run-300.h5"):
        pairs = zip(weights_in(folder / name), weights_in(usual / name), strict=True)
        assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
    assert pictures_in(folder) == pictures_in(usual)
    assert len(pictures_in(usual)) == 2


def test_a_keras_that_was_told_otherwise_before_computes_in_float32(tensorflow):
    import keras

    import run
    from harness import backend
    from harness.environments import make_environment

    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("mixed_bfloat16")
    backend.start_tensorflow(threads=1, seed=0)
    model = run.create_model(make_environment("MountainCar-v0"))
    assert model.compute_dtype == model.dtype == "float32"
