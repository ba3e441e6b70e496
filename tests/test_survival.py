"""Kills, signals, full disks and closed terminals: what a run survives, and how it goes on."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import start_command, terminal, weights_in
from forked import EVERYTHING, FEW, Training, kill_soon, limit, train_forked

from harness import backend, snapshots
from harness.errors import UsageError
from harness.log_folder import STATE_FILE
from harness.state import load_state
from harness.terminal import log
from harness.whole_files import unseal, write_text

kill = signal.raise_signal


def state_of(folder):
    """A run's whole state, the times that it took left out."""
    state = load_state(folder / STATE_FILE)
    progress = asdict(state.progress) | {"seconds": None, "command": None}
    progress["episode"]["seconds"] = None
    progress["evaluations"] = [results[:-1] for results in progress["evaluations"]]
    names = "observation", "q_values", "q_validation_observations"
    arrays = state.arrays | {name: progress.pop(name) for name in names}
    return state.settings | {"name": None}, progress, state.generators, arrays


def assert_same_end(folder, expected):
    """Both runs ended with the same files, bit for bit, and the same state."""
    name = folder.name.removesuffix("-log")
    for path in expected.glob("[!.]*.h5"):
        ours = folder / path.name.replace("whole", name)
        assert ours.read_bytes() == path.read_bytes(), ours
    seconds = re.compile(r",[^,]+$", re.MULTILINE)
    tables = {seconds.sub("", (run / "evaluations.csv").read_text()) for run in (folder, expected)}
    assert len(tables) == 1
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
    if (folder / "config.json").exists():
        json.loads((folder / "config.json").read_text())
    if (folder / "evaluations.csv").exists():
        assert re.fullmatch(
            r"step,.*\n(\d+,\d+,\d+(,[^,\n]+){3}\n)+", (folder / "evaluations.csv").read_text()
        )
    if (folder / STATE_FILE).exists():
        load_state(folder / STATE_FILE)


def assert_events_whole(folder):
    for _ in backend.tf.data.TFRecordDataset([str(path) for path in folder.glob("events*")]):
        pass  # raises DataLossError


def partial_files(folder):
    return list(folder.glob(".*.partial.*"))


# Kills ---------------------------------------------------------------------------------------


def a_kill(rng):
    """SIGKILL at a random moment: after a step, while a file is written, or at any time."""
    if rng.random() < 0.3:
        return "step", rng.randint(1, 150), kill, signal.SIGKILL
    if rng.random() < 0.7:
        return rng.choice(["seal", "fsync", "replace"]), rng.randint(1, 8), kill, signal.SIGKILL
    return "step", rng.randint(1, 70), kill_soon, signal.SIGKILL, rng.uniform(0, 0.4)


