import contextlib
import json
import math
import os
import re
import shutil
import signal
from types import SimpleNamespace

import psutil
import pytest
from sweeping import SWEEP, communicate, leave, make, read, rows_of, start, wait_for, workers

pytest.importorskip("ray", reason="requirements-sweep.txt isn't installed")
import pandas as pd
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from harness.sweeps.confirmation import budget, verdict
from harness.sweeps.pictures import draw_search
from harness.sweeps.progress import is_finished, read_evaluations
from harness.sweeps.search import Proposals, distribution

WIDE = "--search 5 --learning-rate 0.0001:0.01 --n-step 1:20 --gamma 0.9:0.99 "
WIDE += "--hidden 32,32 64,64 --epsilon 0.1"
BAD = "1e-09"  # a learning rate that learns nothing
SPACE = f"--learning-rate {BAD} 0.01 --gamma 0.9:0.95"
RUNS = "--env conftest:Corridor-v0 --epsilon 0.5 --target-update-every 100 --max-steps 6000 "
RUNS += "--train-start 100 --eval-every 1500 --eval-steps 200 --snapshot-every 300 --batch-size 16"
SEARCH = f"--search 4 --seeds 2 --confirm 1 --confirm-seeds 7,8 --jobs 1 --name s {SPACE} {RUNS}"


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A search of four proposals, killed while the second is trained, and resumed."""
    place = tmp_path_factory.mktemp("search")
    folder, told = place / "s-sweep", SimpleNamespace(folder=place / "s-sweep")
    path = os.pathsep.join(map(str, (SWEEP.parent / "tests", SWEEP.parent)))
    environment = {**os.environ, "PYTHONPATH": path}

    def proposals():
        path = folder / "proposals.json"
        return json.loads(read(path))["proposals"] if path.exists() else []

    def second_run():
        logs = [path.parent for path in folder.glob("*/state.npz")]
        return sorted(logs, key=lambda path: path.stat().st_ctime)[2:]

    process = start(SEARCH, place, env=environment)
    told.interrupted = wait_for(second_run, process)[0].name
    told.first = {path: path.stat().st_mtime_ns for path in folder.glob("*.txt")}
    training = workers(process)
    process.send_signal(signal.SIGKILL)
    told.before = proposals()
    communicate(process)
    psutil.wait_procs(training, timeout=600)  # they may train for a moment yet
    told.interrupted_at = max(read_evaluations(folder / told.interrupted), default=0)
    told.second = communicate(start("--resume s-sweep", place, env=environment))
    told.after, told.rows = proposals(), rows_of(folder)
    return told


def test_the_search_finds_the_better_setting(story):
    (proposal,) = {row["learning_rate"] for row in confirmed_rows(story) if not row["preset"]}
    assert proposal == "0.01"
    assert {one["values"]["learning_rate"] for one in story.after} == {BAD, "0.01"}
    last = story.second.out.splitlines()[-1]
    assert last.startswith("Nothing beats --preset tutorial")  # which learns it just as well


def test_the_confirmation_uses_other_seeds_and_trains_the_preset_on_them_too(story):
    assert [row["seed"] for row in confirmed_rows(story)] == ["7", "8", "7", "8"]
    assert [row["preset"] for row in confirmed_rows(story)] == ["", "", "tutorial", "tutorial"]


def confirmed_rows(story):
    return [row for row in story.rows.values() if row["seed"] in ("7", "8")]


def test_a_killed_and_resumed_search_loses_nothing_and_counts_nothing_twice(story):
    assert (story.second.err, story.second.status) == ("", 0)
    assert len(story.before) == 2
    assert [one["values"] for one in story.after[:2]] == [one["values"] for one in story.before]
    assert "3 of 4 proposals to train" in story.second.out
    assert len(story.after) == 4 and len(story.rows) == 4 * 2 + 4
    for path, written in story.first.items():
        untouched = story.interrupted.removesuffix("-log")[:-1] not in path.name
        assert (path.stat().st_mtime_ns == written) == untouched
    output = read(story.folder / f"{story.interrupted.removesuffix('-log')}.txt")
    # On a busy machine, the kill may come when the run has paused for ASHA's decision.
    assert "Resumed" in output or story.interrupted_at >= 3000


def test_what_asha_stopped_has_its_state_and_its_row(story):
    stopped = [row for row in story.rows.values() if row["status"] == "stopped early"]
    assert stopped and {row["learning_rate"] for row in stopped} == {BAD}
    for row in stopped:
        assert int(row["step"]) in (3000, 4500) and row["episode_return_avg"]
        assert not is_finished(story.folder / row["folder"])
        assert (story.folder / row["folder"] / "state.npz").exists()
    saved = 1 - sum(trained_steps(story)) / (4 * 2 * 6000)
    line = f"ASHA stopped {len(stopped) // 2} of 4 proposals early: .* {saved:.0%} saved"
    assert re.search(line, story.second.out)
    assert (story.folder / "search.png").read_bytes().startswith(b"\x89PNG")


def trained_steps(story):
    return [int(row["step"]) for row in story.rows.values() if row["seed"] in ("0", "1")]


def searching(arguments=WIDE):
    return make(arguments)


def test_a_range_is_logarithmic_from_a_decade_on_and_whole_for_whole_numbers():
    space = searching().searched
    assert distribution(space["learning_rate"]) == FloatDistribution(1e-4, 0.01, log=True)
    assert distribution(space["n_step"]) == IntDistribution(1, 20, log=True)
    assert distribution(space["gamma"]) == FloatDistribution(0.9, 0.99)
    assert distribution(space["hidden"]) == CategoricalDistribution(("32,32", "64,64"))


def test_a_proposal_is_trained_on_each_seed_of_the_search_and_confirmed_on_ten_others():
    search = searching()
    values = {"learning_rate": 0.002, "n_step": 3, "gamma": 0.95, "hidden": "64,64"}
    text = "--learning-rate 0.002 --n-step 3 --gamma 0.95 --hidden 64,64"
    trials = search.trials(values)
    assert [(t.configuration, t.seed) for t in trials] == [(text, seed) for seed in range(3)]
    confirmation = search.confirmation([values])
    assert [(t.configuration, t.seed) for t in confirmation] == [
        (configuration, seed)
        for configuration in (text, "--preset tutorial")
        for seed in range(3, 13)
    ]
    assert confirmation[-1].others["n_step"] == 1


def test_a_preset_is_where_proposals_start_and_what_they_must_beat():
    search = searching("--search 1 --gamma 0.9 0.99 --preset tuned --max-steps 4000 --epsilon 0.1")
    proposal, preset = search.trials({"gamma": "0.9"})[0], search.confirmation([])[0]
    started = "--gamma 0.9 --preset tuned --max-steps 4000 --epsilon 0.1"
    assert " ".join(proposal.arguments) == started
    assert " ".join(preset.arguments) == "--preset tuned --max-steps 4000"
    assert (proposal.configuration, preset.configuration) == ("--gamma 0.9", "--preset tuned")


@pytest.fixture
def proposals(tmp_path):
    """Gives the Proposals of a search on two seeds, started or resumed in the same folder."""
    search = "--search 30 --seeds 2 --max-steps 1000 --learning-rate 0.0001:0.01 --n-step 1:20"
    return lambda: Proposals(tmp_path, make(f"{search} --hidden 32,32 64,64"))


def train(proposals, *averages, failed=False):
    """Let each run of the next proposal end with these evaluations; return the line about it."""
    lines = []
    for _ in range(2):
        job = proposals.next_job()
        leave_again(proposals.folder, job.trial, *averages)
        lines.append(proposals.take_in(job.trial, failed))
    assert lines[0] is None  # its other run is missing
    return lines[1]


def leave_again(folder, trial, *averages):
    """Leave what a run of 1000 steps does that has an evaluation every 100 steps."""
    shutil.rmtree(folder / trial.log_folder, ignore_errors=True)
    leave(folder, trial, *averages, finished=len(averages) == 10)


def test_proposals_are_new_within_their_ranges_and_short(proposals):
    made = proposals()
    for _ in range(20):
        train(made, -200, failed=True)
    for proposal in made.made:
        rate = proposal.values["learning_rate"]
        assert 1e-4 <= rate <= 0.01 and proposal.values["n_step"] in range(1, 21)
        assert len(f"{rate:e}".split("e")[0].rstrip("0")) <= 4
    assert len({json.dumps(proposal.values) for proposal in made.made}) == 20


def test_several_changes_of_the_environment_are_no_choice():
    search = searching("--search 1 --gamma 0.8:0.9 --set gravity=0.002 --set force=0.002")
    assert search.searched.keys() == {"gamma"}
    assert search.preset["set"] == {"gravity": 0.002, "force": 0.002}


def test_a_search_ends_when_nothing_new_is_left(tmp_path):
    made = Proposals(tmp_path, searching("--search 9 --seeds 1 --n-step 1:3"))
    steps = {made.next_job().trial.flags["n_step"] for _ in range(3)}
    assert steps == {1, 2, 3}
    assert made.next_job() is None


def test_the_runs_of_a_proposal_pause_at_each_cut_and_go_on_before_another_starts(proposals):
    made = proposals()
    pauses = []
    for averages in (3, 6, 10):
        jobs = [made.next_job() for _ in range(2)]
        assert [job.trial for job in jobs] == made.made[0].trials
        pauses += [job.pause for job in jobs]
        for job in jobs:
            leave_again(made.folder, job.trial, *[-150] * averages)
            line = made.take_in(job.trial, failed=False)
    assert pauses == [300, 300, 600, 600, math.inf, math.inf]
    assert line.endswith("seeds 0,1: episode_return_avg -150.000")
    assert made.next_job().trial == made.made[1].trials[0]


def test_a_resumed_search_keeps_results_goes_on_with_the_unfinished_and_proposes_on(proposals):
    before = proposals()
    train(before, *[-150] * 10)
    assert "stopped early at step 300: episode_return_avg -160" in train(before, *[-160] * 3)
    interrupted = before.next_job().trial
    leave_again(before.folder, interrupted, *[-170] * 2)
    after = proposals()
    assert [proposal.values for proposal in after.made] == [one.values for one in before.made]
    known = [(t.params, t.state, t.value) for t in after.study.get_trials()]
    finished, stopped, _ = after.made
    assert known == [
        (finished.values, TrialState.COMPLETE, -150),
        (stopped.values, TrialState.PRUNED, -160),
    ]
    assert after.count == 28
    assert after.next_job().trial == interrupted
    assert after.next_job().trial in before.made[2].trials
    assert after.next_job().trial in after.made[3].trials
    assert [proposal.stopped for proposal in proposals().made] == [False, True, False, False]


def test_a_failed_proposal_is_reported_and_tried_again_by_a_resumed_search(proposals):
    made = proposals()
    assert f"failed: see {made.folder}" in train(made, -200, failed=True)
    assert proposals().next_job().trial == made.made[0].trials[0]


def test_asha_stops_what_is_worse_than_before_and_no_ties(proposals):
    made = proposals()
    for average in (-150, -151, -152):
        train(made, *[-200] * 3, *[average] * 7)
    again = proposals()  # a resumed search knows what they were at the cuts
    assert train(again, *[-200] * 3) is None, "a tie"
    assert train(again, *[-200] * 5, -151) is None, "at the median"
    assert train(again, *[-199] * 10) is not None, "its end"
    assert "stopped early at step 300" in train(again, *[-200.5] * 3)
    assert train(again, *[-200] * 3) is None
    assert "stopped early at step 600" in train(again, *[-200] * 5, -151.5)


def test_the_picture_of_a_search_has_choices_in_their_order(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    made = Proposals(tmp_path, searching("--search 3 --seeds 1 --n-step 1 10 2 --max-steps 1000"))
    for average in (-150, -140, -130):
        job = made.next_job()
        leave_again(tmp_path, job.trial, *[average] * 10)
        made.take_in(job.trial, failed=False)
    with contextlib.suppress(FileNotFoundError):  # nothing is written
        draw_search(tmp_path / "search.png", made.search.searched, made.made)
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10", "2"]
    shown = {float(x): y for x, y in axes.collections[0].get_offsets()}
    choices = ["1", "10", "2"]
    assert shown == {choices.index(p.values["n_step"]): p.last for p in made.made}


def test_the_budget_counts_what_was_trained(tmp_path):
    made = Proposals(tmp_path, searching("--search 2 --seeds 1 --n-step 1:3 --max-steps 1000"))
    for averages in (10, 3):
        job = made.next_job()
        leave_again(tmp_path, job.trial, *[-150 - averages] * averages)
        made.take_in(job.trial, failed=False)
    made.made[-1].stopped = True
    text = "ASHA stopped 1 of 2 proposals early: 1300 steps trained instead of 2000, 35% saved"
    assert budget(tmp_path, made.made) == text


def confirmed(*finals):
    """The verdict about one or two proposals and a preset with the given last evaluations."""
    proposals = [{"gamma": "0.9"}, {"gamma": "0.99"}][: len(finals) - 1]
    trials = searching("--search 1 --gamma 0.9 0.99").confirmation(proposals)
    results = pd.DataFrame({"folder": [trial.log_folder for trial in trials]})
    results["configuration"] = [trial.configuration for trial in trials]
    results["episode_return_avg"] = [average for averages in finals for average in averages]
    return verdict(results, trials)


def test_a_winner_is_better_by_more_than_chance():
    luck = [-100.0, -200.0] * 5
    winner = confirmed([-100.0] * 10, [-150.0] * 9 + [-149.0])[-1]
    assert winner.endswith("python run.py --gamma 0.9")
    for proposal in (luck, [-160.0] * 10, [-100.0] * 9 + [math.nan]):
        (line,) = confirmed(proposal, [-151.0, -149.0] * 5)
        assert line.startswith("Nothing beats --preset tutorial on fresh seeds")
    (line,) = confirmed([math.nan] * 10, [-152.0] * 10, [-151.0, -149.0] * 5)
    assert "the best differs by -2.0 " in line
