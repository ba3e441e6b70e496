import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from conftest import terminal
from test_sweep import SWEEP

import sweep

pytest.importorskip("ray", reason="requirements-sweep.txt isn't installed")
from harness.sweeps.results import is_finished

FEW = "--train-start 300 --eval-every 300 --eval-steps 400 --snapshot-every 600"
ARGUMENTS = f"--max-steps 600 1200 6000 {FEW}".split()
FLAGS = FEW.replace("--", "").replace(" ", "-")
SHORT, BAD, LONG = (f"max-steps-{steps}-{FLAGS}-seed-0" for steps in (600, 1200, 6000))
COLUMNS = 80  # of conftest's terminal


def start(arguments, folder, stdout=subprocess.PIPE):
    command = [sys.executable, SWEEP, *arguments.split()]
    options = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, process_group=0, **options)


def communicate(process):
    out, err = process.communicate()
    return SimpleNamespace(out=out, err=err, status=process.returncode)


def in_terminal(arguments, folder):
    """What `communicate` returns of a sweep that writes to a terminal."""
    with terminal() as (screen, shown):
        ended = communicate(start(arguments, folder, stdout=screen))
    ended.out = shown.decode().replace("\r\n", "\n")
    return ended


def listening(process):
    """The addresses at which a process and those that it started can be reached."""
    family = [process, *process.children(recursive=True)]
    found = [found for one in family for found in one.net_connections(kind="inet")]
    return {connection.laddr.ip for connection in found if connection.status == "LISTEN"}


def running(name):
    """The processes of run.py that a trial has."""
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if any(name in part for part in p.info["cmdline"] or ())]


def rows_of(folder):
    """The rows of results.csv by their trials' names."""
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return {row["folder"].removesuffix("-log"): row for row in csv.DictReader(file)}


