import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from conftest import run_command, terminal, weights_in
from sweeping import SWEEP, communicate, read, rows_of, start, wait_for, workers

import run
import sweep

pytest.importorskip("ray", reason="requirements-sweep.txt isn't installed")
from harness.sweeps.grid import Trial
from harness.sweeps.runs import is_finished
from harness.sweeps.worker import release_memory, run_program

FEW = "--train-start 300 --eval-every 300 --eval-steps 400 --snapshot-every 2000"
ENDLESS = "1000000000"  # steps, which only a signal ends
ARGUMENTS = f"--max-steps 600 {ENDLESS} {FEW}".split()
SHORT, LONG = (f"max-steps-{steps}-seed-0" for steps in (600, ENDLESS))
BAD = "max-steps-600-seed-1"
SHORTER = [word.replace(ENDLESS, "900") for word in ARGUMENTS]
LAST = "max-steps-900-seed-0"
UNTIL_A_SIGNAL = f"--train-start 300 --snapshot-every 2000 --max-steps {ENDLESS}"
COLUMNS = 80  # of conftest's terminal


def in_terminal(arguments, folder):
    """What `communicate` returns of a sweep that writes to a terminal."""
    with terminal() as (screen, shown):
        ended = communicate(start(arguments, folder, stdout=screen))
    ended.out = shown.decode().replace("\r\n", "\n")
    return ended


def listening(process):
    """The addresses at which a process and those that it started can be reached."""
    family = [process, *process.children(recursive=True)]
    found = [found for member in family for found in member.net_connections(kind="inet")]
    return {connection.laddr.ip for connection in found if connection.status == "LISTEN"}


def trainer(process, folder, name):
    """The worker process that trains a trial: the one that has its output open."""

    def found():
        for worker in workers(process):
            with contextlib.suppress(psutil.Error):
                if str(folder / f"{name}.txt") in [file.path for file in worker.open_files()]:
                    return worker
        return None

    return wait_for(found, process)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A sweep of two trials: the worker of one crashes; Ctrl-C.

    Then what is missing, and another seed, in a terminal; one trial can't run.
    """
    place = tmp_path_factory.mktemp("story")
    folder = place / "a-sweep"
    folder.mkdir()
    planned = {"version": sweep.VERSION, "arguments": ARGUMENTS, "seeds": [0]}
    (folder / sweep.SWEEP_FILE).write_text(json.dumps(planned))
    told = SimpleNamespace(folder=folder)
    output = folder / f"{LONG}.txt"

    process = start("--resume a-sweep", place)
    wait_for((folder / f"{LONG}-log" / "state.npz").exists, process)
    trainer(process, folder, LONG).send_signal(signal.SIGKILL)
    wait_for(lambda: "Resumed" in read(output), process)
    told.listening = listening(psutil.Process(process.pid))
    wait_for(lambda: is_finished(folder / f"{SHORT}-log"), process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    told.first = communicate(process)
    told.stopped, told.stopped_output = rows_of(folder), read(output)
    psutil.wait_procs(family, timeout=600)
    told.left = [member for member in family if member.is_running()]

    (folder / sweep.SWEEP_FILE).write_text(json.dumps(planned | {"arguments": SHORTER}))
    told.written = (folder / f"{SHORT}.txt").stat().st_mtime_ns
    (folder / f"{BAD}-log").touch()  # a file where the log folder should be
    told.second = in_terminal("--resume a-sweep --seeds 0-1", place)
    told.done = rows_of(folder)
    return told


def test_a_trial_is_an_ordinary_run(story):
    folder = story.folder / f"{SHORT}-log"
    config = json.loads(read(folder / "config.json"))
    assert (config["seed"], config["max_steps"], config["threads"]) == (0, 600, 1)
    assert re.search(rf"run.py --name {SHORT} --seed 0 --max-steps 600 ", config["command"])
    assert list(folder.glob("events.out.tfevents.*"))
    assert (folder / f"{SHORT}-600.h5").exists()


def test_a_trial_whose_worker_crashed_is_resumed_from_its_last_state(story):
    assert story.first.out.count(f"Retrying {LONG}: WorkerCrashedError\n") == 1
    assert len(re.findall(f"Resumed a-sweep/{LONG}-log at step [1-9]", story.stopped_output)) == 1


def test_a_trial_that_keeps_failing_is_reported_and_loses_no_other(story):
    assert story.second.out.count(f"Retrying {BAD}: run.py ended with exit status 2") == 2
    assert f"{BAD} failed: see a-sweep/{BAD}.txt" in story.second.out
    assert f"{BAD}-log exists already" in read(story.folder / f"{BAD}.txt")
    statuses = {name: row["status"] for name, row in story.done.items()}
    assert statuses.pop(BAD) == "failed"
    assert set(statuses.values()) == {"finished"}


def test_ctrl_c_is_acknowledged_and_stops_the_running_trial_with_its_state_saved(story):
    assert (story.first.status, story.first.err) == (130, "")
    assert "Stopping: 1 running trial ends its episode and saves its state\n" in story.first.out
    assert re.search(r"Stopped. Resume with: \S+ \S*sweep.py --resume a-sweep\n$", story.first.out)
    assert story.stopped[SHORT]["status"] == "finished"
    assert story.stopped[LONG]["status"] == "unfinished"
    assert "Stopped at step" in story.stopped_output
    assert not story.left


def test_ray_listens_to_this_machine_only(story):
    assert story.listening
    assert story.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_resume_runs_what_was_missing_and_the_seeds_that_were_added(story):
    assert (story.second.status, story.second.err) == (1, "")  # one fails again
    assert "3 of 4 trials to run" in story.second.out
    assert (story.folder / f"{SHORT}.txt").stat().st_mtime_ns == story.written
    assert json.loads(read(story.folder / "sweep.json"))["seeds"] == [0, 1]
    assert len(story.done) == 4
    final = float(story.done[LAST]["episode_return_avg"])
    assert f"step 900 episode_return_avg {final:.3f}" in read(story.folder / f"{LAST}.txt")


def test_a_terminal_of_80_columns_shows_running_trials_and_whole_tables(story):
    shown = story.second.out
    assert re.search(r"\d/(600|900) +-200\.0", shown)
    assert re.search(r"\d of 3 ended", shown)
    table = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown[shown.rindex("configuration") :])
    assert max(map(len, table.splitlines())) <= COLUMNS
    assert "[0, 84] %  [-200.0, -200.0]  ± 0.0" in table
    assert "…" not in table


HILL = """
import gym
from gym.envs.classic_control import MountainCarEnv

