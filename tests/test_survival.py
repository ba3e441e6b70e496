"""Kills, signals, full disks and closed terminals: what a run survives, and how it goes on."""

import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, NeverStop, one_line, terminal, weights_in
from forked import EVERYTHING, FEW
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

import run
from harness import snapshots
from harness.errors import UsageError
from harness.state import STATE_FILE, load_state
from harness.terminal import log
from harness.whole_files import unseal


def state_of(folder):
    """A run's whole state, the times that it took left out."""
    state = load_state(folder / STATE_FILE)
    progress = asdict(state["progress"]) | {"seconds": None}
    progress["episode"]["seconds"] = None
    progress["evaluations"] = [results[:-1] for results in progress["evaluations"]]
    names = "q_values", "q_validation_observations"
    arrays = state["arrays"] | {name: progress.pop(name) for name in names}
    settings = state["settings"] | {"name": None, "command": None}
    return settings, progress, state["generators"], arrays


def evaluations(folder):
    """The rows of evaluations.csv, without the seconds."""
    return [line.rpartition(",")[0] for line in (folder / "evaluations.csv").open()]


def assert_same_end(folder, expected):
    """Both runs ended with the same files, bit for bit, and the same state."""
    name = folder.name.removesuffix("-log")
    for path in expected.glob("[!.]*.h5"):
        ours = folder / path.name.replace("whole", name)
        assert ours.read_bytes() == path.read_bytes(), ours
    assert evaluations(folder) == evaluations(expected)
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
            r"step,.*\n(\d+,\d+(,[^,\n]+){3}\n)+", (folder / "evaluations.csv").read_text()
        )
    if (folder / STATE_FILE).exists():
        load_state(folder / STATE_FILE)