def read(path):
    return path.read_text() if path.exists() else ""


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A sweep of three trials: one's run is killed, one can't run; Ctrl-C; resumed in a terminal.

    Beside it another one, one job at a time, which a second process wants to resume; SIGTERM.
    """
    place = tmp_path_factory.mktemp("story")
    folder = place / "a-sweep"
    folder.mkdir()
    planned = {"version": sweep.VERSION, "arguments": ARGUMENTS, "seeds": [0]}
    (folder / sweep.SWEEP_FILE).write_text(json.dumps(planned))
    (folder / f"{BAD}-log").touch()  # a file where the log folder should be
    told = SimpleNamespace(folder=folder)

    other = start("--seeds 2 --jobs 1 --name b --snapshot-every 1000", place)
    process = start("--resume a-sweep", place)
    assert wait_for((folder / f"{LONG}-log" / "state.npz").exists)
    told.listening = listening(psutil.Process(process.pid))
    running(LONG)[0].kill()
    assert wait_for(lambda: is_finished(folder / f"{SHORT}-log"))
    assert wait_for(lambda: "Resumed" in read(folder / f"{LONG}.txt"))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    told.first = communicate(process)
    told.stopped, told.stopped_output = rows_of(folder), read(folder / f"{LONG}.txt")
    told.left = running(LONG)

    first_of_two = place / "b-sweep" / "snapshot-every-1000-seed-0"
    assert wait_for((first_of_two.with_name(f"{first_of_two.name}-log") / "state.npz").exists)
    told.jobs = running("snapshot-every-1000-seed-")
    told.refused = communicate(start("--resume b-sweep", place))
    os.killpg(other.pid, signal.SIGTERM)
    told.other = communicate(other)
    told.other_output = read(first_of_two.with_suffix(".txt"))

    told.written = (folder / f"{SHORT}.txt").stat().st_mtime_ns
    told.second = in_terminal("--resume a-sweep --seeds 0-1", place)
    told.done = rows_of(folder)
    return told


def test_a_trial_is_an_ordinary_run(story):
    folder = story.folder / f"{SHORT}-log"
    config = json.loads(read(folder / "config.json"))
    assert (config["seed"], config["max_steps"], config["threads"]) == (0, 600, 1)
    assert list(folder.glob("events.out.tfevents.*"))
    assert (folder / f"{SHORT}-600.h5").exists()


def test_a_trial_whose_run_was_killed_goes_on_from_its_last_state(story):
    assert f"Retrying {LONG}" in story.first.out
    assert f"Resumed {LONG}-log at step" in story.stopped_output


def test_a_trial_that_keeps_failing_is_reported_and_loses_no_other(story):
    shown = "".join(story.second.out.split())  # the terminal's width breaks lines anywhere
    assert shown.count(f"Retrying{BAD}") == 2
    assert f"{BAD}failed:seea-sweep/{BAD}.txt" in shown
    statuses = {name: row["status"] for name, row in story.done.items()}
    assert statuses.pop(BAD) == "failed"
    assert set(statuses.values()) == {"finished"}


def test_ctrl_c_stops_the_running_trial_with_its_state_saved(story):
    assert (story.first.status, story.first.err) == (130, "")
    assert re.search(r"Stopped, to go on: \S+ \S*sweep.py --resume a-sweep\n$", story.first.out)
    assert story.stopped[SHORT]["status"] == "finished"
    assert story.stopped[LONG]["status"] == "unfinished"
    assert "Stopped at step" in story.stopped_output
    assert not story.left


def test_ray_listens_to_this_machine_only(story):
    assert story.listening
    assert story.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_one_process_runs_a_sweep_and_as_many_trials_at_once_as_jobs(story):
    assert len(story.jobs) == 1
    error = "sweep.py: error: --resume: another process is using b-sweep\n"
    assert (story.refused.status, story.refused.err) == (2, error)


def test_sigterm_to_the_whole_group_ends_a_sweep_as_it_should(story):
    assert (story.other.status, story.other.err) == (143, "")
    created, to_run, to_go_on = story.other.out.splitlines()
    assert (created, to_run) == ("Created b-sweep", "2 of 2 trials to run")
    assert to_go_on.endswith("sweep.py --resume b-sweep")
    assert "Stopped at step" in story.other_output


def test_resume_runs_what_was_missing_and_the_seeds_that_were_added(story):
    assert (story.second.status, story.second.err) == (1, "")  # one fails again
    assert "5 of 6 trials to run" in story.second.out
    assert (story.folder / f"{SHORT}.txt").stat().st_mtime_ns == story.written
    assert json.loads(read(story.folder / "sweep.json"))["seeds"] == [0, 1]
    assert len(story.done) == 6
    final = float(story.done[LONG]["episode_return_avg"])
    assert f"step 6000 episode_return_avg {final:.3f}" in read(story.folder / f"{LONG}.txt")


def test_a_terminal_of_80_columns_shows_running_trials_and_whole_tables(story):
    shown = story.second.out
    assert re.search(r"\d/6000 +-200\.0", shown)
    assert re.search(r"\d ended, [12] running, \d waiting", shown)
    table = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown[shown.rindex("configuration") :])
    assert max(map(len, table.splitlines())) <= COLUMNS
    assert "[0, 84] %  [-200.0, -200.0]  ± 0.0" in table
    assert "…" not in table


def test_a_failure_of_ray_itself_is_one_line_and_says_how_to_go_on(here, monkeypatch, capfd):
    import ray

    from harness.sweeps import trials

    def fit(_tuner):
        ray.shutdown()
        raise RuntimeError("a node has no memory left\nand pages of what it had")

    monkeypatch.setattr(trials.tune.Tuner, "fit", fit)
    assert sweep.main(["--seeds", "1", "--name", "lost"]) == 1
    out, err = capfd.readouterr()
    assert err == "sweep.py: error: Ray failed: a node has no memory left\n"
    assert out.endswith("sweep.py --resume lost-sweep\n")
    assert [row["status"] for row in rows_of(here / "lost-sweep").values()] == ["unfinished"]


def test_a_trials_files_come_home_from_a_node_with_another_disk(tmp_path):
    from harness.sweeps.cluster import pack, unpack

    here, there = tmp_path / "here", tmp_path / "there"
    (there / "a-log").mkdir(parents=True)
    for name in ("a-log/a-best.h5", "a.txt", "b.txt"):
        (there / name).write_text("of a node")
    unpack(here, pack(there, "a"))
    assert sorted(path.name for path in here.rglob("*")) == ["a-best.h5", "a-log", "a.txt"]
    assert pack(there, "nothing yet") == {}
