"""`--env X --test`: each point gets its line, and what can't be trained is told why."""

import re

import pytest

from harness.examination import examine

POINTS = (
    *("spaces", "reset and step", "bounds", "float32", "wrappers", "seed", "two at a time"),
    *("observations", "rewards", "episodes", "drawing", "speed"),
)

pytestmark = pytest.mark.usefixtures("environments")


def examined(env_id, **changes):
    """Whether it can be trained, and of each point its mark and its text."""
    lines = []
    trainable = examine(env_id, changes, lines.append)
    assert lines.pop() == f"{env_id} can{'' if trainable else chr(39) + 't'} be trained" + (
        "" if trainable else " as it is"
    )
    found = {}
    for line in lines:
        mark, point, text = re.fullmatch(r"([✓!✗]) ([a-z0-9 ]+): (.+)", line).groups()
        assert point not in found or mark == "✗"
        found[point] = mark, text
    assert [mark for mark, _ in found.values()].count("✗") == (not trainable)
    return trainable, found


def marked(found, mark):
    return [point for point, (its, _) in found.items() if its == mark]


def test_mountain_car_passes_but_for_its_rewards():
    trainable, found = examined("MountainCar-v0")
    assert trainable
    assert tuple(found) == POINTS
    assert marked(found, "!") == ["rewards"]
    assert "each of 2000 random actions got -1, and 0 of 10 episodes terminated" in str(found)
    assert found["episodes"] == ("✓", "length 200; 0 of 10 terminated, by random actions")


@pytest.mark.parametrize("env_id", ["paths:Path-v0", "CartPole-v1", "gymnasium:CartPole-v1"])
def test_what_is_as_it_should_be_gets_no_warning(env_id):
    trainable, found = examined(env_id)
    assert trainable
    assert (tuple(found), marked(found, "!")) == (POINTS, [])


@pytest.mark.parametrize(
    "kind", ["Field", "Reusing", "Listing", "Board", "Numbered", "Named", "ActionsFromFive"]
)
def test_a_field_can_be_trained_and_not_be_drawn(kind):
    trainable, found = examined(f"fields:{kind}-v0")
    assert trainable
    assert marked(found, "!") == ["drawing"]
    assert "has no render mode rgb_array; it can be trained, but not watched" in str(found)


@pytest.mark.parametrize(
    ("env_id", "point", "text"),
    [
        ("habits:Outside-v0", "bounds", "its observation is 7 for number 0, outside of its spac"),
        ("habits:FarPart-v0", "float32", "its observation['clock'] goes from 1700000000 to "),
        ("habits:Normalised-v0", "wrappers", "its NormalizeObservation normalises by what it "),
        ("habits:Dice-v0", "seed", "two episodes of one seed and the same actions differ from st"),
        ("habits:Single-v0", "two at a time", "a second one can't be made beside the first: its "),
        ("habits:Sharing-v0", "two at a time", "they disturb each other: something belongs to b"),
        ("habits:Bandit-v0", "observations", "none of 4001 differs from the first"),
        ("habits:Bandit-v0", "rewards", "from -1000 to 0; divide them in the environment"),
        ("habits:NotSoFar-v0", "observations", "from 1e+07 to 1e+07; networks learn numbers near"),
        ("paths:Floats-v0", "drawing", "its render returns an array (16, 112, 3) of float64; exp"),
        ("paths:Silent-v0", "drawing", "its render returns a NoneType; expected an array (height"),
        ("paths:Texts-v0", "drawing", "this environment can't be drawn: its metadata has no rend"),
    ],
)
def test_a_point_that_deserves_a_warning_gets_it(env_id, point, text):
    trainable, found = examined(env_id)
    assert trainable
    assert found[point][1].startswith(text)
    assert found[point][0] == "!"


def test_episodes_without_an_end_are_warned_of():
    trainable, found = examined("habits:Endless-v0")
    assert trainable
    assert found["episodes"] == (
        "!",
        "none ended within 2000 random actions, and there is no time limit: add "
        "--set max_episode_steps=1000",
    )
    assert examined("habits:Endless-v0", max_episode_steps=9)[1]["episodes"][0] == "✓"


@pytest.mark.parametrize(
    ("env_id", "point", "text"),
    [
        ("nowhere:Field-v0", "spaces", "there is no module 'nowhere'"),
        ("fields:Picture-v0", "spaces", "its observation has 10,800 numbers"),
        ("fields:Absent-v0", "spaces", "its constructor failed: RuntimeError: its owner forgot "),
        ("fields:OldStep-v0", "reset and step", "its step returns 4 values; expected (observati"),
        ("fields:OneActionFails-v0", "reset and step", "step failed: KeyError: 3 (fields.py, lin"),
        ("fields:LateNaN-v0", "reset and step", "its observation is [nan, nan] in step "),
        ("fields:LateExit-v0", "reset and step", "step failed: SystemExit: 0 (fields.py, line "),
        ("fields:Unspeakable-v0", "reset and step", "its observation is a Secret"),
        ("fields:Growing-v0", "two at a time", "its observations have "),
    ],
)
def test_what_can_not_be_trained_is_told_why(env_id, point, text):
    trainable, found = examined(env_id)
    assert not trainable
    assert list(found)[-1] == point
    assert found[point][0] == "✗"
    assert found[point][1].startswith(text)
