import argparse
import csv
import importlib.util
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import run
import sweep
from arguments import UsageError

SWEEP = Path(sweep.__file__)

needs_scipy = pytest.mark.skipif(
    not (importlib.util.find_spec("scipy") and importlib.util.find_spec("matplotlib")),
    reason="SciPy and Matplotlib aren't installed (requirements-sweep.txt)",
)
needs_ray = pytest.mark.skipif(
    not importlib.util.find_spec("ray"), reason="Ray isn't installed (requirements-sweep.txt)"
)


def output(*averages, every=100, seconds=2.0, end="Watch it:\n"):
    """What a run prints, as far as a sweep reads it."""
    lines = [
        f"episode {i} step {i * every} episode_return_avg {average:.3f} avg_max_q_value -56.004\n"
        for i, average in enumerate(averages, 1)
    ]
    steps = every * len(averages)
    return "".join(lines) + f"{steps} steps in {seconds:.1f}s, {steps / seconds:.1f} steps/s\n{end}"


def trial(configuration="c", seed=0, max_steps=300, solved_from=-110.0):
    return {
        "name": f"{configuration}-seed-{seed}",
        "configuration": configuration,
        "seed": seed,
        "max_steps": max_steps,
        "solved_from": solved_from,
    }


# The command line and the grid


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("20", range(20)), ("0-9", range(10)), ("5-5", [5]), ("100-102", [100, 101, 102])],
)
def test_seeds_are_a_count_or_a_range(text, seeds):
    assert list(sweep.parse_seeds(text)) == list(seeds)


@pytest.mark.parametrize(
    "text", ["0", "-3", "9-3", "x", "1.5", "1-", "", "20000", "2147483648-2147483648"]
)
def test_other_seeds_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        sweep.parse_seeds(text)


def make(*flags):
    """The trials that a command line stands for; one text is split at its spaces."""
    flags = flags[0].split() if len(flags) == 1 else flags
    return sweep.make_trials(sweep.parse_arguments(flags))


def test_every_combination_runs_with_every_seed():
    trials = make("--seeds 3 --learning-rate 0.001 0.0005 --hidden 32,32 64,64")
    found = {(t["configuration"], t["seed"]) for t in trials}
    assert found == {
        (f"--learning-rate {rate} --hidden {hidden}", seed)
        for rate in ("0.001", "0.0005")
        for hidden in ("32,32", "64,64")
        for seed in range(3)
    }
    assert len(trials) == len({t["name"] for t in trials}) == 12


def test_every_hyperparameter_takes_several_values():
    for name, row in run.HYPERPARAMETERS.items():
        value = sweep.as_text(row.default)
        given = sweep.parse_arguments([sweep.flag(name), value, value])
        assert given[name] == [row.default, row.default]


def test_a_trial_is_the_run_that_its_flags_start():
    (one,) = make("--seeds 4-4 --preset tuned --epsilon 0.2 --set gravity=0.002")
    assert " ".join(one["flags"]) == "--preset tuned --epsilon 0.2 --set gravity=0.002 --seed 4"
    given = run.parse_arguments(one["flags"], run.HYPERPARAMETERS, run.PRESETS)
    settings = sweep.training_settings(given, run.HYPERPARAMETERS, run.PRESETS)
    tuned = run.PRESETS["tuned"]
    assert (settings.seed, settings.epsilon, settings.n_step) == (4, 0.2, tuned["n_step"])
    assert settings.set == {"gravity": 0.002}


def test_a_value_given_twice_runs_once():
    assert len(make("--seeds 1 --epsilon 0.1 0.10 --preset tuned tuned")) == 1


def test_repeated_set_changes_two_numbers_at_once():
    trials = make("--seeds 1 --set gravity=0.002 gravity=0.003 --set force=0.002")
    assert [t["configuration"] for t in trials] == ["--set gravity=0.002", "--set gravity=0.003"]
    assert all("force=0.002" in t["flags"] for t in trials)


def test_what_is_solved_depends_on_the_environment():
    trials = make("--seeds 1 --env MountainCar-v0 CartPole-v1")
    assert [t["solved_from"] for t in trials] == [-110, 475]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max-steps 3000", "must be a multiple of --eval-every"),
        ("--eval-every 0", "must be a multiple of --eval-every"),
        ("--batch-size 64 60000", "--batch-size: expected no more than the --buffer-size"),
        ("--env Nowhere-v0", "gym can't make it"),
        ("--set gravity=1 speed=2", "no such number"),
    ],
)
def test_a_grid_with_an_impossible_run_is_refused_before_it_starts(flags, message):
    with pytest.raises(UsageError, match=message):
        make(flags)