def assert_events_whole(folder):
    for path in folder.glob("events*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            record, (crc,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length :][:4])
            assert crc == masked_crc32c(record)
            data = data[16 + length :]


def partial_files(folder):
    return list(folder.glob(".*.partial.*"))


# Kills ---------------------------------------------------------------------------------------


def a_kill(rng):
    """SIGKILL at a random moment: after a step, while a file is written, or at any time."""
    if rng.random() < 0.3:
        return ["step", rng.randint(1, 150), "kill", "SIGKILL"]
    if rng.random() < 0.7:
        return [rng.choice(["seal", "fsync", "replace"]), rng.randint(1, 8), "kill", "SIGKILL"]
    return ["step", rng.randint(1, 70), "kill_soon", "SIGKILL", rng.uniform(0, 0.4)]


def train_through_kills(forks, cwd, flags, kills, seed):
    """Kill and resume a run `kills` times, then let it end; return its folder, and counts."""
    rng = random.Random(seed)
    folder = cwd / "killed-log"
    counts = {"killed": 0, "writing": 0, "without state": 0}
    while True:
        if not (folder / STATE_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        command = "--resume killed-log" if folder.exists() else f"--name killed {flags}"
        accidents = [a_kill(rng)] if counts["killed"] < kills else []
        training = forks.run(cwd, command, *accidents)
        assert_whole(folder)
        if training.status == -signal.SIGKILL:
            counts["killed"] += 1
            counts["writing"] += bool(partial_files(folder))
            counts["without state"] += not (folder / STATE_FILE).exists()
            continue
        if "the run is finished" not in training.output:  # killed after its last state
            assert training.status == 0, training.output
        if counts["killed"] >= kills:
            return folder, counts
        shutil.rmtree(folder)  # it outran its killer


def test_runs_killed_22_times_end_like_unbroken_ones(forks, unbroken, tmp_path):
    cases = [EVERYTHING, f"{FEW} --env CartPole-v1"]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        whole = list(pool.map(unbroken, cases))
        ends = list(pool.map(train_through_kills, [forks] * 2, folders, cases, [11, 11], [1, 2]))
    for (folder, _), expected in zip(ends, whole, strict=True):
        assert_same_end(folder, expected)
        assert not partial_files(folder)
    assert sum(counts["killed"] for _, counts in ends) >= 20
    assert sum(counts["writing"] for _, counts in ends) >= 3


def test_a_run_killed_before_its_first_state_is_refused_in_one_line(forks, tmp_path, capsys):
    training = forks.run(tmp_path, f"--name early {FEW}", ["step", 5, "kill", "SIGKILL"])
    assert training.status == -signal.SIGKILL
    assert run.main(["--resume", str(tmp_path / "early-log")], NeverStop()) == 2
    assert one_line(capsys).endswith("no run was saved there; start it again")


# Ctrl-C and SIGTERM --------------------------------------------------------------------------

MOMENTS = [  # what happens, exit status, step at which the run stops; None: not told here
    (["start_tensorflow", 1, "kill", "SIGINT"], 130, 0),
    (["step", 10, "kill", "SIGTERM"], 143, 10),
    (["step", 10 + 40 + 30, "kill", "SIGINT"], 130, 50),  # in the first evaluation
    (["step", 50 + 50 + 99, "kill", "SIGTERM"], 143, 100),  # in the next
    (["execute", 1, "kill_soon", "SIGINT", 0.2], 130, None),  # while TensorFlow compiles
    (["seal", 2, "kill", "SIGTERM"], 143, None),  # while the state is written
    (["replace", 3, "kill", "SIGINT"], 130, None),
    (["evaluate", 1, "kill", "SIGHUP"], 129, None),
]


def test_a_run_stopped_at_all_kinds_of_moments_ends_like_an_unbroken_one(forks, unbroken, tmp_path):
    folder = tmp_path / "stopped-log"
    command = f"--name stopped {EVERYTHING}"
    for accident, status, step in MOMENTS:
        training = forks.run(tmp_path, command, accident)
        lines = training.output.splitlines()
        assert training.status == status, training.output
        assert "Traceback" not in training.output
        assert lines[-1].endswith("run.py --resume stopped-log")
        reached = load_state(folder / STATE_FILE)["progress"].step
        assert lines[-2] == f"Stopped at step {reached}, to go on:"
        assert step in (None, reached)
        assert (folder / f"stopped-{reached}.h5").exists()
        assert_whole(folder)
        assert_events_whole(folder)
        command = "--resume stopped-log"
    training = forks.run(tmp_path, command)
    assert training.status == 0, training.output
    assert_same_end(folder, unbroken(EVERYTHING))


def test_a_second_ctrl_c_stops_at_once_even_while_saving(forks, unbroken, tmp_path):
    folder = tmp_path / "twice-log"
    twice = ["seal", 3, "kill", "SIGINT"], ["seal", 3, "kill", "SIGINT"]
    training = forks.run(tmp_path, f"--name twice {EVERYTHING}", *twice)
    assert training.status == 130
    assert "Traceback" not in training.output
    assert "--resume" not in training.output
    assert partial_files(folder)
    assert_whole(folder)
    assert forks.run(tmp_path, "--resume twice-log").status == 0
    assert not partial_files(folder)
    assert_same_end(folder, unbroken(EVERYTHING))


def loaded(process, library):
    """Wait until a process has loaded a library; that its import is still going on is likely."""
    maps = Path(f"/proc/{process.pid}/maps")
    while library not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.001)


def started(cwd, *arguments):
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks /proc")


@needs_proc
@pytest.mark.parametrize("program", ["run.py", "see.py"])
def test_ctrl_c_during_the_first_imports_leaves_no_traceback(tmp_path, program):
    process = started(tmp_path, ROOT / program)
    loaded(process, "_multiarray_umath")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert not list(tmp_path.iterdir())


@needs_proc
def test_ctrl_c_while_tensorflow_is_imported_saves_and_can_be_resumed(forks, unbroken, tmp_path):
    process = started(tmp_path, ROOT / "run.py", "--name", "import", *EVERYTHING.split())
    loaded(process, "libtensorflow_cc")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "")
    assert re.search(r"Stopped at step 0, to go on:\n\S+ \S*run.py --resume import-log\n$", output)
    assert forks.run(tmp_path, "--resume import-log").status == 0
    assert_same_end(tmp_path / "import-log", unbroken(EVERYTHING))


