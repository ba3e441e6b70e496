"""Environments of all kinds: trained, or refused in one line; their numbers changed by --set."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import gym
import gymnasium
import numpy as np
import pytest
from conftest import SHORT, run_command
from players import play

import run
import see
from harness.environments import (
    check_environment,
    check_same_size,
    make_environment,
    observation_centres_and_scales,
    parse_value,
)
from harness.errors import EnvironmentCrash, EnvironmentFault, UsageError

ENVIRONMENTS = Path(__file__).parent / "environments"
# Enough for a field or a path of six steps.
LEARN = [
    *("--max-steps=1500", "--train-start=200", "--eval-every=1500", "--eval-steps=200"),
    *("--initial-epsilon=1", "--epsilon-decay-steps=1000", "--target-update-every=100"),
    *("--learning-rate=0.003", "--seed=1", "--name=x"),
]

pytestmark = pytest.mark.usefixtures("environments")


def final_return(folder):
    with open(folder / "x-log/evaluations.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["episode_return_avg"])


# What trains


KINDS = [
    *("Reusing", "ReadOnlyView", "Listing", "Tupling", "Doubles", "Bytes", "NumpyValues"),
    *("Board", "Numbered", "Pair", "Named", "FloatPair", "UnsignedNumber"),
    *("ActionsFromFive", "WithoutRenderMode", "Unlimited"),
]


@pytest.mark.parametrize(
    "kind", ["Reusing", "Listing", "Bytes", "Board", "Numbered", "ActionsFromFive"]
)
def test_a_field_is_crossed_in_six_steps_however_it_is_written(here, kind):
    assert run.main([*LEARN, "--env", f"fields:{kind}-v0"]) == 0
    assert final_return(here) == -6


@pytest.mark.parametrize(
    ("env", "package"),
    [
        ("paths:Path-v0", "gymnasium"),
        ("paths:GymnasiumsPath-v0", "gym"),
        ("fields:GymsField-v0", "gymnasium"),
    ],
)
def test_environments_of_both_packages_train_whichever_knows_them(here, env, package):
    assert make_environment(env).package == package
    assert run.main([*LEARN, "--env", env]) == 0
    assert final_return(here) == -6


def test_a_module_in_the_current_folder_is_found_and_hides_no_package(here):
    shutil.copy(ENVIRONMENTS / "paths.py", here / "my_paths.py")
    (here / "numpy.py").write_text("raise RuntimeError('the wrong numpy')")
    (here / "gymnasium.py").write_text("raise RuntimeError('the wrong gymnasium')")
    gif = ["--gif", "x.gif", "--seed", "1", "--set", "length=2", "max_episode_steps=3"]
    result = run_command("see.py", "--env", "my_paths:Path-v0", *gif)
    assert (result.returncode, result.stderr) == (0, "")
    assert (here / "x.gif").exists()


@pytest.mark.parametrize("flags", [["length=9"], ["length=9", "max_episode_steps=30"]])
def test_a_longer_path_is_trained_watched_and_drawn(here, capsys, flags):
    env = ["--env", "paths:Path-v0"]
    assert run.main([*LEARN, *env, *(f"--set={flag}" for flag in flags)]) == 0
    assert final_return(here) == -9
    capsys.readouterr()
    show = ["--model", "x-log", *env, "--seed", "1"]
    assert run.main([*show, "--eval", "--episodes", "2"]) == 0
    assert "episode_return_avg -9.000" in capsys.readouterr().out
    assert run.main([*show, "--gif", "x.gif"]) == 0
    assert run.main([*show, "--images"]) == 0
    assert len(list(here.glob("frames/1_*.png"))) == 10


@pytest.mark.parametrize("env", ["paths:Path-v0", "fields:Numbered-v0"])
def test_a_run_on_an_environment_of_ones_own_is_resumed(here, env):
    assert run.main([*LEARN, "--env", env, "--max-steps=300", "--eval-every=0"]) == 0
    assert run.main(["--resume", "x-log", "--env", env, "--max-steps=600"]) == 0
    assert (here / "x-log/x-600.h5").exists()


def test_the_command_that_is_printed_works_as_it_stands(here, capsys):
    shutil.copy(ENVIRONMENTS / "paths.py", here / "own_paths.py")
    result = run_command("run.py", *LEARN, "--env", "own_paths:Path-v0")
    assert result.returncode == 0
    words = result.stdout.splitlines()[-1].split()
    assert words[1].endswith("run.py")
    again = run_command("run.py", *words[2:], "--eval")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.endswith("episode_return_avg -6.000\n")


def test_until_is_not_reached_where_one_of_the_fresh_episodes_does_not_end(here, capsys):
    few = "--until -1 --max-steps 300 --train-start 100 --eval-every 300 --eval-steps 1 --seed 1"
    assert run.main([*few.split(), "--env", "fields:Sticking-v0", "--name", "x"]) == 0
    shown = capsys.readouterr().out
    assert "fresh episode 4 of 100 doesn't end: --until not reached\n" in shown
    assert "--until reached" not in shown


# What is refused before anything is written


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("OldStep", "its step returns 4 values; expected (observation, reward, terminated, "),
        ("OldReset", "its reset returns array([0., 0.], dtype=float32); expected (observation, in"),
        ("Unseeded", "its reset can't be called: Unseeded.reset() got an unexpected keyword argum"),
        ("Longer", "its observation has shape (3,); its space says (2,)"),
        ("Column", "its observation has shape (2, 1); its space says (2,)"),
        ("Ragged", "its observation is [1, [2, 3]]"),
        ("Words", "its observation is ['1', '2'], made of <U1; expected real numbers"),
        (
            "Complex",
            "its observation is array([0.+1.j, 0.+1.j]), made of complex128; expected real",
        ),
        ("Nothing", "its observation is None, made of object; expected real numbers"),
        ("Orphan", "its class is no environment; expected one that inherits from gymnasium.Env o"),
        ("OutsideItsSpace", "its observation is 0; its space says Discrete(16, start=1)"),
        ("WrongPart", "its observation['column'] is [4]; its space says MultiDiscrete([4])"),
        ("MissingPart", "its observation is {'row': 0.0}; its space says Dict('row': Box(0.0"),
        ("WithKeys", "its observation is {0: 0, 1: 0}; its space says Tuple(Discrete(4), Discrete"),
        ("Overflowing", "its observation['x'] is [300]; its space says Box(0, 255, (1,), uint8)"),
        ("Fractional", "its observation['x'] is array([0.7]); its space says Box(0, 255, (1,), "),
        ("Numeral", "its observation['x'] is ['3']; its space says Box(0, 255, (1,), uint8)"),
        ("Unspeakable", "its observation is a Secret, made of object; expected real numbers"),
        (
            "DictOfValues",
            "its step returns a dict {'observation': array([1., 0.], dtype=float32), ",
        ),
        ("ComplexReward", "its reward is (-1+1j); expected a number"),
        ("OwnSignature", "its reset can't be called: OwnSignature.reset() missing 1 required pos"),
        ("WrongLimit", "it was registered with a max_episode_steps of '50'; expected a whole num"),
        ("Nowhere", "its entry point is missing: module 'fields' has no attribute 'Forgotten'"),
        ("NaNReward", "its reward is nan in step 1 of an episode; expected a finite number"),
        ("NoReward", "its reward is None; expected a number"),
        ("InfoForTruncated", "its truncated is {}; expected True or False"),
        ("Infinite", "its observation is [inf, inf] in step 0 of an episode; expected finite n"),
        ("Picture", "its observation has 10,800 numbers; at most 10,000 are supported, since de"),
        ("Sentence", "its observation has a Text space, which can't be made a list of numbers"),
        ("Steering", "its action space is Box(-1.0, 1.0, (1,), float32); expected a Discrete one"),
        ("Spaceless", "its observation_space is None; expected a space of gym or gymnasium"),
    ],
)
def test_a_fault_is_named_in_one_line(refused, kind, reason):
    error = refused("--env", f"fields:{kind}-v0", "--name", "x")
    assert error.startswith(f"run.py: error: --env fields:{kind}-v0: {reason}")
    assert refused("--env", f"fields:{kind}-v0", "--gif", "x.gif", main=see.main)


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ("Nope-v0", "neither gym nor gymnasium knows it: "),
        ("MountainCra-v0", "Did you mean: `MountainCar`?"),
        ("LunarLander-v9", "`v3`"),
        ("", "neither gym nor gymnasium knows it: Malformed environment ID"),
        ("fields:Nope-v0", "neither gym nor gymnasium knows it: "),
        ("nowhere:Field-v0", "there is no module 'nowhere', neither among the installed packages "),
        ("fields.py:Field-v0", "expected MODULE:ID with the name of a module, such as my_environm"),
        ("../fields:Field-v0", "expected MODULE:ID with the name of a module"),
        (":Field-v0", "expected MODULE:ID with the name of a module"),
        ("a:b:c", "there is no module 'a'"),
        ("LunarLander-v3", "pip install box2d"),
    ],
)
def test_an_environment_that_nobody_knows_is_refused(refused, monkeypatch, env, reason):
    monkeypatch.setitem(sys.modules, "Box2D", None)  # as if it weren't installed
    error = refused("--env", env)
    assert f"--env {env}: " in error
    assert reason.lower() in error.lower()


def test_what_a_module_registers_is_meant_whatever_else_has_its_name():
    env = make_environment("fields:Acrobot-v1")
    assert (env.package, env.n_actions) == ("gymnasium", 4)
    assert make_environment("Acrobot-v1").n_actions == 3


def test_a_module_that_another_one_hides_is_named(here, refused):
    (here / "colorsys.py").write_text("")
    error = refused("--env", "colorsys:Unheard-v0", "--name", "x")
    assert re.search(
        r"importing colorsys \(\S+colorsys.py\) registered nothing of that name; it hides "
        r"colorsys.py here, which needs another name\n$",
        error,
    )


def test_without_gymnasium_its_environments_are_refused_with_the_cure(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    error = refused("--env", "CliffWalking-v1")
    assert error.endswith("; if it is gymnasium's, that isn't installed: pip install gymnasium\n")


# Faults that show later, and the environment's own exceptions


def test_a_late_nan_is_blamed_on_the_environment(here, capsys):
    flags = ["--env", "fields:LateNaN-v0", "--snapshot-every", "500"]
    assert run.main([*LEARN, *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "run.py: error: the environment fields:LateNaN-v0 is at fault: its observation is [nan, nan"
    )
    assert error.count("\n") == 1
    assert (here / "x-log/x-500.h5").exists()


def test_an_environment_of_another_size_each_time_is_at_fault(here, capsys):
    assert run.main([*LEARN, "--env", "fields:Growing-v0"]) == 1
    error = capsys.readouterr().err
    found = re.fullmatch(
        "run.py: error: the environment fields:Growing-v0 is at fault: its observations have "
        r"(\d+) numbers when it is made, and (\d+) when it is made again; expected the same number "
        r"each time\n",
        error,
    )
    one, other = map(int, found.groups())
    assert other == one + 1


def test_an_exception_of_the_environments_own_keeps_its_traceback(here, capsys):
    flags = ["--env", "fields:LateCrash-v0", "--snapshot-every", "500"]
    assert run.main([*LEARN, *flags]) == 1
    first, *traceback = capsys.readouterr().err.splitlines()
    assert first == (
        "run.py: error: the environment fields:LateCrash-v0 failed in its own code, in step:"
    )
    assert traceback[-1] == "KeyError: 'forgotten'"
    frames = [line for line in traceback if line.startswith("  File ")]
    assert len(frames) == 2
    assert all("fields.py" in frame for frame in frames)
    assert (here / "x-log/x-500.h5").exists()


def test_an_environment_that_exits_is_at_fault(here, capsys):
    assert run.main([*LEARN, "--env", "fields:LateExit-v0", "--snapshot-every", "500"]) == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == (
        "run.py: error: the environment fields:LateExit-v0 failed in its own code, in step:"
    )
    assert last == "SystemExit: 0"
    assert (here / "x-log/x-500.h5").exists()


def test_what_an_environment_changes_around_it_is_put_back(here, capsys):
    handler = signal.getsignal(signal.SIGINT)
    in_mid_episode = ["--snapshot-every", "730"]
    assert run.main([*LEARN, "--env", "fields:Untidy-v0", *in_mid_episode]) == 0
    assert (here / "x-log/x-730.h5").exists()
    assert Path.cwd() == here
    assert signal.getsignal(signal.SIGINT) == handler
    assert (here / "x-log/x-1500.h5").exists()
    assert "Play it:\n" in capsys.readouterr().out


def test_an_environment_may_compute_with_tensorflow_itself(here):
    code = "import fields, gym, tensorflow as tf\n"
    code += "class Own(fields.Field):\n    start = tf.constant([0.0, 0.0])\n"
    code += "    def observe(self):\n        return tf.constant(self.place) + self.start\n"
    (here / "computing.py").write_text(code + "gym.register('Own-v0', Own, max_episode_steps=50)\n")
    path = os.pathsep.join([str(ENVIRONMENTS), str(here)])
    result = run_command(
        *("run.py", *LEARN, "--env", "computing:Own-v0", "--max-steps", "400"),
        env={**os.environ, "PYTHONPATH": path},
        cwd=here,
    )
    assert result.returncode == 0, result.stderr
    assert (here / "x-log/x-400.h5").exists()


@pytest.mark.parametrize(
    ("env", "where", "last"),
    [
        ("fields:OneActionFails-v0", "step", "KeyError: 3"),
        (
            "fields:HelperFails-v0",
            "reset",
            "TypeError: HelperFails.reset.<locals>.helper() got",
        ),
        ("leaving:Field-v0", "the import of leaving", "SystemExit: done"),
        ("fields:Absent-v0", "its constructor", "RuntimeError: its owner forgot something"),
        ("broken:Field-v0", "the import of broken", "NameError: name 'forgotten' is not defined"),
        (
            "importing:Field-v0",
            "the import of importing",
            "ModuleNotFoundError: No module named 'n",
        ),
    ],
)
@pytest.mark.parametrize("program", [run, see])
def test_an_exception_at_the_start_keeps_its_traceback_too(
    here, capsys, monkeypatch, program, env, where, last
):
    monkeypatch.syspath_prepend(here)
    (here / "broken.py").write_text("forgotten\n")
    (here / "leaving.py").write_text("import sys\nsys.exit('done')\n")
    (here / "importing.py").write_text("import nowhere_to_be_found\n")
    before = {path.name for path in here.iterdir()}
    flags = ["--name", "x"] if program is run else ["--gif", "x.gif"]
    assert program.main(["--env", env, *flags]) == 1
    first, *traceback = capsys.readouterr().err.splitlines()
    name = program.__name__
    assert first == f"{name}.py: error: the environment {env} failed in its own code, in {where}:"
    assert traceback[-1].startswith(last)
    assert not any("harness" in line for line in traceback)
    assert {path.name for path in here.iterdir()} - {"__pycache__"} == before


# The door itself


def test_observations_are_copied_when_they_arrive():
    env = make_environment("fields:Reusing-v0")
    first, _ = env.reset(seed=1)
    second = env.step(0)[0]
    assert (first.tolist(), second.tolist()) == ([0, 0], [1, 0])
    for observation in (first, second):
        assert observation.dtype == np.float32
        assert observation.flags.owndata
        assert observation.flags.writeable


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_plain_whatever_the_environment_makes_of_them(kind):
    env = make_environment(f"fields:{kind}-v0")
    check_environment(env)
    observation, info = env.reset(seed=1)
    assert (observation.shape, observation.dtype) == ((env.observation_size,), np.float32)
    assert observation.astype(env.observation_space.dtype) in env.observation_space
    assert info == {}
    plain = make_environment("fields:Field-v0")
    plain.reset(seed=1)
    for action in [3, 0, 2, 0, 2, 1, 0, 0, 2]:
        observation, *values = env.step(action)
        expected, *others = plain.step(action)
        assert values == others
        assert [type(value) for value in values] == [float, bool, bool, dict]
        if observation.shape == expected.shape:
            assert (observation == expected).all()
    assert values == [-1.0, True, False, {}]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Numbered", np.eye(16)[4]),
        ("Board", np.eye(16)[4]),
        ("Pair", [0, 1, 0, 0, 1, 0, 0, 0]),
        ("Named", [1, 0, 0, 0, 1]),
    ],
)
def test_other_observations_are_flattened_as_the_package_does_it(kind, expected):
    env = make_environment(f"fields:{kind}-v0")
    env.reset(seed=1)
    observation = env.step(0)[0]
    assert sorted(observation) == sorted(expected)
    wrapped = gym.wrappers.FlattenObservation(gym.make(f"{kind}-v0", disable_env_checker=True))
    wrapped.reset(seed=1)
    assert observation == pytest.approx(wrapped.step(0)[0])
    assert env.observation_space == wrapped.observation_space


def test_a_list_is_as_good_as_an_array(environments):
    env = make_environment("fields:ListedPair-v0")
    env.reset(seed=1)
    assert env.step(0)[0].tolist() == [0, 1, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Taxi-v3", "Blackjack-v1", "CliffWalking-v0"])
@pytest.mark.parametrize("package", [gym, gymnasium])
def test_toy_text_goes_through_the_door_as_through_the_packages_wrapper(env_id, package):
    if env_id not in package.envs.registry:
        env_id = f"{env_id[:-1]}{int(env_id[-1]) + 1}"
    env = make_environment(env_id)
    same = package.make(env_id, disable_env_checker=True)
    if env.package == package.__name__:
        same = package.wrappers.FlattenObservation(same)
        assert env.reset(seed=3)[0] == pytest.approx(same.reset(seed=3)[0])
        for action in [0, 1, 1, 0, 1]:
            ours, theirs = env.step(action), same.step(action)
            assert ours[0] == pytest.approx(theirs[0])
            assert ours[1:4] == theirs[1:4]
            if ours[2]:
                break


def test_actions_begin_at_the_environments_first():
    env = make_environment("fields:ActionsFromFive-v0")
    assert (env.n_actions, env.action_space.start) == (4, 0)
    env.reset(seed=1)
    assert env.step(0)[0].tolist() == [1, 0]
    assert env.step(3)[0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("env_id", "changes", "limit"),
    [
        ("MountainCar-v0", {}, 200),
        ("MountainCar-v0", {"max_episode_steps": 7}, 7),
        ("paths:Path-v0", {"max_episode_steps": 7}, 7),
        ("fields:Unlimited-v0", {}, None),
        ("fields:Unlimited-v0", {"max_episode_steps": 7}, 7),
    ],
)
def test_an_episode_is_truncated_at_the_time_limit(env_id, changes, limit):
    env = make_environment(env_id, changes)
    assert env.time_limit == limit
    for _ in range(2):
        env.reset(seed=1)
        ends = [env.step(0)[2:4] for _ in range(min(limit or 300, 300))]
        assert ends[:-1] == [(False, False)] * (len(ends) - 1)
        assert ends[-1] == (False, limit is not None)


def test_large_observations_are_no_fault():
    env = make_environment("fields:Field-v0")
    env.unwrapped.observe = lambda: np.array([3e38, -3e38])
    assert env.reset(seed=1)[0] == pytest.approx([3e38, -3e38])


@pytest.mark.filterwarnings("ignore:overflow")
def test_observations_beyond_float32_are_a_fault():
    env = make_environment("fields:Field-v0")
    env.unwrapped.observe = lambda: np.array([1e300, 0])
    with pytest.raises(EnvironmentFault, match="expected finite numbers"):
        env.reset(seed=1)


def test_a_crash_is_a_fault_with_its_cause():
    env = make_environment("fields:OneActionFails-v0")
    env.reset(seed=1)
    with pytest.raises(EnvironmentCrash) as error:
        env.step(3)
    assert isinstance(error.value, EnvironmentFault)
    assert repr(error.value.__cause__) == "KeyError(3)"


def test_scales_are_float32_whatever_the_space_is():
    for kind, bounds in [("Field", [3, 3]), ("Bytes", [255, 255]), ("Numbered", [1] * 16)]:
        _, scales, bounded = observation_centres_and_scales(make_environment(f"fields:{kind}-v0"))
        assert scales.dtype == np.float32 and bounded.all()
        assert scales.tolist() == bounds
    _, scales, bounded = observation_centres_and_scales(make_environment("CartPole-v1"))
    assert scales[1] == 1 and not bounded[1]


def test_acrobot_finds_the_name_that_numpy_2_has_dropped():
    env = make_environment("Acrobot-v1")
    check_environment(env)
    assert np.float_ is np.float64


# --set


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
        "goal_position, goal_velocity, gravity, max_episode_steps, max_position, max_speed, "
        "min_position\n"
    )


@pytest.mark.parametrize("limit", ["0", "2.5", "-3"])
def test_a_time_limit_is_a_whole_number_of_steps(refused, limit):
    error = refused("--set", f"max_episode_steps={limit}")
    assert f"--set max_episode_steps: expected a whole number from 1 on, not {limit}" in error


def test_set_refuses_a_mountain_that_cannot_be_drawn(here):
    with pytest.raises(UsageError, match="--set: MountainCar-v0 doesn't work with these values"):
        play(gif="x.gif", set={"max_position": -1.2})


def test_numbers_that_follow_from_changed_ones_are_recomputed():
    pole = make_environment("CartPole-v1", {"masspole": 0.5, "length": 2}).unwrapped
    assert (pole.total_mass, pole.polemass_length) == (1.5, 1.0)
    fast = make_environment("MountainCar-v0", {"max_speed": 0.1, "min_position": -2})
    assert fast.observation_space.low == pytest.approx([-2, -0.1])
    assert fast.reset(seed=1)[0] in fast.observation_space
    pole = make_environment("gymnasium:CartPole-v1", {"masspole": 0.5}).unwrapped
    assert pole.total_mass == 1.5


def test_set_reaches_the_constructors_arguments():
    env = make_environment("paths:Derived-v0", {"end": 9, "wide": 1})
    assert (env.unwrapped.length, env.unwrapped.places, env.observation_size) == (9, 10, 2)
    with pytest.raises(
        UsageError, match="--set: paths:Derived-v0 doesn't work with these values: "
    ):
        make_environment("paths:Derived-v0", {"end": 0})
    with pytest.raises(UsageError, match="--set places: it follows from length"):
        make_environment("paths:Derived-v0", {"places": 3})
    with pytest.raises(UsageError, match=r"no such number, only end, length, max_epi.*, wide$"):
        make_environment("paths:Derived-v0", {"start": 3})


def test_a_time_limit_of_the_environments_own_is_changed_too():
    env = make_environment("paths:Limited-v0", {"max_episode_steps": 25})
    env.reset(seed=1)
    assert [env.step(0)[3] for _ in range(25)] == [False] * 24 + [True]
    assert env.unwrapped.most == 25


def test_set_says_which_limit_an_episode_has_anyway(refused):
    error = refused("--env", "fields:Hurried-v0", "--set", "max_episode_steps=50", "--name", "x")
    assert error == (
        "run.py: error: --set max_episode_steps: fields:Hurried-v0 ends its episodes after 5 steps "
        "by a TimeLimit of its own; expected at most that, not 50\n"
    )


def test_set_takes_numbers_of_any_type_beside_others_that_may_not_change():
    env = make_environment("paths:Picky-v0", {"length": 3, "start": 0.25, "cells": 9})
    inner = env.unwrapped
    assert (inner.length, inner.start, inner.cells) == (3, 0.25, 9)


def test_see_takes_several_numbers_after_one_set(here, capsys):
    words = "--env paths:Path-v0 --seed 1 --images --set length=2 max_episode_steps=1"
    assert see.main(words.split()) == 0
    assert "Saved 2 frames in" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["FastGoal", "FastGoalGiven", "MadeInside"])
@pytest.mark.parametrize("changes", [{"gravity": 0.003}, {"gravity": 0.003, "max_speed": 0.1}])
def test_what_an_entry_point_gave_stays_where_other_numbers_change(kind, changes):
    env = make_environment(f"habits:{kind}-v0", changes)
    inner = env.unwrapped
    assert (inner.gravity, inner.goal_velocity) == (0.003, 0.06)
    assert env.observation_space.high[1] == np.float32(changes.get("max_speed", 0.07))
    assert not hasattr(type(inner), "gravity")


def test_set_goes_before_what_a_wrapper_sets_and_leaves_the_rest():
    inner = make_environment("habits:Weaker-v0", {"gravity": 0.003}).unwrapped
    assert (inner.gravity, inner.force) == (0.003, 0.0005)
    inner = make_environment("habits:Weaker-v0", {"max_speed": 0.1}).unwrapped
    assert (inner.gravity, inner.force, inner.max_speed) == (0.005, 0.0005, 0.1)


def test_arguments_of_an_entry_point_are_given_to_it():
    given = {"goal_velocity": 0.04, "slow": True, "gravity": 0.003}
    inner = make_environment("habits:FastGoalGiven-v0", given).unwrapped
    assert (inner.goal_velocity, inner.gravity) == (0.02, 0.003)


def test_an_environment_that_is_changed_can_be_changed_later_by_its_own_code():
    one, other = (make_environment("MountainCar-v0", set) for set in ({"force": 0.002}, {}))
    one.unwrapped.force = 0.004
    assert (one.unwrapped.force, other.unwrapped.force) == (0.004, 0.001)


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"size": 7}, (7, "small", None, False)),
        ({"size": 7, "name": "8x8"}, (7, "8x8", None, False)),
        ({"size": "large", "name": 8, "sticky": True}, ("large", "8", None, True)),
        ({"size": 7, "sticky": "true", "fast": 1}, (7, "small", True, True)),
        ({"size": True, "sticky": 0, "fast": "False"}, (True, "small", False, False)),
    ],
)
def test_set_gives_texts_truth_values_and_required_arguments(changes, given):
    assert make_environment("habits:Optional-v0", changes).unwrapped.given == given


def test_set_gives_arguments_that_a_class_hands_on():
    env = make_environment("habits:Inheriting-v0", {"name": "large", "colour": "blue"})
    assert (env.unwrapped.given[1], env.unwrapped.colour) == ("large", "blue")
    env = make_environment("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False})
    assert env.observation_size == 64


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "--env habits:Optional-v0: its constructor needs size: add --set size=VALUE"),
        ({"size": 7, "sticky": 2}, "--set sticky: expected True or False, not 2"),
        ({"size": 7, "lengths": 3}, "--set lengths: it is a tuple, which --set can't give"),
        ({"size": 7, "nme": "x"}, "no such number, only fast, max_episode_steps, name, size, st"),
        ({"size": 7, "max_episode_steps": "x"}, "expected a whole number from 1 on, not x"),
        ({"size": 7, "max_episode_steps": True}, "expected a whole number from 1 on, not True"),
    ],
)
def test_set_refuses_what_an_argument_can_not_be(changes, reason):
    with pytest.raises(UsageError, match=re.escape(reason)) as error:
        make_environment("habits:Optional-v0", changes)
    assert "\n" not in str(error.value)


def test_set_refuses_texts_for_numbers_and_numbers_that_a_reset_decides():
    with pytest.raises(UsageError, match="--set gravity: expected a number, not strong"):
        make_environment("MountainCar-v0", {"gravity": "strong"})
    with pytest.raises(UsageError, match="--set wind: the environment's reset makes it 3 again"):
        make_environment("habits:Drifting-v0", {"wind": 5})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("8x8", "8x8"), ("", ""), ("nan", "nan"), ("-inf", "-inf"), ("1e999", "1e999")),
        *(("True", True), ("False", False), ("true", "true")),
        *(("8", 8), ("-3", -3), ("2.0", 2), ("0.25", 0.25), ("1e-3", 0.001)),
        ("12345678901234567891", 12345678901234567891),
    ],
)
def test_a_value_is_a_number_a_truth_value_or_a_text(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_one_environment_exists_at_a_time():
    for changes in ({}, {"pace": 2}, {"weight": 3}, {"max_episode_steps": 5}):
        with contextlib.closing(make_environment("habits:Single-v0", changes)) as env:
            assert check_environment(env) == []
    for faulty in ({"weight": "x"}, {"nothing": 1}):
        with pytest.raises(UsageError):
            make_environment("habits:Single-v0", faulty)
    make_environment("habits:Single-v0").close()


# What is allowed but hardly meant


def warnings_of(kind):
    with contextlib.closing(make_environment(f"habits:{kind}-v0")) as env:
        lines = check_environment(env)
    assert all(line.startswith(f"--env habits:{kind}-v0: ") for line in lines)
    assert not any("\n" in line for line in lines)
    return [line.partition("-v0: ")[2] for line in lines]


@pytest.mark.parametrize(
    ("kind", "wrapper"),
    [
        ("Normalised", "NormalizeObservation"),
        ("NormalisedRewards", "NormalizeReward"),
        ("NormalisedOfGym", "NormalizeObservation"),
        ("NormalisedRewardsOfGym", "NormalizeReward"),
    ],
)
def test_a_running_normalisation_is_named_wherever_it_is(kind, wrapper):
    (line,) = warnings_of(kind)
    assert line.startswith(f"its {wrapper} normalises by what it has seen so far, in training and ")


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("Far", "its observation goes from 1700000000 to 1700000001 (number 0), the same as floa"),
        ("FarWhole", "its observation goes from 1700000000 to 1700000001 (number 0), the same as"),
        ("FarUnbounded", "its observation goes from 1700000000 to 1700000001 (number 0), the sam"),
        ("FarPart", "its observation['clock'] goes from 1700000000 to 1700000001 (number 0), the"),
        ("FarPair", "its observation[1] goes from 1700000000 to 1700000001 (number 0), the same "),
        ("NarrowBounds", "its observation has bounds, 1700000000 to 1700000010 (number 0), that "),
        ("Outside", "its observation is 7 for number 0, outside of its space's bounds, -1 to 1: "),
        ("OutsideLater", "its observation is 2 for number 0, outside of its space's bounds, -1 t"),
        ("OutsidePart", "its observation['place'] is 7 for number 0, outside of its space's boun"),
    ],
)
def test_numbers_that_mislead_are_named(kind, start):
    (line,) = warnings_of(kind)
    assert line.startswith(start)


@pytest.mark.parametrize("kind", ["Line", "NotSoFar", "Physical", "Rounded", "FixedStatistics"])
def test_nothing_is_said_of_numbers_that_do_not_mislead(kind):
    assert warnings_of(kind) == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_said_of_a_field(kind):
    assert check_environment(make_environment(f"fields:{kind}-v0")) == []


@pytest.mark.parametrize(
    "env_id",
    ["MountainCar-v0", "CartPole-v1", "Acrobot-v1", "gymnasium:CartPole-v1", "FrozenLake-v1"],
)
def test_nothing_is_said_of_the_packages_own(env_id):
    assert check_environment(make_environment(env_id)) == []


def test_a_slow_environment_is_checked_with_each_action_once(monkeypatch):
    env = make_environment("fields:Field-v0")
    actions = []

    def step(action):
        actions.append(action)
        time.sleep(0.02)
        return np.zeros(2, np.float32), 0.0, False, False, {}

    env._env_step = step
    check_environment(env)
    assert actions == [0, 1, 2, 3]


# Episodes, actions, NumPy


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("AutoReset", 3),
        ("AutoResetInside", 3),
        ("AutoResetOfGymnasium", 10),
        ("Resetting", 10),
    ],
)
def test_an_episodes_last_observation_is_its_own(kind, last):
    env = make_environment(f"habits:{kind}-v0")
    for _ in range(2):
        assert env.reset(seed=1)[0] == [0]
        ended, seen = False, []
        while not ended:
            observation, _, terminated, truncated, _ = env.step(1)
            ended = terminated or truncated
            seen.append(observation[0])
        assert seen == list(range(1, last + 1))


@pytest.mark.parametrize("env_id", ["habits:NeedsItem-v0", "habits:AutoReset-v0"])
def test_actions_are_numpys_whole_numbers_as_a_space_samples_them(env_id):
    env = make_environment(env_id)
    assert check_environment(env) == []
    env.reset(seed=1)
    actions = []
    env._env_step = actions.append
    with pytest.raises(EnvironmentFault):
        env.step(1)
    assert (actions, type(actions[0])) == ([1], np.int64)
    assert type(gymnasium.spaces.Discrete(2).sample()) is np.int64


@pytest.mark.parametrize("kind", ["StrictLater", "StrictPart"])
def test_numpy_made_strict_by_an_environment_breaks_nothing(kind):
    before = np.geterr()
    env = make_environment(f"habits:{kind}-v0")
    assert check_environment(env) == []
    env.reset(seed=1)
    assert np.geterr() == before
    assert env.step(1)[0] == [0]


def test_numpy_made_strict_by_a_module_breaks_nothing(here, monkeypatch):
    monkeypatch.syspath_prepend(here)
    code = "import habits, gymnasium, numpy\nnumpy.seterr(all='raise')\n"
    code += "gymnasium.register('Strict-v0', habits.Far)\n"
    (here / "strict_module.py").write_text(code)
    before = np.geterr()
    make_environment("strict_module:Strict-v0")
    assert np.geterr() == before


@pytest.mark.parametrize(
    ("env_id", "centre", "scale", "known"),
    [
        ("MountainCar-v0", [0, 0], [1.2, 0.07], [True, True]),
        ("CartPole-v1", [0] * 4, [4.8, 1, 0.41887903, 1], [True, False, True, False]),
        ("habits:NotSoFar-v0", [10_000_005], [5], [True]),
        ("habits:Far-v0", [1_700_000_000], [5], [True]),
        ("habits:FarUnbounded-v0", [0], [1], [False]),
        ("habits:Line-v0", [0], [10], [True]),
        ("fields:Numbered-v0", [0] * 16, [1] * 16, [True] * 16),
    ],
)
def test_centres_and_scales_are_those_of_the_bounds(env_id, centre, scale, known):
    env = make_environment(env_id)
    found = observation_centres_and_scales(env)
    assert [array.shape for array in found] == [(env.observation_size,)] * 3
    assert [array.dtype for array in found] == [np.float32, np.float32, bool]
    assert found[0] == pytest.approx(np.float32(centre))
    assert found[1] == pytest.approx(np.float32(scale))
    assert found[2].tolist() == known


def test_two_of_the_same_environment_have_the_same_sizes():
    one, other = (make_environment(f"fields:{kind}-v0") for kind in ("Field", "Longer"))
    check_same_size(one, other)
    with pytest.raises(EnvironmentFault, match=r"have 2 numbers when it is made, and 16 when it"):
        check_same_size(one, make_environment("fields:Board-v0"))


# Where environments come from


def test_a_packages_name_before_the_colon_decides(here):
    for package in ("gym", "gymnasium"):
        assert make_environment(f"{package}:CartPole-v1").package == package
    code = "import gymnasium\ngymnasium.register('MountainCar-v0', 'fields:Field')\n"
    (here / "overriding.py").write_text(code)
    assert make_environment("gym:MountainCar-v0").n_actions == 3


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ("gym:CliffWalking-v1", "gym doesn't know it: "),
        ("gymnasium:Nope-v1", "gymnasium doesn't know it: "),
        ("corridor", "neither gym nor gymnasium knows it; did you mean --env corridor:Hall-v0?\n"),
        ("Corridor.py", "neither gym nor gymnasium knows it; did you mean --env corridor:Hall-v0?"),
        ("other", "neither gym nor gymnasium knows it; did you mean --env corridor:Other-v3?\n"),
        ("Other-v3", "neither gym nor gymnasium knows it; did you mean --env corridor:Other-v3?\n"),
        ("run:Hall-v0", "this program has a module 'run' of its own; the one in "),
        ("replay_buffer:Hall-v0", "this program has a module 'replay_buffer' of its own; the on"),
    ],
)
def test_an_id_that_nobody_knows_is_told_what_may_be_meant(here, refused, env, reason):
    code = "import gym\ngym.register('Hall-v0', None)\ngym.register(id=\"Other-v3\")\n"
    for name in ("corridor", "run", "replay_buffer"):
        (here / f"{name}.py").write_text(code if name == "corridor" else "")
    error = refused("--env", env, "--name", "x")
    assert error.startswith(f"run.py: error: --env {env}: {reason}")
    assert "corridor" not in sys.modules


def test_without_gymnasium_its_name_before_the_colon_is_refused(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert refused("--env", "gymnasium:CartPole-v1") == (
        "run.py: error: --env gymnasium:CartPole-v1: gymnasium isn't installed: pip install "
        "gymnasium\n"
    )


def test_a_module_of_ones_own_may_import_others_that_have_names_of_ours(here):
    for name in ("loggers", "run", "replay_buffer", "see", "harness/errors", "tests/helpers"):
        path = here / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"MINE = {name!r}\n")
    (here / "harness/__init__.py").write_text("")
    code = "import loggers, run, replay_buffer, see\nfrom harness import errors\n"
    code += "from tests import helpers\nimport habits, gymnasium\n"
    code += "class Own(habits.Line):\n    def __init__(self, render_mode=None):\n"
    code += (
        "        from loggers import MINE\n        import see\n        assert MINE and see.MINE\n"
    )
    code += "        assert errors.MINE and helpers.MINE and run.MINE and replay_buffer.MINE\n"
    code += "gymnasium.register('Own-v0', Own, max_episode_steps=20)\n"
    (here / "own_module.py").write_text(code)
    result = run_command(
        *("run.py", *LEARN, "--env", "own_module:Own-v0", "--max-steps", "300"),
        env={**os.environ, "PYTHONPATH": str(ENVIRONMENTS)},
        cwd=here,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (here / "x-log/x-300.h5").exists()


@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.parametrize("group", ["gym.envs", "gymnasium.envs"])
def test_neither_a_removed_folder_nor_a_broken_plugin_is_in_the_way(here, removed, group):
    if removed and sys.version_info >= (3, 13):
        pytest.skip("on Python 3.13, NumPy itself can't be imported in a removed folder")
    for name, value in [("broken", "broken_plugin:register"), ("root", "json"), ("bad", "os:abc")]:
        folder = here / f"packages/{name}-1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    (here / "packages/broken_plugin.py").write_text("raise ImportError('no GPU')\n")
    code = "import os, sys\n"
    if removed:
        code += "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
    code += "from harness.environments import *\nfrom harness.errors import UsageError\n"
    code += "env = make_environment('MountainCar-v0')\ncheck_environment(env)\nenv.close()\n"
    code += "assert make_environment('habits:Line-v0').reset()[0] == [0]\n"
    code += "try:\n    make_environment('broken/Thing-v0')\n"
    code += "except UsageError as error:\n    print(error)\n"
    path = os.pathsep.join(map(str, [here / "packages", ENVIRONMENTS.parent.parent, ENVIRONMENTS]))
    result = run_command("-c", code, env={**os.environ, "PYTHONPATH": path}, cwd=here)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    if group == "gym.envs":
        assert "plug-in broken can't be imported: ImportError: no GPU" in result.stdout


def test_a_flat_observation_of_many_numbers_is_refused(refused):
    assert refused("--env", "habits:Wide-v0").startswith(
        "run.py: error: --env habits:Wide-v0: its observation has 10,001 numbers; at most 10,000 "
    )