@pytest.mark.parametrize(
    "flags",
    ["--seeds 0", "--epsilon 0.1 2", "--preset best", "--cpus 0", "--resume nowhere", "--nonsense"],
)
def test_a_mistake_is_one_line_and_status_2(flags, tmp_path):
    result = communicate(start(flags.split(), tmp_path))
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("sweep.py: error: ")
    assert result.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_resumed_sweep_takes_no_other_trials():
    with pytest.raises(UsageError, match="--seeds: a resumed sweep keeps"):
        sweep.load_sweep({"resume": Path("x-sweep"), "seeds": range(3)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 0}',
        '{"version": 1, "id": "x", "trials": [{}]}',
        json.dumps({"version": 1, "id": "x", "trials": [trial("../x") | {"flags": []}]}),
    ],
)
def test_a_damaged_sweep_file_is_refused(text, tmp_path):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UsageError, match="--resume"):
        sweep.load_sweep({"resume": tmp_path})


def test_help_and_mistakes_import_neither_tensorflow_nor_ray():
    code = (
        "import sys, sweep\n"
        "for flags in (['--help'], ['--seeds', 'x'], ['--max-steps', '3']):\n"
        "    try:\n        sweep.main(flags)\n"
        "    except SystemExit:\n        pass\n"
        "print(sorted({'tensorflow', 'keras', 'ray', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=SWEEP.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_without_ray_one_line_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sweep_trials", raising=False)
    assert sweep.main(["--seeds", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install -r requirements-sweep.txt" in error
    assert not any(tmp_path.iterdir())


# Results and statistics


@needs_scipy
def test_a_finished_trials_row():
    from sweep_results import make_row

    row = make_row(trial(), output(-150, -105, -108))
    assert row == {
        "configuration": "c",
        "seed": 0,
        "status": "finished",
        "episode_return_avg": -108.0,
        "best": -105.0,
        "solved": True,
        "first_solved_step": 200,
        "seconds": 2.0,
        "steps_per_second": 150.0,
        "folder": "c-seed-0-log",
    }


@needs_scipy
def test_progress_is_the_latest_line_of_either_kind():
    from sweep_results import read_progress

    assert read_progress("") == (0, None)
    line = "episode 9 steps 136/2136 loss 0.0123456 return -136.0 in 0.02s 5310.2 steps/s\n"
    assert read_progress(line) == (2136, None)
    assert read_progress(line + output(-150, every=4000)) == (4000, -150)


@needs_scipy
def test_solved_is_judged_by_the_last_evaluation():
    from sweep_results import make_row

    row = make_row(trial(), output(-150, -105, -110.001))
    assert (row["solved"], row["first_solved_step"]) == (False, 200)
    assert make_row(trial(), output(-150, -150, -110))["solved"]


@needs_scipy
def test_a_stopped_trials_row_is_unfinished():
    from sweep_results import make_row

    row = make_row(trial(), output(-150, -105, end="Stopped at step 250, to go on:\n"))
    assert (row["status"], row["solved"], row["best"]) == ("unfinished", False, -105.0)
    assert make_row(trial(), "")["status"] == "unfinished"


@needs_scipy
def test_a_resumed_trials_row_is_that_of_the_whole_run():
    from sweep_results import make_row

    stopped = output(-150, -105, end="Stopped at step 250, to go on:\n")
    row = make_row(
        trial(), stopped + "Resumed c-seed-0-log at step 200\n" + output(-150, -105, -108)
    )
    assert (row["status"], row["episode_return_avg"], row["seconds"]) == ("finished", -108, 4.0)


@needs_scipy
def test_the_summary_by_hand():
    from sweep_results import make_row, summarise

    finals = [-100, -101, -102, -103, -104, -106, -111, -200]
    rows = [make_row(trial(seed=i), output(-150, -109, a)) for i, a in enumerate(finals)]
    summary = summarise(rows)
    assert summary["interquartile_mean"] == pytest.approx((-102 - 103 - 104 - 106) / 4)
    assert summary["mean"] == pytest.approx(-927 / 8)
    assert summary["standard_deviation"] == pytest.approx(
        math.sqrt(sum((a + 927 / 8) ** 2 for a in finals) / 7)
    )
    assert (summary["runs"], summary["failed"], summary["solved"]) == (8, 0, 6 / 8)
    assert (summary["median_first_solved_step"], summary["seconds"]) == (200, 2.0)
    assert -155 < summary["interval_low"] < summary["interquartile_mean"]
    assert summary["interquartile_mean"] < summary["interval_high"] < -100
    assert summarise(rows) == summary  # the bootstrap is seeded


@needs_scipy
def test_the_interval_of_equal_runs_is_a_point_and_one_run_has_none():
    from sweep_results import make_row, summarise

    rows = [make_row(trial(seed=i), output(-150, -109, -103)) for i in range(3)]
    assert (summarise(rows)["interval_low"], summarise(rows)["interval_high"]) == (-103, -103)
    alone = summarise(rows[:1])
    assert alone["interquartile_mean"] == -103
    assert math.isnan(alone["interval_low"]) and math.isnan(alone["standard_deviation"])


@needs_scipy
def test_the_interval_covers_the_mean_as_often_as_it_says():
    import numpy as np

    from sweep_results import interval

    values = np.random.default_rng(0).normal(size=(20, 60))
    low, high = interval(values, np.mean)
    assert 0.85 <= np.mean((low < 0) & (high > 0)) <= 0.99


@needs_scipy
def test_a_failed_run_counts_as_not_solved_and_is_in_no_mean():
    from sweep_results import make_row, summarise

    rows = [make_row(trial(seed=i), output(-150, -109, -103)) for i in range(4)]
    rows[3]["status"] = "failed"
    summary = summarise(rows)
    assert (summary["runs"], summary["failed"], summary["solved"]) == (3, 1, 0.75)
    assert summary["mean"] == -103


@needs_scipy
def test_the_median_run_that_never_solved_it_says_so():
    from sweep_results import make_row, summarise, table

    rows = [make_row(trial(seed=i), output(-150, -150, -150)) for i in range(3)]
    assert summarise(rows)["median_first_solved_step"] == math.inf
    assert "never" in table([summarise(rows)])[1]


@needs_scipy
def test_the_report_of_a_folder_of_outputs(tmp_path, capsys):
    from sweep_results import Results

    trials = [trial(c, seed) for c in ("--preset tutorial", "--preset tuned") for seed in range(3)]
    for number, one in enumerate(trials[:-1]):
        (tmp_path / f"{one['name']}.txt").write_text(output(-180, -150, -100 - number))
    results = Results(tmp_path, trials)
    assert [one["name"] for one in results.missing()] == [trials[-1]["name"]]
    results.update(trials[-1]["name"], failed=True)
    results.report()
    rows = read_csv(tmp_path / "results.csv")
    assert [row["status"] for row in rows] == ["finished"] * 5 + ["failed"]
    assert [row["episode_return_avg"] for row in rows] == [
        "-100",
        "-101",
        "-102",
        "-103",
        "-104",
        "",
    ]
    assert [row["solved"] for row in read_csv(tmp_path / "summary.csv")] == ["1", "0.66666667"]
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["--preset", "tutorial", "3", "0"]


# Real sweeps


def start(flags, folder):
    command = [sys.executable, SWEEP, *flags]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, process_group=0, **options)


def listening(process):
    """The addresses at which a process and those that it started can be reached."""
    family = [process, *process.children(recursive=True)]
    found = itertools.chain(*(p.net_connections(kind="inet") for p in family))
    return {connection.laddr.ip for connection in found if connection.status == "LISTEN"}


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def running(name):
    """The processes of run.py that a trial has."""
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if any(name in part for part in p.info["cmdline"] or ())]


