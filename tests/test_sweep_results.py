import contextlib
import json
import math
import os
import pty

import pytest
from sweeping import leave, make

pytest.importorskip("ray", reason="requirements-sweep.txt isn't installed")
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.sweeps.grid import Trial
from harness.sweeps.pictures import draw_curves
from harness.sweeps.progress import is_finished
from harness.sweeps.results import interval, make_row, summarise
from harness.sweeps.tables import show_results, summary_table


def trial(seed=0, solved_from=-110.0, **flags):
    return Trial(flags or {"gamma": 0.9}, seed, 300, solved_from)


@pytest.fixture
def row(tmp_path):
    """Gives the row of a run with the given evaluations; it has a folder of its own."""

    def row(*averages, failed=False, finished=True, solved_from=-110.0):
        one = trial(len(list(tmp_path.iterdir())), solved_from)
        leave(tmp_path, one, *averages, finished=finished)
        return make_row(tmp_path, one, "failed" if failed else None)

    return row


def test_a_finished_trials_row(row):
    assert row(-150, -105, -108) == {
        "configuration": "--gamma 0.9",
        "gamma": "0.9",
        "seed": 0,
        "status": "finished",
        "step": 300,
        "episode_return_avg": -108.0,
        "best": -105.0,
        "solved": True,
        "first_solved_step": 200,
        "seconds": 6.0,
        "folder": "gamma-0.9-seed-0-log",
    }


def test_solved_is_judged_by_the_last_evaluation(row):
    lapsed, late = row(-150, -105, -110.001), row(-150, -150, -110)
    assert (lapsed["solved"], lapsed["first_solved_step"]) == (False, 200)
    assert (late["solved"], late["first_solved_step"]) == (True, 300)
    assert not row(1000, solved_from=math.inf)["solved"]


def test_stopped_and_failed_trials_are_not_judged(row):
    stopped = row(-150, -105, finished=False)
    assert (stopped["status"], stopped["step"], stopped["best"]) == ("unfinished", 200, -105)
    assert not stopped["solved"] and math.isnan(stopped["episode_return_avg"])
    without_evaluation = row(failed=True, finished=False)
    assert (without_evaluation["status"], without_evaluation["solved"]) == ("failed", False)


@pytest.fixture
def summary(row):
    """Gives the statistics of runs with the given last evaluations."""

    def summary(*finals, failed=0, before=(-150, -109)):
        rows = [row(*before, final) for final in finals]
        rows += [row(*before, failed=True, finished=False) for _ in range(failed)]
        return summarise(pd.DataFrame(rows))

    return summary


def test_the_summary_by_hand(summary):
    finals = [-100, -101, -102, -103, -104, -106, -111, -200]
    found = summary(*finals)
    assert found["interquartile_mean"] == pytest.approx((-102 - 103 - 104 - 106) / 4)
    assert found["mean"] == pytest.approx(-927 / 8)
    deviation = math.sqrt(sum((final + 927 / 8) ** 2 for final in finals) / 7)
    assert found["standard_deviation"] == pytest.approx(deviation)
    assert (found["runs"], found["failed"], found["solved"]) == (8, 0, 6 / 8)
    assert (found["median_first_solved_step"], found["seconds"]) == (200, 6.0)
    assert -155 < found["interval_low"] < found["interquartile_mean"]
    assert found["interquartile_mean"] < found["interval_high"] < -100


def test_the_share_solved_has_its_exact_interval(summary):
    all_of_5 = summary(*[-100] * 5)
    assert (all_of_5["solved"], all_of_5["solved_high"]) == (1, 1)
    assert all_of_5["solved_low"] == pytest.approx(0.025 ** (1 / 5))  # five successes: 2.5 %


def test_one_run_or_one_without_a_completed_episode_has_no_interval(summary):
    alone = summary(-103)
    assert alone["interquartile_mean"] == -103
    assert math.isnan(alone["interval_low"]) and math.isnan(alone["standard_deviation"])
    assert math.isnan(summary(-103, math.nan)["mean"])


def test_the_interval_covers_the_mean_as_often_as_it_says():
    values = np.random.default_rng(0).normal(size=(20, 60))
    low, high = interval(np.mean, values)
    assert 0.85 <= np.mean((low < 0) & (high > 0)) <= 0.99


def test_a_failed_run_counts_as_not_solved_and_is_in_no_mean(summary):
    found = summary(-103, -103, -103, failed=1)
    assert (found["runs"], found["failed"], found["solved"]) == (3, 1, 0.75)
    assert found["mean"] == found["interval_low"] == found["interval_high"] == -103


def test_the_median_run_that_never_solved_it_says_so(summary):
    assert summary(-150, -150, -150, before=())["median_first_solved_step"] == math.inf


@pytest.fixture
def folder(tmp_path):
    """A sweep's folder: two configurations of three trials, of which the last has failed."""
    trials = [trial(seed, gamma=gamma) for gamma in (0.9, 0.8) for seed in range(3)]
    for number, one in enumerate(trials):
        leave(tmp_path, one, -180, -150, -100 - number, finished=number < 5)
    return tmp_path, trials, {trials[-1].name: "failed"}