@pytest.mark.parametrize(("flags", "seed"), [(EVERYTHING, 1), (f"{FEW} --env CartPole-v1", 2)])
def test_a_run_killed_11_times_ends_like_an_unbroken_one(unbroken, tmp_path, flags, seed):
    rng = random.Random(seed)
    folder = tmp_path / "killed-log"
    killed = writing = 0
    while True:
        if not (folder / STATE_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        command = "--resume killed-log" if folder.exists() else f"--name killed {flags}"
        training = train_forked(tmp_path, command, *[a_kill(rng)] * (killed < 11))
        assert_whole(folder)
        if training.exitcode == -signal.SIGKILL:
            killed += 1
            writing += bool(partial_files(folder))
            continue
        if "the run is finished" not in training.output:  # killed after its last state
            assert training.exitcode == 0, training.output
        if killed == 11:
            break
        shutil.rmtree(folder)  # it outran its killer
    assert_same_end(folder, unbroken(flags))
    assert not partial_files(folder)
    assert writing >= 1


def test_a_run_killed_before_its_first_state_is_refused_in_one_line(tmp_path, refused):
    training = train_forked(tmp_path, f"--name early {FEW}", ("step", 5, kill, signal.SIGKILL))
    assert training.exitcode == -signal.SIGKILL
    error = refused("--resume", "early-log")
    assert error.endswith("no run was saved there; start it again\n")


# Ctrl-C and SIGTERM --------------------------------------------------------------------------

MOMENTS = [  # what happens, exit status, step at which the run stops; None: not told here
    (("start_tensorflow", 1, kill, signal.SIGINT), 130, 0),
    (("step", 10, kill, signal.SIGTERM), 143, 10),
    (("step", 10 + 40 + 30, kill, signal.SIGINT), 130, 50),  # in the first evaluation
    (("step", 50 + 50 + 99, kill, signal.SIGTERM), 143, 100),  # in the next
    (("execute", 1, kill_soon, signal.SIGINT, 0.2), 130, None),  # while TensorFlow compiles
    (("seal", 2, kill, signal.SIGTERM), 143, None),  # while the state is written
    (("replace", 3, kill, signal.SIGINT), 130, None),
    (("evaluate", 1, kill, signal.SIGHUP), 129, None),
]


def test_a_run_stopped_at_all_kinds_of_moments_ends_like_an_unbroken_one(
    tensorflow, unbroken, tmp_path
):
    folder = tmp_path / "stopped-log"
    command, repeating = f"--name stopped {EVERYTHING}", False
    for accident, status, step in MOMENTS:
        training = train_forked(tmp_path, command, accident)
        lines = training.output.splitlines()
        assert training.exitcode == status, training.output
        assert "Traceback" not in training.output
        assert lines[-1].endswith("run.py --resume stopped-log")
        state = load_state(folder / STATE_FILE)
        reached = state.progress
        assert lines[-2] == f"Stopped at step {reached.step}. Resume with:"
        assert step in (None, reached.step)
        assert (folder / f"stopped-{reached.step}.h5").exists()
        repeating |= state.arrays["exploration.repeat"][1] > 0
        assert_whole(folder)
        assert_events_whole(folder)
        command = "--resume stopped-log"
    assert repeating  # one stop was within a random action that lasts
    training = train_forked(tmp_path, command)
    assert training.exitcode == 0, training.output
    assert_same_end(folder, unbroken(EVERYTHING))


def test_a_second_ctrl_c_stops_at_once_even_while_saving(unbroken, tmp_path):
    folder = tmp_path / "twice-log"
    twice = ("seal", 3, kill, signal.SIGINT), ("seal", 3, kill, signal.SIGINT)
    training = train_forked(tmp_path, f"--name twice {EVERYTHING}", *twice)
    assert training.exitcode == 130
    assert "Traceback" not in training.output
    assert "--resume" not in training.output
    assert partial_files(folder)
    assert_whole(folder)
    assert train_forked(tmp_path, "--resume twice-log").exitcode == 0
    assert not partial_files(folder)
    assert_same_end(folder, unbroken(EVERYTHING))


def loaded(process, library):
    """Wait until a process has loaded a library; that its import is still going on is likely."""
    maps = Path(f"/proc/{process.pid}/maps")
    while library not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.001)


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks /proc")


@needs_proc
@pytest.mark.parametrize("program", ["run.py", "see.py"])
def test_ctrl_c_during_the_first_imports_leaves_no_traceback(tmp_path, program):
    process = start_command(program, cwd=tmp_path)
    loaded(process, "_multiarray_umath")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert not list(tmp_path.iterdir())


@needs_proc
def test_ctrl_c_while_tensorflow_is_imported_saves_and_can_be_resumed(unbroken, tmp_path):
    process = start_command("run.py", "--name", "import", *EVERYTHING.split(), cwd=tmp_path)
    loaded(process, "libtensorflow_cc")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "")
    assert re.search(
        r"Stopped at step 0\. Resume with:\n\S+ \S*run.py --resume import-log\n$", output
    )
    assert train_forked(tmp_path, "--resume import-log").exitcode == 0
    assert_same_end(tmp_path / "import-log", unbroken(EVERYTHING))


def test_ctrl_c_does_not_reach_the_process_that_reads_a_snapshot(tmp_path, monkeypatch):
    reader = "import os, sys; print(os.getpgrp(), file=sys.stderr); sys.exit(2)"
    path = tmp_path / "x.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setattr(snapshots, "READER", reader)
    with pytest.raises(UsageError) as error:
        snapshots.load_snapshot(path)
    assert int(str(error.value).split(": ")[1]) != os.getpgrp()


