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

import sweep
from harness.sweeps.grid import Trial
from harness.sweeps.pictures import draw_curves
from harness.sweeps.report import show_results
from harness.sweeps.results import (
    FAILED,
    UNFINISHED,
    Run,
    interval,
    make_row,
    runs_of,
    statistics,
    summarise,
)
from harness.sweeps.runs import is_finished
from harness.sweeps.tables import plain_console, summary_table


def trial(seed=0, solved_from=-110.0, **flags):
    return Trial(flags or {"gamma": 0.9}, seed, 300, solved_from)


@pytest.fixture
def row(tmp_path):
    """Gives the row of a run with the given evaluations; it has a folder of its own."""

    def row(*averages, failed=False, finished=True, solved_from=-110.0):
        one = trial(len(list(tmp_path.iterdir())), solved_from)
        folder = leave(tmp_path, one, *averages, finished=finished)
        return make_row(Run(one, folder, one.configuration, FAILED if failed else UNFINISHED))

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


def test_where_nobody_knows_what_solves_it_nothing_is_said_of_it(row):
    rows = pd.DataFrame([row(-150, 1000, solved_from=None), row(-150, 900, solved_from=None)])
    assert list(rows["solved"]) == [None, None]
    shown = summary_table(summarise(rows, []))
    assert "0 of" not in shown and "never" not in shown
    assert shown.splitlines()[3].split()[:5] == ["--gamma", "0.9", "–", "950.0", "950.0"]


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
        return statistics(pd.DataFrame(rows), failed)

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
    intervals = [interval(np.mean, sample) for sample in values.T]
    assert 0.85 <= np.mean([low < 0 < high for low, high in intervals]) <= 0.99


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
    return tmp_path, runs_of(tmp_path, trials, {trials[-1].name: FAILED})


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
    path, runs = folder
    results = show_results(path, [*runs, *runs_of(path, [trial(gamma=0.123)], {})])
    assert set(results["status"]) == {"finished", "failed", "unfinished"}
    printed = capsys.readouterr().out
    for text in ("3 of 3", "2 of 3", "[9, 99] %", "1 failed", "-101.0", "± 1.0"):
        assert text in printed
    assert "0.123" not in printed
    assert (path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_costs_a_warning_and_no_numbers(folder, capsys, monkeypatch):
    def broken(*_arguments, **_options):
        raise RuntimeError("no font named Comic Sans")

    monkeypatch.setattr(Figure, "savefig", broken)
    show_results(*folder)
    printed = capsys.readouterr().out.splitlines()
    assert (folder[0] / "results.csv").exists() and (folder[0] / "summary.csv").exists()
    assert "warning" in printed[-1] and "Comic Sans" in printed[-1]
    assert sum("warning" in line for line in printed) == 1
    assert any("3 of 3" in line for line in printed)


def test_a_single_run_has_no_intervals_in_its_table(row):
    shown = summary_table(summarise(pd.DataFrame([row(-150, -105, -108)]), []))
    assert "[-" not in shown.replace("[95 %]", "") and "±" not in shown.replace("± sd", "")
    assert "1 of 1" in shown and "-108.0" in shown


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_file_gets_no_control_codes_whatever_the_environment_wants(variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "1")
    assert not plain_console().is_terminal


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_narrow_terminal_wraps_configurations_and_cuts_no_figures(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    label = "--preset tuned --learning-rate 0.0005 --target-update-every 1000000"
    figures = {"runs": 100, "failed": 0, "solved": 0.5, "solved_low": 0.4, "solved_high": 0.6}
    figures |= {"interquartile_mean": -123.34, "interval_low": -151.8, "interval_high": -111.9}
    figures |= {"best": -100.0, "mean": -135.67, "standard_deviation": 37.24, "seconds": 1042.6}
    summary = pd.DataFrame([{"configuration": label, **figures, "median_first_solved_step": 2e5}])
    shown = summary_table(summary)
    assert max(map(len, shown.splitlines())) <= 80
    for text in ("50 of 100", "[40, 60] %", "-123.3", "[-151.8, -111.9]", "-135.7", "± 37.2"):
        assert text in shown
    assert shown.splitlines()[3].endswith("200000  1042.6")
    assert all(word in shown for word in label.split())


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Gives the axes of the picture of runs of one or more environments."""
    figures = []

    def savefig(figure, path, **_options):
        figures.append(figure)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", savefig)

    def drawn(*runs):
        draw_curves(tmp_path / "curves.png", [Run(*run, run[0].configuration) for run in runs], "t")
        return figures[-1].axes

    return drawn


def curve_in(axes):
    (curve, *solved) = axes.lines
    return curve.get_xydata().tolist(), [line.get_ydata()[0] for line in solved]


def test_a_run_that_ended_early_keeps_its_last_evaluation_in_the_curves(tmp_path, drawn):
    long, short = trial(0), trial(1)
    runs = [(long, leave(tmp_path, long, -200, -110)), (short, leave(tmp_path, short, -150))]
    (axes,) = drawn(*runs)
    assert axes.get_title() == "MountainCar-v0, solved at -110"
    assert axes.figure.get_suptitle() == "t"
    assert curve_in(axes) == ([[100, -175], [200, -130]], [-110])
    (band,) = axes.collections
    assert {-187.5, -162.5, -140, -120} == set(band.get_paths()[0].vertices[:, 1])


def test_the_band_of_a_single_run_is_the_middle_half_of_its_episodes(tmp_path, drawn):
    one = trial()
    (axes,) = drawn((one, leave(tmp_path, one, -200, -110)))
    assert curve_in(axes)[0] == [[100, -200], [200, -110]]
    (band,) = axes.collections
    assert {-205, -195, -115, -105} == set(band.get_paths()[0].vertices[:, 1])


def test_each_environment_has_a_plot_with_its_own_solved_line(tmp_path, drawn):
    trials = [trial(env="A-v0", solved_from=-110.0), trial(env="B-v0", solved_from=None)]
    first, second = drawn(*[(one, leave(tmp_path, one, -200, -150)) for one in trials])
    assert (first.get_title(), second.get_title()) == ("A-v0, solved at -110", "B-v0")
    assert (curve_in(first)[1], curve_in(second)[1]) == ([-110], [])


def test_the_report_outlives_its_terminal(folder):
    ours, theirs = pty.openpty()
    os.close(ours)
    with contextlib.suppress(OSError), open(theirs, "w") as screen:
        with contextlib.redirect_stdout(screen):
            show_results(*folder)
        (folder[0] / "survived").touch()
    assert (folder[0] / "survived").exists()


def test_an_interrupted_sweep_without_a_finished_run_shows_no_table(tmp_path, capsys):
    results = show_results(tmp_path, runs_of(tmp_path, [trial()], {}))
    assert list(results["status"]) == ["unfinished"]
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "learning_curves.png").exists()


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ('{"status": "finished"}', True),
        ('{"status": "stopped"}', False),
        ('{"status": "failed"}', False),
        ("{", False),
        ("[]", False),
    ],
)
def test_a_run_is_finished_if_it_says_so(text, finished, tmp_path):
    folder = leave(tmp_path, trial(), -150, finished=False)
    assert not is_finished(folder)
    (folder / "result.json").write_text(text)
    assert is_finished(folder) == finished


def test_a_grid_of_two_by_two_fits_a_terminal_of_80_by_24(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    grid = "--learning-rate 0.001 0.0005 --hidden 32,32 64,64"
    trials = make(f"--seeds 10 --preset tuned --max-steps 10000 --eval-every 5000 {grid}")
    for finished in trials:
        leave(tmp_path, finished, -180, -150, -120 - finished.seed)
    show_results(tmp_path, runs_of(tmp_path, trials, {}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "All runs have --preset tuned --max-steps 10000 --eval-every 5000"
    assert max(map(len, lines[:-2])) <= 80 and len(lines) < 24
    assert "--preset" not in "".join(lines[1:])
    assert sum("--hidden 32,32" in line for line in lines) == 2


@pytest.fixture
def existing(here):
    """A place with runs that exist: two on their own, and a sweep's three."""

    def add(folder, name, *averages, finished=True, **changes):
        one = Trial({}, 0, 300, None)
        leave(folder, one, *averages, finished=finished).rename(folder / f"{name}-log")
        config = {"env": "MountainCar-v0", "seed": 3, "preset": "tutorial", "max_steps": 300}
        config |= {"hidden": [32, 32], "gamma": 0.99, "command": "python run.py"} | changes
        (folder / f"{name}-log/config.json").write_text(json.dumps(config))

    add(here, "first", -150, -105, -108, gamma=0.9)
    add(here, "second", -150, -160, finished=False)
    (here / "grid-sweep").mkdir()
    (here / "grid-sweep/sweep.json").touch()
    for seed in range(3):
        add(here / "grid-sweep", f"a-seed-{seed}", -150, -120 - seed, seed=seed, hidden=[8, 8])
    return add


def shown(capsys, *words):
    assert sweep.main(["--show", *words]) == 0
    return capsys.readouterr().out


def test_runs_that_exist_are_shown_by_what_differs(existing, here, capsys):
    lines = shown(capsys, "first", "second-log").splitlines()
    assert lines[0] == "All runs have --preset tutorial --max-steps 300"
    assert lines[4].split() == ["first:", "1", "of", "1", "-108.0", "-105.0", "200", "6.0"]
    assert lines[5].split() == ["--gamma", "0.9"]
    assert lines[7].split()[:3] == ["second", "(unfinished,", "at"]
    assert lines[-1] == "Drew show.png"
    assert (here / "show.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweeps_runs_are_shown_together_beside_a_run(existing, here, capsys):
    lines = shown(capsys, "grid", "first", "--output", "both.png").splitlines()
    grid, first = [line.split() for line in lines if line.startswith(("grid:", "first:"))]
    assert grid == ["grid:", "0", "of", "3", "-121.0", "-120.0", "never", "4.0"]
    assert first == ["first:", "1", "of", "1", "-108.0", "-105.0", "200", "6.0"]
    assert sum("--hidden 8,8" in line for line in lines) == 1
    assert (here / "both.png").exists() and not (here / "show.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "--show 'nowhere': no such folder; the newest runs here: "),
        ("empty", "none of these runs has an evaluation yet"),
        ("first --seeds 3", "--seeds does nothing with --show"),
        ("odd", "config.json: expected a number from 0 to 1, not 2"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments, message, existing, here, capsys):
    existing(here, "empty")
    existing(here, "odd", -150, gamma=2)
    assert sweep.main(["--show", *arguments.split()]) == 2
    out, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and out == ""


def test_an_environment_that_is_code_is_shown_without_importing_it(existing, here, capsys):
    (here / "hill.py").write_text("raise SystemExit('imported')")
    existing(here, "own", -150, env="hill:Hill-v0")
    assert "--env hill:Hill-v0 would tell what solves it" in shown(capsys, "own")
