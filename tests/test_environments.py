"""Other mountains: `--set` changes numbers of the environment."""

import json

import pytest
from conftest import SHORT
from test_viewer import play

import run
from harness.environments import make_environment
from harness.errors import UsageError


def returns(capsys, **options):
    play(eval=True, episodes=3, **options)
    return float(capsys.readouterr().out.split()[-1])


def test_set_changes_the_mountain(capsys):
    assert returns(capsys) < returns(capsys, set={"force": 0.002}) < 0
    assert returns(capsys, set={"force": 0}) == -200


def test_a_snapshot_is_played_on_the_mountain_it_was_trained_on(here, capsys):
    goal = ["--set", "goal_position=-1.0"]  # reached at once, but for the velocity
    assert run.main([*SHORT, "--name=flat", *goal, "--max-steps=400", "--eval-every=400"]) == 0
    assert json.loads((here / "flat-log/config.json").read_text())["set"] == {"goal_position": -1}
    play_it = ["--model", "flat-log", "--eval", "--seed", "1", "--episodes", "2"]

    def lines(*arguments):
        capsys.readouterr()
        assert run.main([*play_it, *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    known, given, other = lines(), lines(*goal), lines("--set", "goal_position=0.5")
    assert known == given
    assert known[0] == "Loaded flat-log/flat-best.h5"
    assert known[-1] != "episode_return_avg -200.000"
    assert other[1] == "--set is goal_position=0.5; the snapshot's run had goal_position=-1"
    assert other[-1] == "episode_return_avg -200.000"


@pytest.mark.parametrize("mode", [[], ["--eval"], ["--gif", "x.gif"], ["--train"]])
def test_set_refuses_unknown_names_with_the_known_ones(runs, refused, mode):
    model = ["--model", runs / "car-log/car-2500.h5"] if mode else []
    assert refused(*model, *mode, "--set", "friction=1") == (
        "run.py: error: --set friction: the environment has no such number, only force, "
        "goal_position, goal_velocity, gravity, max_position, max_speed, min_position\n"
    )


def test_set_refuses_a_mountain_that_cannot_be_drawn(here):
    with pytest.raises(UsageError, match="--set: MountainCar-v0 doesn't work with these numbers"):
        play(gif="x.gif", set={"max_position": -1.2})


def test_numbers_that_follow_from_changed_ones_are_recomputed():
    pole = make_environment("CartPole-v1", {"masspole": 0.5, "length": 2}).unwrapped
    assert (pole.total_mass, pole.polemass_length) == (1.5, 1.0)
    fast = make_environment("MountainCar-v0", {"max_speed": 0.1, "min_position": -2})
    assert fast.observation_space.low == pytest.approx([-2, -0.1])
    assert fast.reset(seed=1)[0] in fast.observation_space