class Hill(MountainCarEnv):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.gravity = float(open("hill.txt").read())

gym.register("Hill-v0", Hill, max_episode_steps=200)
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A sweep of two trials, one at a time, which another process wants to resume; SIGTERM.

    Its environment reads a file of the folder that its user stands in; TMPDIR is too long for
    Ray, and ~/.ray can't be a folder.
    """
    place = tmp_path_factory.mktemp("other")
    folder, long = place / "b-sweep", place / ("x" * 70)
    long.mkdir()
    (place / ".ray").touch()
    (place / "hill.py").write_text(HILL)
    (place / "hill.txt").write_text("0.002")
    environment = {**os.environ, "TMPDIR": str(long), "HOME": str(place)}
    arguments = f"--seeds 2 --jobs 1 --name b --env hill:Hill-v0 {UNTIL_A_SIGNAL}"
    process = start(arguments, place, env=environment)
    told = SimpleNamespace(folder=folder, long=long)
    wait_for((folder / "run-seed-0-log" / "state.npz").exists, process)
    told.jobs = workers(process)
    told.refused = communicate(start("--resume b-sweep", place))
    os.killpg(process.pid, signal.SIGTERM)
    told.ended = communicate(process)
    told.output = read(folder / "run-seed-0.txt")
    return told


def test_trials_stand_where_their_user_stands(other):
    assert "Created b-sweep/run-seed-0-log" in other.output  # and the environment found hill.txt
    assert "run.py --resume b-sweep/run-seed-0-log --env hill:Hill-v0" in other.output


def test_ray_needs_neither_tmpdir_nor_the_home_folder(other):
    assert "2 of 2 trials to run" in other.ended.out
    assert not any(other.long.iterdir())
    assert (other.long.parent / ".ray").read_bytes() == b""


def test_one_process_runs_a_sweep_and_as_many_trials_at_once_as_jobs(other):
    assert len(other.jobs) == 1
    error = "sweep.py: error: --resume: another process is using b-sweep\n"
    assert (other.refused.status, other.refused.err) == (2, error)


def test_sigterm_to_the_whole_group_reaches_no_process_of_ray(other):
    # Ray ends all training at once when it gets a SIGTERM, and `timeout`, say, sends one to all.
    assert (other.ended.status, other.ended.err) == (143, "")
    created, to_run, stopping, resume = other.ended.out.splitlines()
    assert (created, to_run) == ("Created b-sweep", "2 of 2 trials to run")
    assert stopping == "Stopping: 1 running trial ends its episode and saves its state"
    assert resume.endswith("sweep.py --resume b-sweep")
    assert "Stopped at step" in other.output


def test_a_closed_terminal_lets_the_running_trial_save_its_state(tmp_path):
    def make_it_the_terminal():
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)  # its standard output

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, SWEEP, "--seeds", "1", "--name", "c", *UNTIL_A_SIGNAL.split()],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=make_it_the_terminal,  # noqa: PLW1509  # the child only execs
    )
    os.close(theirs)
    wait_for((tmp_path / "c-sweep" / "run-seed-0-log" / "state.npz").exists)
    os.close(ours)
    assert process.wait(timeout=600) == 128 + signal.SIGHUP
    assert "Stopped at step" in read(tmp_path / "c-sweep" / "run-seed-0.txt")
    assert rows_of(tmp_path / "c-sweep")["run-seed-0"]["status"] == "unfinished"


def test_a_failure_of_ray_itself_is_one_line_and_says_how_to_resume(here, monkeypatch, capfd):
    import ray

    from harness.sweeps import trials

    def wait(*_arguments, **_options):
        ray.shutdown()
        raise RuntimeError("a node has no memory left\nand pages of what it had")

    monkeypatch.setattr(trials.ray, "wait", wait)
    assert sweep.main(["--seeds", "1", "--name", "lost"]) == 1
    out, err = capfd.readouterr()
    assert err == "sweep.py: error: the sweep can't be continued: a node has no memory left\n"
    assert out.endswith("sweep.py --resume lost-sweep\n")
    assert [row["status"] for row in rows_of(here / "lost-sweep").values()] == ["unfinished"]


def test_modules_that_cannot_be_sent_to_the_nodes_are_one_line(here, monkeypatch, capfd):
    import ray

    def init(**_options):
        raise ray.exceptions.RuntimeEnvSetupError("Failed to upload module hills:\ntoo large")

    monkeypatch.setattr(ray, "init", init)
    assert sweep.main(["--seeds", "1", "--name", "sent"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("sweep.py: error: can't use Ray: ") and err.count("\n") == 1
    assert "Failed to upload module hills: too large" in err
    assert not any(here.iterdir())  # the name is free


def test_a_trials_files_come_home_from_a_node_with_another_disk(tmp_path):
    from harness.sweeps.cluster import read_files, write_files

    here, there = tmp_path / "here", tmp_path / "there"
    (there / "a-log").mkdir(parents=True)
    for name in ("a-log/a-best.h5", "a.txt", "b.txt"):
        (there / name).write_text("of a node")
    write_files(here, read_files(there, "a"))
    assert sorted(path.name for path in here.rglob("*")) == ["a-best.h5", "a-log", "a.txt"]
    assert read_files(there, "nothing yet") == {}


TRIAL = Trial(
    {"preset": "tuned", "max_steps": 500, "train_start": 200, "eval_every": 250}, 5, 500, 0
)


def test_a_worker_trains_the_same_bits_as_run_py_whatever_it_trained_before(here):
    run_command("run.py", "--name", "whole", "--seed", 5, *TRIAL.arguments, cwd=here)
    (here / "at").mkdir()
    before = sys.argv, sys.stdout, sys.stderr, os.getcwd()
    other = replace(TRIAL, seed=6, flags=TRIAL.flags | {"hidden": "8,8"})
    left = []
    for trained in (other, TRIAL):
        stop = SimpleNamespace(number=0, exit_status=0)
        assert run_program(run.main, Path("at"), trained, stop, lambda *_: None) == 0
        release_memory()
        files = len(os.listdir("/proc/self/fd"))
        left.append((sys.argv, sys.stdout, sys.stderr, os.getcwd(), files))
    assert left[0] == left[1]
    assert left[0][:4] == before
    mine = here / "at" / TRIAL.log_folder / f"{TRIAL.name}-500.h5"
    for ours, theirs in zip(
        weights_in(mine), weights_in(here / "whole-log" / "whole-500.h5"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert " steps in " in read(here / "at" / f"{TRIAL.name}.txt")
