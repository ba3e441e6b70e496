import json
import math
import os
import re
import signal
from types import SimpleNamespace

import psutil
import pytest
from test_real_sweeps import communicate, read, rows_of, start, wait_for
from test_sweep import SWEEP
from test_sweep_results import leave

import sweep

pytest.importorskip("ray", reason="requirements-sweep.txt isn't installed")
import pandas as pd
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from harness.sweeps.confirmation import verdict
from harness.sweeps.results import is_finished
from harness.sweeps.search import Proposals, distribution, scheduler

WIDE = "--search 5 --learning-rate 0.0001:0.01 --n-step 1:20 --gamma 0.9:0.99 "
WIDE += "--hidden 32,32 64,64 --epsilon 0.1"
BAD = "1e-09"  # a learning rate that learns nothing
SPACE = f"--learning-rate {BAD} 0.01 --gamma 0.9:0.95"
RUNS = "--env conftest:Corridor-v0 --epsilon 0.5 --target-update-every 100 --max-steps 12000 "
RUNS += "--train-start 100 --eval-every 1200 --eval-steps 200 --snapshot-every 1200"
SEARCH = f"--search 3 --seeds 2 --confirm 1 --confirm-seeds 7,8 --jobs 1 --name s {SPACE} {RUNS}"


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A search of three proposals, killed while the second is trained, and resumed."""
    place = tmp_path_factory.mktemp("search")
    folder, told = place / "s-sweep", SimpleNamespace(folder=place / "s-sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(map(str, (SWEEP.parent / "tests", SWEEP.parent)))
        )

        def proposals():
            path = folder / "proposals.json"
            return json.loads(read(path))["proposals"] if path.exists() else []

        def second_run():
            logs = [path.parent for path in folder.glob("*/state.npz")]
            return sorted(logs, key=lambda path: path.stat().st_ctime)[2:]

        process = start(SEARCH, place)
        assert wait_for(second_run, 600)
        told.interrupted = second_run()[0].name
        told.first = {path: path.stat().st_mtime_ns for path in folder.glob("*.txt")}
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        told.before = proposals()
        communicate(process)
        psutil.wait_procs(children, timeout=60)
        told.second = communicate(start("--resume s-sweep", place))
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
    assert "2 of 3 proposals to train" in story.second.out
    assert len(story.after) == 3 and len(story.rows) == 3 * 2 + 4
    for path, written in story.first.items():
        untouched = story.interrupted.removesuffix("-log")[:-1] not in path.name
        assert (path.stat().st_mtime_ns == written) == untouched
    assert "Resumed" in read(story.folder / f"{story.interrupted.removesuffix('-log')}.txt")


def test_what_asha_stopped_has_its_state_and_its_row(story):
    stopped = [row for row in story.rows.values() if row["status"] == "stopped early"]
    assert stopped and {row["learning_rate"] for row in stopped} == {BAD}
    for row in stopped:
        assert 3600 <= int(row["step"]) < 12000 and row["episode_return_avg"]
        assert is_finished(story.folder / row["folder"]) is False
    share = re.search(r"ASHA stopped (\d) of 3 .* (\d+)% saved", story.second.out)
    assert int(share[1]) * 2 == len(stopped) and int(share[2]) > 0
    assert (story.folder / "search.png").read_bytes().startswith(b"\x89PNG")


def searching(arguments=WIDE):
    search, _ = sweep.plan(arguments.split())
    return search


def test_a_range_is_logarithmic_from_a_decade_on_and_whole_for_whole_numbers():
    space = searching().searched
    assert distribution(space["learning_rate"]) == FloatDistribution(1e-4, 0.01, log=True)
    assert distribution(space["n_step"]) == IntDistribution(1, 20, log=True)
    assert distribution(space["gamma"]) == FloatDistribution(0.9, 0.99)
    assert distribution(space["hidden"]) == CategoricalDistribution(("32,32", "64,64"))


def test_a_proposal_is_trained_on_each_seed_of_the_search_and_confirmed_on_ten_others():
    search = searching()
    values = {"learning_rate": 0.002, "n_step": 3, "gamma": 0.95, "hidden": "64,64"}
    text = "--learning-rate 0.002 --n-step 3 --gamma 0.95 --hidden 64,64 --epsilon 0.1"
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
    assert proposal.configuration == "--gamma 0.9 --preset tuned --max-steps 4000 --epsilon 0.1"
    assert preset.configuration == "--preset tuned --max-steps 4000"


@pytest.fixture
def proposals(tmp_path):
    """Gives the Proposals of a search, started or resumed in the same folder."""
    return lambda: Proposals(tmp_path, searching(), SimpleNamespace(number=0))


def ask(proposals, name):
    """The trials of the next proposal, and its values."""
    return proposals.suggest(name)["trials"], proposals.made[-1].values


def test_proposals_are_new_within_their_ranges_and_short(proposals):
    made = proposals()
    for number in range(20):
        _, values = ask(made, str(number))
        assert 1e-4 <= values["learning_rate"] <= 0.01 and values["n_step"] in range(1, 21)
        assert len(f"{values['learning_rate']:e}".split("e")[0].rstrip("0")) <= 4
    texts = [json.dumps(one.values) for one in made.made]
    assert len(set(texts)) == 20


def test_several_changes_of_the_environment_are_no_choice():
    search = searching("--search 1 --gamma 0.8:0.9 --set gravity=0.002 --set force=0.002")
    assert search.searched.keys() == {"gamma"}
    assert search.preset["set"] == {"gravity": 0.002, "force": 0.002}


def test_a_search_ends_when_nothing_new_is_left(tmp_path):
    made = Proposals(tmp_path, searching("--search 9 --n-step 1:3"), SimpleNamespace(number=0))
    suggested = [made.suggest(str(number)) for number in range(4)]
    assert {one["trials"][0].flags["n_step"] for one in suggested[:3]} == {1, 2, 3}
    assert suggested[3] == "FINISHED"


def test_a_resumed_search_keeps_results_goes_on_with_the_unfinished_and_proposes_on(proposals):
    before = proposals()
    for number, finished in enumerate([True, False, False]):
        trials, _ = ask(before, str(number))
        for seed, trial in enumerate(trials):
            leave(before.folder, trial, -200, -150 - number - seed, finished=finished)
    result = {"finished": True, "episode_return_avg": -151.0}
    before.on_trial_complete("0", result)
    before.on_trial_complete("1", result | {"finished": False})  # ASHA has stopped it
    after = proposals()
    assert [one.values for one in after.made] == [one.values for one in before.made]
    assert [one.last for one in after.ended] == [-151, -152]
    known = [trial for trial in after._ot_study.trials if trial.value is not None]
    told = [(trial.params, trial.value) for trial in known]
    assert told == [(one.values, one.last) for one in after.ended]
    assert after.suggest("3") == {"trials": before.made[2].trials}
    assert ask(after, "4")[0] not in [one.trials for one in before.made]
    assert [one.stopped for one in proposals().made] == [False, True, False, False]


def test_a_signal_stops_no_proposal_for_good(proposals):
    made = proposals()
    ask(made, "0")
    made.stop.number = signal.SIGINT
    made.on_trial_complete("0", {"finished": False, "episode_return_avg": -200.0})
    assert not proposals().made[0].stopped


def test_asha_stops_what_is_worse_than_before_and_no_ties(proposals):
    made = proposals()
    for number in range(3):
        trials, _ = ask(made, str(number))
        for trial in trials:
            leave(made.folder, trial, -200, -150 - number)
    asha = scheduler(300, made.made)  # they have evaluations at steps 100 and 200

    def decide(name, step, average):
        asha.on_trial_add(None, SimpleNamespace(trial_id=name))
        result = {"step": step, "episode_return_avg": average}
        return asha.on_trial_result(None, SimpleNamespace(trial_id=name), result)

    assert decide("tie", 100, -200) == decide("median", 200, -151) == "CONTINUE"
    assert decide("worse", 200, -151.5) == "STOP"
    assert decide("too early to tell", 80, -300) == "CONTINUE"


def confirmed(*finals):
    """The verdict about one or two proposals and a preset with the given last evaluations."""
    proposals = [{"gamma": "0.9"}, {"gamma": "0.99"}][: len(finals) - 1]
    trials = searching("--search 1 --gamma 0.9 0.99").confirmation(proposals)
    results = pd.DataFrame({"folder": [f"{trial.name}-log" for trial in trials]})
    results["configuration"] = [trial.configuration for trial in trials]
    results["episode_return_avg"] = [average for averages in finals for average in averages]
    return verdict(results, trials)


def test_a_winner_is_better_by_more_than_chance():
    luck = [-100.0, -200.0] * 5
    assert confirmed([-100.0] * 10, [-150.0] * 9 + [-149.0])[-1] == "python run.py --gamma 0.9"
    for proposal in (luck, [-160.0] * 10, [-100.0] * 9 + [math.nan]):
        (line,) = confirmed(proposal, [-151.0, -149.0] * 5)
        assert line.startswith("Nothing beats --preset tutorial on fresh seeds")
    (line,) = confirmed([math.nan] * 10, [-152.0] * 10, [-151.0, -149.0] * 5)
    assert "the best differs by -2.0 " in line
