"""What a run has come to: its files, its state and its plots, compared with another run's."""

import json
import re
from dataclasses import asdict

import numpy as np
from conftest import weights_in
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harness import backend
from harness.log_folder import EVALUATIONS_FILE, STATE_FILE
from harness.state import load_state
from harness.whole_files import unseal

OF_THE_CLOCK = {"episode_seconds", "steps_per_second", "memory_used"}


def points_in(folder):
    """The plots that TensorBoard reads, a dict of lists of (step, value) by tag."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = set(accumulator.Tags()["scalars"]) - OF_THE_CLOCK
    return {tag: [(one.step, one.value) for one in accumulator.Scalars(tag)] for tag in tags}


def state_of(folder):
    """A run's whole state, the times that it took left out."""
    state = load_state(folder / STATE_FILE)
    progress = asdict(state.progress) | {"seconds": None, "command": None}
    progress["evaluations"] = [results[:-1] for results in progress["evaluations"]]
    name = "q_validation_observations"
    arrays = state.arrays | {name: progress.pop(name)}
    return state.settings | {"name": None}, progress, state.generators, arrays


def assert_same_end(folder, expected):
    """Both runs ended with the same files, bit for bit, the same plots and the same state."""
    name = folder.name.removesuffix("-log")
    for path in expected.glob("[!.]*.h5"):
        ours = folder / path.name.replace("whole", name)
        assert ours.read_bytes() == path.read_bytes(), ours
    seconds = re.compile(r",[^,]+$", re.MULTILINE)
    tables = {seconds.sub("", (run / EVALUATIONS_FILE).read_text()) for run in (folder, expected)}
    assert len(tables) == 1
    assert points_in(folder) == points_in(expected)
    *ours, our_arrays = state_of(folder)
    *theirs, their_arrays = state_of(expected)
    assert ours == theirs
    assert our_arrays.keys() == their_arrays.keys()
    for key, array in our_arrays.items():
        assert np.array_equal(array, their_arrays[key], equal_nan=True), key


def assert_whole(folder):
    """Every file with a final name is whole."""
    for path in folder.glob("[!.]*.h5"):
        assert unseal(path.read_bytes())
        weights_in(path)
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    if (folder / EVALUATIONS_FILE).exists():
        assert re.fullmatch(
            r"step,.*\n(\d+,\d+,\d+(,[^,\n]+){5}\n)+", (folder / EVALUATIONS_FILE).read_text()
        )
    if (folder / STATE_FILE).exists():
        load_state(folder / STATE_FILE)


def assert_events_whole(folder):
    for _ in backend.tf.data.TFRecordDataset([str(path) for path in folder.glob("events*")]):
        pass  # raises DataLossError


def partial_files(folder):
    return list(folder.glob(".*.partial.*"))
