"""Kills, signals, full disks and closed terminals: what a run survives, and how it goes on."""

import errno
import json
import os
import random
import re
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import start_command, terminal, weights_in
from endings import assert_events_whole, assert_same_end, assert_whole, partial_files
from forked import EPISODE, EVERYTHING, FEW, Training, kill_soon, limit, train_forked

import run
from harness import snapshots
from harness.errors import UsageError
from harness.log_folder import RESULT_FILE, STATE_FILE
from harness.state import load_state
from harness.terminal import log
from harness.whole_files import write_text

kill = signal.raise_signal


# Kills ---------------------------------------------------------------------------------------


KILLS = 4


def a_kill(rng):
    """SIGKILL at a random moment: after a step, while a file is written, or at any time."""
    if rng.random() < 0.3:
        return "step", rng.randint(1, 600), kill, signal.SIGKILL
    if rng.random() < 0.7:
        return rng.choice(["seal", "fsync", "replace"]), rng.randint(1, 9), kill, signal.SIGKILL
    return "step", rng.randint(1, 300), kill_soon, signal.SIGKILL, rng.uniform(0, 0.1)


@pytest.mark.parametrize(("flags", "seed"), [(EVERYTHING, 10), (f"{FEW} --env CartPole-v1", 2)])
def test_a_run_killed_again_and_again_ends_like_an_unbroken_one(unbroken, tmp_path, flags, seed):
    rng = random.Random(seed)
    folder = tmp_path / "killed-log"
    killed = writing = 0
    while True:
        if not (folder / STATE_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        command = "--resume killed-log" if folder.exists() else f"--name killed {flags}"
        kills = [a_kill(rng)] * (killed < KILLS)
        training = train_forked(tmp_path, command, *kills, draws=seed == 2)
        assert_whole(folder)
        if training.exitcode == -signal.SIGKILL:
            killed += 1
            writing += bool(partial_files(folder))
            continue
        if "the run is finished" not in training.output:  # killed after its last state
            assert training.exitcode == 0, training.output
        if killed == KILLS:
            break
        shutil.rmtree(folder)  # it outran its killer
    assert_same_end(folder, unbroken(flags))
    assert not partial_files(folder)
    assert writing >= 1


def test_a_run_killed_in_its_first_episode_is_started_again(tmp_path, refused):
    training = train_forked(tmp_path, f"--name early {FEW}", ("step", 5, kill, signal.SIGKILL))
    assert training.exitcode == -signal.SIGKILL
    error = refused("--resume", "early-log")
    assert error.endswith("no run was saved there; start it again\n")


def test_a_run_killed_in_its_second_episode_goes_on_from_its_first(tmp_path):
    accident = "step", EPISODE + 2, kill, signal.SIGKILL
    flags = FEW.replace("--snapshot-every 97", "--snapshot-every 0")
    train_forked(tmp_path, f"--name early {flags}", accident)
    assert load_state(tmp_path / "early-log" / STATE_FILE).progress.step == EPISODE


# Ctrl-C and SIGTERM --------------------------------------------------------------------------

MOMENTS = [  # what happens, exit status, step at which the run stops; None: not told here
    (("start_tensorflow", 1, kill, signal.SIGINT), 130, 0),
    (("step", 10, kill, signal.SIGTERM), 143, EPISODE),
    (("step", 13 + 60, kill, signal.SIGINT), 130, 2 * EPISODE),  # in the evaluation at step 50
    (("execute", 1, kill_soon, signal.SIGINT, 0.2), 130, None),  # while TensorFlow compiles
    (("seal", 2, kill, signal.SIGTERM), 143, None),  # while the state is written
    (("replace", 3, kill, signal.SIGINT), 130, None),
    (("evaluate", 1, kill, signal.SIGHUP), 129, None),
]


def test_a_run_stopped_at_all_kinds_of_moments_ends_like_an_unbroken_one(
    tensorflow, unbroken, tmp_path
):
    folder = tmp_path / "stopped-log"
    command = f"--name stopped {EVERYTHING}"
    for accident, status, step in MOMENTS:
        training = train_forked(tmp_path, command, accident)
        lines = training.output.splitlines()
        assert training.exitcode == status, training.output
        assert "Traceback" not in training.output
        assert lines[-1].endswith("run.py --resume stopped-log")
        reached = load_state(folder / STATE_FILE).progress.step
        assert lines[-2] == f"Stopped at step {reached}. Resume with:"
        assert reached % EPISODE == 0 and step in (None, reached)
        result = json.loads((folder / RESULT_FILE).read_text())
        assert (result["status"], result["step"]) == ("stopped", reached)
        assert (folder / f"stopped-{reached}.h5").exists()
        assert_whole(folder)
        assert_events_whole(folder)
        command = "--resume stopped-log"
    training = train_forked(tmp_path, command)
    assert training.exitcode == 0, training.output
    assert_same_end(folder, unbroken(EVERYTHING))


class StopAfter:
    """Stands in for a StopSignal that comes after so many steps."""

    exit_status = 130

    def __init__(self, steps):
        self.left = steps

    @property
    def number(self):
        self.left -= 1
        return 2 if self.left < 0 else 0


ENDLESS = ["--env=Endless-v0", "--seed=1", "--eval-every=0", "--max-steps=5000"]


def test_a_run_whose_episode_does_not_end_stops_all_the_same(tensorflow, here, capsys):
    words = [*ENDLESS, "--name=x", "--train-start=1400"]
    assert run.main(words, StopAfter(300)) == 130
    assert (here / "x-log/x-1300.h5").exists()
    *_, stopped, command = capsys.readouterr().out.splitlines()
    assert stopped.startswith("Stopped at step 1300, before an episode ended.")
    assert command.endswith("run.py --model x-log/x-1300.h5 --train")


def test_a_run_stopped_in_an_endless_episode_says_where_it_will_go_on(
    tensorflow, environments, here, capsys
):
    words = ["--env=fields:Sticking-v0", "--eval-every=0", "--train-start=1400", "--name=x"]
    assert run.main(words, StopAfter(300)) == 130
    *_, stopped, _ = capsys.readouterr().out.splitlines()
    saved = load_state(here / "x-log" / STATE_FILE).progress.step
    assert stopped == f"Stopped at step 1300. Resume from step {saved} with:" and saved < 1300


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


SMALL = {
    **{"env": "Corridor-v0", "seed": 1, "max_steps": 40, "train_start": 10, "eval_every": 20},
    **{"eval_steps": 20, "hidden": (4,), "batch_size": 4},
}


# Disks and terminals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accident", "reason"),
    [
        (("step", 700, limit, 9000), "file too large"),
        (("step", 700, shutil.rmtree, "bad-log"), "no such file or directory"),
    ],
    ids=["the disk is full", "the log folder is gone"],
)
def test_what_cannot_be_saved_to_the_end_is_status_1(unbroken, tmp_path, accident, reason):
    training = train_forked(tmp_path, f"--name bad {EVERYTHING}", accident)
    folder, lines = tmp_path / "bad-log", training.output.splitlines()
    assert training.exitcode == 1
    for name in "state.npz", "bad-400.h5":
        assert f"warning: can't write {folder / name}: {reason}" in lines
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
    folder, expected = tmp_path / "late-log", unbroken(EVERYTHING)
    assert training.output.count(f"warning: can't write {folder}/events") <= 1  # not at every line
    assert f"warning: can't write {folder}/late-97.h5: " in training.output
    assert len(list(folder.glob("[!.]*.h5"))) < len(list(expected.glob("*.h5")))
    final = (folder / "late-400.h5").read_bytes()
    assert final == (expected / "whole-400.h5").read_bytes()
    assert_whole(folder)
    assert_events_whole(folder)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_folders_that_cannot_be_flushed_lose_nothing(train, monkeypatch, capsys, number):
    flush = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    folder, ended = train(name="x", **SMALL)
    assert "warning" not in capsys.readouterr().out
    assert (folder / "x-best.h5").exists()
    result = json.loads((folder / RESULT_FILE).read_text())
    assert (result["status"], result["best_step"]) == ("finished", ended.progress.best_step)
    assert load_state(folder / STATE_FILE).progress.best_step in (20, 40)


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
        for step in (97, 291, 400):
            ours, theirs = folder / f"{name}-{step}.h5", expected / f"whole-{step}.h5"
            assert all(map(np.array_equal, weights_in(ours), weights_in(theirs)))
