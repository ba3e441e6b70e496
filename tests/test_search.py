import json
import math
import os
import re
import signal
from types import SimpleNamespace

import psutil
import pytest
from sweeping import SWEEP, communicate, leave, make, rows_of, start, wait_for, workers

pytest.importorskip("ray", reason="requirements-sweep.txt isn't installed")
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from harness.errors import UsageError
from harness.sweeps.report import verdict
from harness.sweeps.runs import is_finished
from harness.sweeps.search import Proposals, budget, distribution, random_return

WIDE = "--search 5 --learning-rate 0.0001:0.01 --n-step 1:20 --gamma 0.9:0.99 "
WIDE += "--hidden 32,32 64,64 --epsilon 0.1"
BAD = "1e-09"  # a learning rate that learns nothing
SPACE = f"--learning-rate {BAD} 0.01 --gamma 0.9:0.95"
RUNS = "--env conftest:Corridor-v0 --epsilon 0.5 --target-update-every 100 --max-steps 3000 "
RUNS += "--train-start 100 --eval-every 750 --eval-steps 100 --snapshot-every 0 --batch-size 16"
SEARCH = f"--search 3 --seeds 1 --confirm 1 --confirm-seeds 1 --jobs 1 --name s {SPACE} {RUNS}"


def journal(folder):
    """The trials in a search's journal that were neither repeated nor broken off."""
    path = folder / "search.journal"
    if not path.exists() or not path.stat().st_size:
        return []
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    return [trial for trial in study.trials if trial.state != TrialState.FAIL]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A search of three proposals, killed while the second is trained, and resumed."""
    place = tmp_path_factory.mktemp("search")
    folder, told = place / "s-sweep", SimpleNamespace(folder=place / "s-sweep")
    path = os.pathsep.join(map(str, (SWEEP.parent / "tests", SWEEP.parent)))
    environment = {**os.environ, "PYTHONPATH": path}

    def second_run():
        logs = [path.parent for path in folder.glob("*/config.json")]
        return sorted(logs, key=lambda path: path.stat().st_ctime)[1:]

    process = start(SEARCH, place, env=environment)
    told.interrupted = wait_for(second_run, process)[0].name
    told.first = {path: path.stat().st_mtime_ns for path in folder.glob("*.txt")}
    training = workers(process)
    process.send_signal(signal.SIGKILL)
    communicate(process)
    psutil.wait_procs(training, timeout=600)  # they may train for a moment yet
    told.before = journal(folder)
    told.second = communicate(start("--resume s-sweep", place, env=environment))
    told.after, told.rows = journal(folder), rows_of(folder)
    return told


def test_the_search_finds_the_better_setting(story):
    (proposal,) = {row["learning_rate"] for row in confirmed_rows(story) if not row["preset"]}
    assert proposal == "0.01"
    assert {trial.params["learning_rate"] for trial in story.after} == {BAD, "0.01"}
    last = story.second.out.splitlines()[-1]
    assert last.startswith("Nothing beats --preset tutorial")  # one fresh seed proves nothing


def test_the_confirmation_uses_other_seeds_and_trains_the_preset_on_them_too(story):
    assert [row["seed"] for row in confirmed_rows(story)] == ["1", "1"]
    assert [row["preset"] for row in confirmed_rows(story)] == ["", "tutorial"]


def confirmed_rows(story):
    return [row for row in story.rows.values() if row["seed"] == "1"]


def test_a_killed_and_resumed_search_loses_nothing_and_counts_nothing_twice(story):
    assert (story.second.err, story.second.status) == ("", 0)
    assert len(story.before) == 2
    assert [one.params for one in story.after[:2]] == [one.params for one in story.before]
    left = 3 - sum(one.state.is_finished() for one in story.before)
    said = re.search(r"(\d) of 3 proposals to train", story.second.out)
    assert int(said[1]) in (left, left - 1)  # its worker may have ended the second one
    assert len(story.after) == 3 and len(story.rows) == 3 + 2
    for path, written in story.first.items():
        untouched = story.interrupted.removesuffix("-log") != path.stem
        assert (path.stat().st_mtime_ns == written) == untouched


def test_what_asha_stopped_has_its_state_and_its_row(story):
    stopped = [row for row in story.rows.values() if row["status"] == "stopped early"]
    assert stopped and {row["learning_rate"] for row in stopped} == {BAD}
    for row in stopped:
        assert float(row["step"]) in (1500, 2250) and row["episode_return_avg"]
        assert not is_finished(story.folder / row["folder"])
        assert (story.folder / row["folder"] / "state.npz").exists()
    assert [one.state for one in story.after].count(TrialState.PRUNED) == len(stopped)
    saved = 1 - sum(trained_steps(story)) / (3 * 3000)
    line = f"ASHA stopped {len(stopped)} of 3 proposals early: .* {saved:.0%} saved"
    assert re.search(line, story.second.out)


def trained_steps(story):
    return [float(row["step"]) for row in story.rows.values() if row["seed"] == "0"]


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
    values = {"learning_rate": 0.002, "n_step": 3, "gamma": 0.95, "hidden": (64, 64)}
    text = "--learning-rate 0.002 --n-step 3 --gamma 0.95 --hidden 64,64"
    trials = search.trials(values, search.seeds)
    assert search.label(values) == text
    assert [(t.configuration, t.seed) for t in trials] == [(text, seed) for seed in range(3)]
    assert search.fresh_seeds == [*range(3, 13)]
    preset = search.preset_trials()
    assert [(t.configuration, t.seed) for t in preset] == [
        ("--preset tutorial", seed) for seed in range(3, 13)
    ]


def test_a_preset_is_where_proposals_start_and_what_they_must_beat():
    search = searching("--search 1 --gamma 0.9 0.99 --preset tuned --max-steps 4000 --epsilon 0.1")
    proposal, preset = search.trials({"gamma": 0.9}, [0])[0], search.preset_trials()[0]
    started = "--gamma 0.9 --preset tuned --max-steps 4000 --epsilon 0.1"
    assert " ".join(proposal.arguments) == " ".join(search.arguments({"gamma": 0.9})) == started
    assert " ".join(preset.arguments) == "--preset tuned --max-steps 4000"
    assert (proposal.configuration, preset.configuration) == ("--gamma 0.9", "--preset tuned")


@pytest.fixture
def proposals(tmp_path):
    """Gives the Proposals of a search on two seeds, started or resumed in the same folder."""
    search = "--search 30 --seeds 2 --max-steps 1000 --learning-rate 0.0001:0.01 --n-step 1:20"
    return lambda more="": Proposals(tmp_path, make(f"{search} --hidden 32,32 64,64 {more}"))


def train(proposals, *averages, failed=False):
    """Let each run of the next proposal end with these evaluations; return the line about it."""
    lines = []
    for _ in range(2):
        job = proposals.next_job()
        leave_again(proposals.folder, job.trial, *averages)
        lines.append(proposals.job_ended(job.trial, failed))
    assert lines[0] is None  # its other run is missing
    return lines[1]


def leave_again(folder, trial, *averages):
    """Leave what a run of 1000 steps does that has an evaluation every 100 steps."""
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
    assert search.preset_trials()[0].flags["set"] == {"gravity": 0.002, "force": 0.002}


def test_a_search_ends_when_nothing_new_is_left(tmp_path):
    made = Proposals(tmp_path, searching("--search 9 --seeds 1 --n-step 1:3"))
    steps = {made.next_job().trial.flags["n_step"] for _ in range(3)}
    assert steps == {1, 2, 3}
    assert made.next_job() is None


def test_the_runs_of_a_proposal_pause_at_each_cut_before_another_starts(proposals):
    made = proposals()
    pauses = []
    for averages in (3, 6, 10):
        jobs = [made.next_job() for _ in range(2)]
        assert [job.trial for job in jobs] == made.made[0].trials
        pauses += [job.pause for job in jobs]
        for job in jobs:
            leave_again(made.folder, job.trial, *[-150] * averages)
            line = made.job_ended(job.trial, failed=False)
    assert pauses == [300, 300, 600, 600, math.inf, math.inf]
    assert line.endswith("seeds 0,1: episode_return_avg -150.000")
    assert made.next_job().trial == made.made[1].trials[0]


def test_a_resumed_search_keeps_results_continues_what_is_unfinished_and_proposes_on(proposals):
    before = proposals()
    train(before, *[-150] * 10)
    assert "stopped early at step 300: episode_return_avg -160" in train(before, *[-160] * 3)
    interrupted = before.next_job().trial
    leave_again(before.folder, interrupted, *[-170] * 2)
    after = proposals()
    assert [proposal.values for proposal in after.made] == [one.values for one in before.made]
    known = [(t.state, t.value) for t in after.study.get_trials()]
    assert known == [
        (TrialState.COMPLETE, -150),
        (TrialState.PRUNED, -160),
        (TrialState.RUNNING, None),
    ]
    assert after.count == 28
    assert after.next_job().trial == interrupted
    assert after.next_job().trial in before.made[2].trials
    assert after.next_job().trial in after.made[3].trials
    assert [proposal.stopped for proposal in proposals().made] == [False, True, False, False]


@pytest.mark.parametrize("averages", [[-160] * 3, [-160] * 10])
def test_a_search_killed_before_its_decision_decides_when_it_is_resumed(averages, proposals):
    before = proposals()
    train(before, *[-150] * 10)
    for _ in range(2):
        leave_again(before.folder, before.next_job().trial, *averages)
    after = proposals()
    ended = after.made[1]
    assert (ended.ended, ended.stopped) == (True, len(averages) == 3)
    assert after.count == 28 and after.next_job().trial not in ended.trials
    assert after.study.trials[1].intermediate_values.keys() >= {100, 200, 300}


def test_a_search_killed_between_report_and_decision_decides_again(proposals):
    before = proposals()
    train(before, *[-150] * 10)
    for _ in range(2):
        leave_again(before.folder, before.next_job().trial, *[-160] * 3)
    for step in (100, 200, 300):
        before.made[1].asked.report(-160, step)
    assert proposals().made[1].stopped


def test_a_search_killed_while_it_wrote_its_journal_is_resumed_without_waiting(proposals):
    before = proposals()
    train(before, *[-150] * 10)
    path = before.folder / "search.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"torn')
    (before.folder / "search.journal.lock").symlink_to(path)
    after = proposals()
    assert (len(after.made), after.count) == (1, 29)
    assert path.read_bytes().startswith(whole) and b'"torn' not in path.read_bytes()
    train(after, *[-150] * 10)
    assert len(proposals().made) == 2


def test_a_search_killed_while_it_proposed_proposes_again(proposals):
    before = proposals()
    before.study.ask({"n_step": before.space["n_step"]})
    assert (proposals().made, proposals().count) == ([], 30)


def test_a_damaged_journal_is_refused(proposals):
    path = proposals().folder / "search.journal"
    path.write_text("{}\n" * 3)
    with pytest.raises(UsageError, match="journal is damaged"):
        proposals()


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


def test_the_budget_counts_what_was_trained(tmp_path):
    made = Proposals(tmp_path, searching("--search 2 --seeds 1 --n-step 1:3 --max-steps 1000"))
    for average, count in (-150, 10), (-160, 3):
        job = made.next_job()
        leave_again(tmp_path, job.trial, *[average] * count)
        made.job_ended(job.trial, failed=False)
    text = "ASHA stopped 1 of 2 proposals early: 1300 steps trained instead of 2000, 35% saved"
    assert budget(made) == text


SEVERAL = "--search 3 --seeds 1 --n-step 1:9 --max-steps 1000 --env MountainCar-v0 CartPole-v1"


def test_a_proposal_for_several_environments_is_trained_in_each_of_them(tmp_path):
    made = Proposals(tmp_path, searching(SEVERAL))
    jobs = [made.next_job() for _ in range(2)]
    assert [job.trial.env for job in jobs] == ["MountainCar-v0", "CartPole-v1"]
    assert len({json.dumps(dict(job.trial.flags) | {"env": ""}) for job in jobs}) == 1
    values = made.made[0].values
    assert made.search.arguments(values) == [
        "--n-step",
        str(values["n_step"]),
        *["--max-steps", "1000"],
    ]
    preset = made.search.preset_trials()
    assert [t.configuration for t in preset].count("--preset tutorial --env CartPole-v1") == 10


def test_a_score_is_0_for_random_actions_and_1_where_it_is_solved(tmp_path):
    made = Proposals(tmp_path, searching(SEVERAL))
    car, pole = (made.next_job().trial for _ in range(2))
    low = random_return("CartPole-v1", {})
    assert 15 < low < 30
    assert [made.score(pole, average) for average in (low, 475)] == [0, 1]
    assert [made.score(car, average) for average in (-200, -155, -110)] == [0, 0.5, 1]
    leave_again(tmp_path, car, *[-155] * 10)
    assert made.job_ended(car, failed=False) is None
    leave_again(tmp_path, pole, *[475] * 10)
    assert made.job_ended(pole, failed=False).endswith(": score 0.750")
    assert made.study.trials[0].value == pytest.approx(0.75)
    assert set(made.study.trials[0].intermediate_values.values()) == {0.75}


def test_what_random_actions_return_is_measured_once(tmp_path, monkeypatch):
    first = Proposals(tmp_path, searching(SEVERAL))
    monkeypatch.setattr("harness.sweeps.search.random_return", None)
    assert Proposals(tmp_path, searching(SEVERAL)).scales == first.scales


def test_a_goal_that_random_actions_reach_is_refused(tmp_path):
    with pytest.raises(UsageError, match="-200 counts as solved: there is nothing"):
        Proposals(tmp_path, searching(f"{SEVERAL} --goal -200 475"))


def test_a_fresh_seeds_score_is_the_mean_over_its_environments(tmp_path):
    made = Proposals(tmp_path, searching(f"{SEVERAL} --confirm-seeds 2"))
    trials = made.search.preset_trials()
    for one, average in zip(trials, (-155, -110, 475, 475), strict=True):
        leave_again(tmp_path, one, *[average] * 10)
    assert made.fresh_scores(trials) == [0.75, 1]


def test_a_winner_is_better_by_more_than_chance():
    commands = {"--gamma 0.9": ["--gamma", "0.9"], "--gamma 0.99": ["--gamma", "0.99"]}

    def judged(preset, *scores):
        some = dict(zip(commands, scores, strict=False))
        return verdict(some | {"p": preset}, "p", {name: commands[name] for name in some})

    winner = judged([-150.0] * 9 + [-149.0], [-100.0] * 10)
    assert winner[-1].endswith("python run.py --gamma 0.9")
    for proposal in ([-100.0, -200.0] * 5, [-160.0] * 10, [-100.0] * 9 + [math.nan]):
        (line,) = judged([-151.0, -149.0] * 5, proposal)
        assert line.startswith("Nothing beats p on fresh seeds")
    (line,) = judged([-151.0, -149.0] * 5, [math.nan] * 10, [-152.0] * 10)
    assert "the best differs by -2.0 [" in line
    (line,) = judged([-150.0], [-140.0])  # one seed: no interval, and no verdict
    assert line.startswith("Nothing beats p") and "[" not in line