def test_ctrl_c_does_not_reach_the_process_that_reads_a_snapshot(tmp_path, monkeypatch):
    reader = tmp_path / "reader.py"
    reader.write_text("import os, sys; print(os.getpgrp(), file=sys.stderr); sys.exit(2)")
    path = tmp_path / "x.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setattr(snapshots, "READER", reader)
    with pytest.raises(UsageError) as error:
        snapshots.load_snapshot(path)
    assert int(str(error.value).split(": ")[1]) != os.getpgrp()


# Disks and terminals -------------------------------------------------------------------------


def test_a_disk_full_to_the_end_is_status_1_and_what_was_saved_goes_on(forks, unbroken, tmp_path):
    training = forks.run(tmp_path, f"--name full {EVERYTHING}", ["step", 300, "limit", 9000])
    folder = tmp_path / "full-log"
    assert training.status == 1
    lines = training.output.splitlines()
    assert "warning: can't write full-log/state.npz: file too large; training goes on" in lines
    assert "warning: can't write full-log/full-400.h5: file too large; training goes on" in lines
    assert lines[-1].startswith("run.py: error: the last snapshot or state")
    assert "Traceback" not in training.output
    assert not partial_files(folder)
    assert_whole(folder)
    assert forks.run(tmp_path, "--resume full-log").status == 0
    assert_same_end(folder, unbroken(EVERYTHING))


def test_a_disk_full_for_a_while_costs_the_snapshots_of_that_while(forks, unbroken, tmp_path):
    accidents = ["step", 130, "limit", 300], ["step", 600, "limit", -1]
    training = forks.run(tmp_path, f"--name late {EVERYTHING}", *accidents)
    assert training.status == 0, training.output
    assert "/events.out.tfevents" in training.output  # it is too small for the events, too
    assert training.output.count("warning: can't write late-log/events") == 1
    folder, expected = tmp_path / "late-log", unbroken(EVERYTHING)
    assert len(list(folder.glob("[!.]*.h5"))) < len(list(expected.glob("*.h5")))
    final = (folder / "late-400.h5").read_bytes()
    assert final == (expected / "whole-400.h5").read_bytes()
    assert_whole(folder)
    assert_events_whole(folder)


def test_a_log_folder_that_is_gone_for_good_is_status_1(forks, tmp_path):
    training = forks.run(tmp_path, f"--name gone {EVERYTHING}", ["step", 90, "remove", "gone-log"])
    assert training.status == 1
    lines = training.output.splitlines()
    assert (
        "warning: can't write gone-log/gone-400.h5: no such file or directory; training goes on"
        in lines
    )
    assert lines[-1].startswith("run.py: error: ")
    assert "Traceback" not in training.output


def test_a_log_folder_that_comes_back_is_written_again(forks, unbroken, tmp_path):
    away = ["step", 300, "move", "back-log", "elsewhere"]
    back = ["step", 700, "move", "elsewhere", "back-log"]
    training = forks.run(tmp_path, f"--name back {EVERYTHING}", away, back)
    assert training.status == 0, training.output
    assert "warning: can't write back-log/" in training.output
    final = (tmp_path / "back-log" / "back-400.h5").read_bytes()
    assert final == (unbroken(EVERYTHING) / "whole-400.h5").read_bytes()


def test_a_training_outlives_the_reader_of_its_output(forks, unbroken, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    training = forks.start(tmp_path, f"--name unread {EVERYTHING}", output=pipe)
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


def test_weights_depend_on_nothing_but_the_seed_and_the_hyperparameters(forks, unbroken, tmp_path):
    other = tmp_path / "another folder"
    other.mkdir()
    expected = unbroken(EVERYTHING)
    # Both at once: the machine has more to do.
    quiet = forks.start(tmp_path, f"--name quiet {EVERYTHING} --log-every 100000 --eval-every 0")
    with terminal() as (descriptor, shown):
        output = os.ttyname(descriptor)
        busy = forks.run(other, f"--name busy {EVERYTHING} --log-every 1", output=output)
    assert (quiet.wait(), busy.status) == (0, 0), shown
    assert b" left" in shown  # the progress bar was drawn
    for folder in tmp_path / "quiet-log", other / "busy-log":
        name = folder.name.removesuffix("-log")
        for step in (23, 230, 400):
            ours, theirs = folder / f"{name}-{step}.h5", expected / f"whole-{step}.h5"
            assert all(map(np.array_equal, weights_in(ours), weights_in(theirs)))