SHORT, LONG, BAD = "max-steps-600-seed-0", "max-steps-6000-seed-0", "epsilon-0.5-seed-0"


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A sweep of three trials: one's run is killed, one can't run; Ctrl-C; resumed.

    Beside it another one, which a second process wants to resume while it runs; SIGTERM.
    """
    place = tmp_path_factory.mktemp("story")
    folder = place / "a-sweep"
    folder.mkdir()
    few = ["--train-start", "300", "--eval-every", "300", "--eval-steps", "400"]
    few += ["--seeds", "1", "--snapshot-every", "600"]
    trials = make("--max-steps", "600", "6000", *few)
    trials += make("--max-steps", "600", "--epsilon", "0.5", "0.6", *few)[:1]
    trials[2]["flags"].append("--nonsense")
    saved = {"version": sweep.VERSION, "id": "story", "trials": trials}
    (folder / sweep.SWEEP_FILE).write_text(json.dumps(saved))
    told = SimpleNamespace(folder=folder)

    other = start(["--seeds", "1", "--name", "b", "--snapshot-every", "1000"], place)
    process = start(["--resume", "a-sweep"], place)
    assert wait_for((folder / f"{LONG}-log" / "state.npz").exists)
    told.listening = listening(psutil.Process(process.pid))
    running(LONG)[0].kill()
    assert wait_for(lambda: "finished" in {row["status"] for row in rows_of(folder)})
    assert wait_for(lambda: "Resumed" in read(folder / f"{LONG}.txt"))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    told.first = communicate(process)
    told.stopped = {r["folder"].removesuffix("-log"): r for r in rows_of(folder)}
    told.stopped_output = read(folder / f"{LONG}.txt")
    told.left = running(LONG)

    assert wait_for((place / "b-sweep" / "seed-0-log" / "state.npz").exists)
    told.refused = communicate(start(["--resume", "b-sweep"], place))
    os.killpg(other.pid, signal.SIGTERM)
    told.other = communicate(other)
    told.other_output = read(place / "b-sweep" / "seed-0.txt")

    told.written = (folder / f"{SHORT}.txt").stat().st_mtime_ns
    told.second = communicate(start(["--resume", "a-sweep"], place))
    told.done = {r["folder"].removesuffix("-log"): r for r in rows_of(folder)}
    return told


@needs_ray
def test_a_trial_is_an_ordinary_run(story):
    folder = story.folder / f"{SHORT}-log"
    config = json.loads(read(folder / "config.json"))
    assert (config["seed"], config["max_steps"], config["threads"]) == (0, 600, 1)
    assert list(folder.glob("events.out.tfevents.*"))
    assert (folder / f"{SHORT}-600.h5").exists()


@needs_ray
def test_a_trial_whose_run_was_killed_goes_on_from_its_last_state(story):
    assert f"Retrying {LONG}" in story.first.out
    assert f"Resumed {LONG}-log at step" in story.stopped_output


@needs_ray
def test_a_trial_that_keeps_failing_is_reported_and_loses_no_other(story):
    assert story.second.out.count(f"Retrying {BAD}") == 2
    reason = "the last that it printed is: run.py: error: unrecognized arguments: --nonsense"
    assert f"{BAD} failed: {reason}" in story.second.out
    assert story.done[BAD]["status"] == "failed"
    assert story.done[SHORT]["status"] == story.done[LONG]["status"] == "finished"


@needs_ray
def test_ctrl_c_stops_the_running_trial_with_its_state_saved(story):
    assert (story.first.status, story.first.err) == (130, "")
    assert "python sweep.py --resume a-sweep" in story.first.out
    assert story.stopped[SHORT]["status"] == "finished"
    assert story.stopped[LONG]["status"] == "unfinished"
    assert "Stopped at step" in story.stopped_output
    assert not story.left


@needs_ray
def test_ray_listens_to_this_machine_only(story):
    assert story.listening
    assert story.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@needs_ray
def test_two_processes_do_not_run_one_sweep(story):
    assert story.refused.status == 2
    assert story.refused.err == (
        "sweep.py: error: --resume: another process is training in b-sweep\n"
    )


@needs_ray
def test_sigterm_to_the_whole_group_ends_a_sweep_as_it_should(story):
    assert (story.other.status, story.other.err) == (143, "")
    assert story.other.out.endswith("Stopped, to go on: python sweep.py --resume b-sweep\n")
    assert "Stopped at step" in story.other_output


@needs_ray
def test_resume_runs_only_what_was_missing(story):
    assert (story.second.status, story.second.err) == (1, "")  # one fails again
    assert "2 of 3 trials to run" in story.second.out
    assert (story.folder / f"{SHORT}.txt").stat().st_mtime_ns == story.written
    final = float(story.done[LONG]["episode_return_avg"])
    assert f"step 6000 episode_return_avg {final:.3f}" in read(story.folder / f"{LONG}.txt")
    assert len(read_csv(story.folder / "summary.csv")) == 3


@needs_ray
def test_a_failure_of_ray_itself_is_one_line_and_says_how_to_go_on(tmp_path, monkeypatch, capfd):
    import sweep_trials

    def fit(_tuner):
        raise RuntimeError("a node has no memory left\nand pages of what it had")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_trials.tune.Tuner, "fit", fit)
    assert sweep.main(["--seeds", "1", "--name", "lost"]) == 1
    out, err = capfd.readouterr()
    assert err == "sweep.py: error: Ray failed: a node has no memory left\n"
    assert "Stopped, to go on: python sweep.py --resume lost-sweep" in out
    assert rows_of(tmp_path / "lost-sweep")[0]["status"] == "unfinished"


@needs_ray
def test_a_trials_files_come_home_from_a_node_with_another_disk(tmp_path):
    from sweep_trials import pack, unpack

    here, there = tmp_path / "here", tmp_path / "there"
    (there / "a-log").mkdir(parents=True)
    (there / "a-log" / "a-best.h5").write_bytes(b"weights")
    (there / "a.txt").write_text("printed")
    (there / "b.txt").write_text("another trial's")
    here.mkdir()
    unpack(here, pack(there, "a"))
    assert sorted(path.name for path in here.rglob("*")) == ["a-best.h5", "a-log", "a.txt"]
    unpack(here, pack(there, "nothing yet"))


def communicate(process):
    out, err = process.communicate()
    return SimpleNamespace(out=out, err=err, status=process.returncode)


def rows_of(folder):
    return read_csv(folder / "results.csv") if (folder / "results.csv").exists() else []


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def read(path):
    return path.read_text() if path.exists() else ""