def test_the_three_tables_are_ready_for_pandas(folder):
    show_results(*folder)
    results = pd.read_csv(folder[0] / "results.csv")
    assert list(results["status"]) == ["finished"] * 5 + ["failed"]
    assert list(results["episode_return_avg"][:5]) == [-100, -101, -102, -103, -104]
    assert results["episode_return_avg"].isna()[5]
    assert list(results["gamma"]) == [0.9] * 3 + [0.8] * 3
    summary = pd.read_csv(folder[0] / "summary.csv")
    assert list(summary["configuration"]) == ["--gamma 0.9", "--gamma 0.8"]
    assert list(summary["solved"]) == pytest.approx([1, 2 / 3])
    assert list(summary["gamma"]) == [0.9, 0.8]
    evaluations = pd.read_csv(folder[0] / "evaluations.csv")
    assert list(evaluations) == ["configuration", "seed", "step", "episode_return_avg"]
    assert len(evaluations) == 6 * 3
    assert list(evaluations.iloc[5]) == ["--gamma 0.9", 1, 300, -101]


def test_the_report_shows_every_configuration_that_has_finished_runs(folder, capsys):
    path, trials, failed = folder
    results = show_results(path, [*trials, trial(gamma=0.123)], failed)
    assert set(results["status"]) == {"finished", "failed", "unfinished"}
    printed = capsys.readouterr().out
    for text in ("3 of 3", "2 of 3", "[9, 99] %", "1 failed", "-101.0", "± 1.0"):
        assert text in printed
    assert "0.123" not in printed
    assert (path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_narrow_terminal_wraps_configurations_and_cuts_no_figures(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    label = "--preset tuned --learning-rate 0.0005 --target-update-every 1000000"
    figures = {"runs": 100, "failed": 0, "solved": 0.5, "solved_low": 0.4, "solved_high": 0.6}
    figures |= {"interquartile_mean": -123.34, "interval_low": -151.8, "interval_high": -111.9}
    figures |= {"mean": -135.67, "standard_deviation": 37.24, "seconds": 1042.6}
    summary = pd.DataFrame([{"configuration": label, **figures, "median_first_solved_step": 2e5}])
    shown = summary_table(summary)
    assert max(map(len, shown.splitlines())) <= 80
    for text in ("50 of 100", "[40, 60] %", "-123.3", "[-151.8, -111.9]", "-135.7", "± 37.2"):
        assert text in shown
    assert shown.splitlines()[3].endswith("200000  1042.6")
    assert all(word in shown for word in label.split())


def test_a_run_that_ended_early_keeps_its_last_evaluation_in_the_curves(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    evaluations = pd.DataFrame({"configuration": "c", "seed": [0, 1, 0]})
    evaluations["step"] = [1000, 1000, 2000]
    evaluations["episode_return_avg"] = [-200, -150, -110]
    with contextlib.suppress(FileNotFoundError):  # nothing is written
        draw_curves(tmp_path / "curves.png", evaluations, "--gamma 0.9")
    assert figures[0].axes[0].get_title() == "--gamma 0.9"
    (line,) = figures[0].axes[0].lines
    assert line.get_label() == "c (n = 2)"
    assert line.get_xydata().tolist() == [[1000, -175], [2000, -130]]


def test_the_report_outlives_its_terminal(folder):
    ours, theirs = pty.openpty()
    os.close(ours)
    with contextlib.suppress(OSError), open(theirs, "w") as screen:
        with contextlib.redirect_stdout(screen):
            show_results(*folder)
        (folder[0] / "survived").touch()
    assert (folder[0] / "survived").exists()


def test_an_interrupted_sweep_without_a_finished_run_shows_no_table(tmp_path, capsys):
    assert list(show_results(tmp_path, [trial()], {})["status"]) == ["unfinished"]
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "learning_curves.png").exists()


@pytest.mark.parametrize(
    ("averages", "changes", "finished"),
    [
        ([-150, -105], {}, True),
        ([], {"max_steps": 100}, False),
        ([-150, -105], {"max_steps": 300}, False),
        ([-150, -105], {"max_steps": 300, "until": -110, "until_reached": True}, True),
        ([-150, -105], {"max_steps": 300, "until": -110}, False),
        ([-150, math.nan], {"max_steps": 300, "until": -110}, False),
    ],
)
def test_a_run_is_finished_at_its_last_step_or_when_it_is_good_enough(
    averages, changes, finished, tmp_path
):
    ended = trial()
    leave(tmp_path, ended, *averages)
    config = tmp_path / ended.log_folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    assert is_finished(tmp_path / ended.log_folder) == finished


def test_a_run_that_was_killed_before_its_last_save_is_not_finished(tmp_path):
    leave(tmp_path, trial(), -150, -105)
    snapshot = tmp_path / trial().log_folder / f"{trial().name}-200.h5"
    snapshot.unlink()
    assert not is_finished(tmp_path / trial().log_folder)
    assert not is_finished(tmp_path / "nowhere-log")


def test_a_grid_of_two_by_two_fits_a_terminal_of_80_by_24(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    grid = "--learning-rate 0.001 0.0005 --hidden 32,32 64,64"
    trials = make(f"--seeds 10 --preset tuned --max-steps 10000 --eval-every 5000 {grid}")
    for finished in trials:
        leave(tmp_path, finished, -180, -150, -120 - finished.seed)
    show_results(tmp_path, trials, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "All runs have --preset tuned --max-steps 10000 --eval-every 5000"
    assert max(map(len, lines[:-1])) <= 80 and len(lines) < 24
    assert "--preset" not in "".join(lines[1:])
    assert sum("--hidden 32,32" in line for line in lines) == 2
