"""Other mountains: `--set` changes numbers of the environment."""

import json

import pytest
from conftest import train_by_command
from test_viewer import play

import run
from harness.errors import UsageError


def returns(capsys, **options):
    play(eval=True, episodes=3, **options)
    return float(capsys.readouterr().out.split()[-1])


def test_set_changes_the_mountain(capsys):
    assert returns(capsys) < returns(capsys, set={"force": 0.002}) < 0
    assert returns(capsys, set={"force": 0}) == -200


def test_set_is_kept_and_shown_by_a_training(here):
    command = ["--name", "steep", "--set", "gravity=0.0026", "--set", "goal_position=0.4"]
    printed = train_by_command(*command, "--max-steps", "400", "--eval-every", "400")
    settings = json.loads((here / "steep-log/config.json").read_text())
    assert settings["set"] == {"gravity": 0.0026, "goal_position": 0.4}
    last = printed.splitlines()[-1]
    assert last.endswith("steep-best.h5 --set gravity=0.0026 --set goal_position=0.4")


@pytest.mark.parametrize("mode", [[], ["--eval"], ["--gif", "x.gif"], ["--train"]])
def test_set_refuses_unknown_names_with_the_known_ones(runs, here, capsys, mode):
    model = ["--model", str(runs.car / "car-2500.h5")] if mode else []
    assert run.main([*model, *mode, "--set", "friction=1"]) == 2
    assert capsys.readouterr().err == (
        "run.py: error: --set friction: the environment has no such number, only force, "
        "goal_position, goal_velocity, gravity, max_position, max_speed, min_position\n"
    )
    assert not list(here.iterdir())


@pytest.mark.parametrize("text", ["gravity", "gravity=", "=1", "gravity=nan", "gravity=1e999"])
def test_set_refuses_what_is_not_a_number(capsys, text):
    with pytest.raises(SystemExit) as ended:
        run.main(["--set", text])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_set_refuses_a_mountain_that_cannot_be_drawn(here):
    with pytest.raises(UsageError, match="--set: MountainCar-v0 can't be played so"):
        play(gif="x.gif", set={"max_position": -1.2})