# Disks and terminals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accident", "reason"),
    [
        (("step", 300, limit, 9000), "file too large"),
        (("step", 300, shutil.rmtree, "bad-log"), "no such file or directory"),
    ],
    ids=["the disk is full", "the log folder is gone"],
)
def test_what_cannot_be_saved_to_the_end_is_status_1(unbroken, tmp_path, accident, reason):
    training = train_forked(tmp_path, f"--name bad {EVERYTHING}", accident)
    folder, lines = tmp_path / "bad-log", training.output.splitlines()
    assert training.exitcode == 1
    for name in "state.npz", "bad-400.h5":
        assert f"warning: can't write bad-log/{name}: {reason}" in lines
    assert lines[-1].startswith("run.py: error: the last snapshot or state")
    assert "Traceback" not in training.output
    assert not partial_files(folder)
    if folder.exists():  # what was saved before goes on
        assert_whole(folder)
        assert train_forked(tmp_path, "--resume bad-log").exitcode == 0
        assert_same_end(folder, unbroken(EVERYTHING))


@pytest.mark.parametrize(
    "accidents",
    [
        (("step", 130, limit, 300), ("step", 600, limit, -1)),
        (
            ("step", 130, shutil.move, "late-log", "away"),
            ("step", 600, shutil.move, "away", "late-log"),
        ),
    ],
    ids=["the disk is full", "the log folder is moved"],
)
def test_what_cannot_be_saved_for_a_while_is_lost_and_no_more(
    tensorflow, unbroken, tmp_path, accidents
):
    training = train_forked(tmp_path, f"--name late {EVERYTHING}", *accidents)
    assert training.exitcode == 0, training.output
    assert training.output.count("warning: can't write late-log/events") <= 1  # not at every line
    assert "warning: can't write late-log/late-69.h5: " in training.output
    folder, expected = tmp_path / "late-log", unbroken(EVERYTHING)
    assert len(list(folder.glob("[!.]*.h5"))) < len(list(expected.glob("*.h5")))
    final = (folder / "late-400.h5").read_bytes()
    assert final == (expected / "whole-400.h5").read_bytes()
    assert_whole(folder)
    assert_events_whole(folder)


def test_a_file_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    calls = []
    for name in "fsync", "replace":
        monkeypatch.setattr(os, name, lambda *_, name=name: calls.append(name))
    write_text(tmp_path / "file", "whole")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_training_outlives_the_reader_of_its_output(unbroken, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    training = Training(tmp_path, f"--name unread {EVERYTHING}", output=pipe)
    with open(pipe) as reader:
        reader.readline()
    assert training.wait() == 0
    assert_same_end(tmp_path / "unread-log", unbroken(EVERYTHING))


def test_a_full_disk_under_the_printed_lines_ends_nothing(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        log("lost")
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


# Determinism ---------------------------------------------------------------------------------


def test_weights_depend_on_nothing_but_the_seed_and_the_hyperparameters(unbroken, tmp_path):
    other = tmp_path / "another folder"
    other.mkdir()
    expected = unbroken(EVERYTHING)
    # Both at once: the machine has more to do. The first draws nothing and evaluates nothing.
    quiet = Training(tmp_path, f"--name quiet {EVERYTHING} --log-every 100000 --eval-every 0")
    watched = "--log-every 1 --eval-steps 77 --eval-epsilon 0.5 --q-validation-size 1"
    with terminal() as (descriptor, shown):
        output = os.ttyname(descriptor)
        busy = train_forked(other, f"--name busy {EVERYTHING} {watched}", output=output)
    assert (quiet.wait(), busy.exitcode) == (0, 0), shown
    assert b" left" in shown  # the progress bar was drawn
    for folder in tmp_path / "quiet-log", other / "busy-log":
        name = folder.name.removesuffix("-log")
        for step in (23, 230, 400):
            ours, theirs = folder / f"{name}-{step}.h5", expected / f"whole-{step}.h5"
            assert all(map(np.array_equal, weights_in(ours), weights_in(theirs)))
