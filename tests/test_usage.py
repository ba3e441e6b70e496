"""What a user meets: help, mistakes, unusable files, no display."""

import os
import re
import shutil
import time

import gym
import h5py
import numpy as np
import pytest
from conftest import ROOT, load_weights, run_command, snapshot_of_2018

import run
import see
from harness.environments import make_environment
from harness.flags import flag
from harness.log_folder import create_log_folder
from harness.snapshots import save_snapshot

POLICY = str(ROOT / "assets" / "mountain.h5")


class Odd(gym.Env):
    """An environment of the kind that its spaces make it."""

    def __init__(self, observations, actions, render_mode=None):
        self.observation_space, self.action_space = observations, actions


gym.register(
    "Two-v0",
    entry_point=Odd,
    kwargs={
        "observations": gym.spaces.Box(-1, 1, (2,)),
        "actions": gym.spaces.MultiDiscrete([2, 2]),
    },
)


def bounds():
    for name, row in run.HYPERPARAMETERS.items():
        pair = "{0}" if row.type is not tuple else "32,{0}"
        whole = row.type is not float
        step = 1 if whole else max(abs(row.most), 1) * 1e-3
        yield name, pair.format(row.least - step if row.least else -1)
        yield name, pair.format(row.most + step)
        yield name, pair.format("nan")
        yield name, "many"
        yield name, ""


@pytest.mark.parametrize(("name", "value"), bounds())
def test_a_hyperparameter_out_of_its_bounds_is_refused(refused, name, value):
    error = refused(f"{flag(name)}={value}")
    assert flag(name) in error and "expected " in error


def test_the_bounds_themselves_are_accepted():
    for row in run.HYPERPARAMETERS.values():
        for bound in (row.least, row.most):
            text = f"{bound:.9f}" if row.type is float else str(bound)
            assert row.parse(text) is not None


@pytest.mark.parametrize("text", ["1000000", "1e6", "1_000_000"])
def test_whole_numbers_may_be_written_in_several_ways(text):
    value = run.HYPERPARAMETERS["max_steps"].parse(text)
    assert (value, type(value)) == (10**6, int)


def test_every_number_of_the_tutorial_is_a_default():
    defaults = {name: row.default for name, row in run.HYPERPARAMETERS.items()}
    assert defaults == {
        "gamma": 0.99, "learning_rate": 0.001, "clipnorm": 1.0, "hidden": (32, 32),
        "batch_size": 64, "buffer_size": 50000, "train_start": 2000, "target_update_every": 1000,
        "epsilon": 0.01, "max_steps": 200000, "log_every": 2000, "snapshot_every": 50000,
        "eval_every": 20000, "eval_steps": 10000, "eval_epsilon": 0.0, "q_validation_size": 10000,
        "n_step": 1, "initial_epsilon": 1.0, "epsilon_decay_steps": 0, "max_repeat": 1,
        "scale_inputs": 0.0, "ema_momentum": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("program", ["run.py", "see.py"])
def test_help_answers_without_tensorflow_and_names_every_flag(program):
    code = f"import sys, {program[:-3]} as p\ntry: p.main(['--help'])\nfinally: print(*sys.modules)"
    text, _, modules = run_command("-c", code, cwd=ROOT).stdout.rstrip().rpartition("\n")
    assert not {"tensorflow", "keras", "gym", "matplotlib", "ray"} & set(modules.split())
    if program == "run.py":
        for name, row in run.HYPERPARAMETERS.items():
            assert f"{flag(name)} " in text
            shown = ",".join(map(str, row.default)) if name == "hidden" else str(row.default)
            assert f"(default {shown})" in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--modle", "x.h5"], "unrecognized argument --modle: did you mean --model?"),
        (["--learning_rate", "1"], "unrecognized argument --learning_rate: did you mean "
         "--learning-rate?"),
        (["--lr=1"], "unrecognized argument --lr: did you mean --learning-rate?"),
        (["--hiden", "8"], "did you mean --hidden?"),
        (["--Seed", "8"], "did you mean --seed?"),
        (["--speed-of-light", "8"], "unrecognized argument --speed-of-light (see --help)"),
        (["-m", "x.h5"], "unrecognized argument -m"),
        (["assets/mountain.h5"], "did you mean --model assets/mountain.h5?"),
        (["x-log/"], "did you mean --model x-log/, or --resume x-log/?"),
        (["fast"], "unexpected 'fast': each value follows its flag"),
        (["--max-step", "5"], "unrecognized argument --max-step: did you mean --max-steps?"),
        (["--batch-size", "65", "--buffer-size", "64"], "--batch-size: expected no more than"),
        (["--train-start", "9", "--n-step", "10"], "--train-start: expected at least"),
        (["--initial-epsilon", "0.5"], "does nothing without --epsilon-decay-steps"),
        (["--until", "solved"], "expected a number from -1000000000 to 1000000000, not 'solved'"),
        (["--until", "nan"], "expected a number"),
        (["--until", "-110", "--eval-every", "0"], "--until needs evaluations"),
        (["--train"], "--train trains on from a snapshot: name it with --model X.h5"),
        (["--model", POLICY, "--until", "-110"], "--until does nothing when a policy is played"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "2147483648"], "--seed"),
        (["--threads", "-1"], "--threads"),
        (["--preset", "best"], "--preset"),
        (["--env", "MountainCra-v0"], "--env MountainCra-v0: neither gym nor gymnasium knows it"),
        (["--env", "MountainCar-v7"], "--env MountainCar-v7: neither gym nor gymnasium knows it"),
        (["--env", ""], "--env"),
        (["--env", "MountainCarContinuous-v0"], "its action space is Box"),
        (["--env", "Two-v0"], "its action space is MultiDiscrete"),
        (["--set", "gravity"], "expected NAME=NUMBER"),
        (["--set", "gravity="], "expected NAME=NUMBER"),
        (["--set", "=1"], "expected NAME=NUMBER"),
        (["--set", "gravity=nan"], "expected NAME=NUMBER"),
        (["--set", "gravity=1e999"], "expected NAME=NUMBER"),
        (["--env", "CartPole-v1", "--set", "total_mass=2"], "--set total_mass: it follows from "
         "masscart and masspole; set those instead"),
        (["--eval"], "--model"),
        (["--view"], "--model"),
        (["--gif", "a.gif"], "--model"),
        (["--episodes", "3"], "--model"),
        (["--model", POLICY, "--epsilon", "0.1"], "--epsilon does nothing when a policy is played"),
        (["--model", POLICY, "--eval", "--train"], "--eval does nothing when a "
         "snapshot's policy is trained further"),
        (["--model", POLICY, "--train", "--scale-inputs", "1"], "--scale-inputs does nothing"),
        (["--model", POLICY, "--view", "--eval"], "--view opens a window, --eval doesn't"),
        (["--model", "x.h5"], "can't use x.h5: no such file"),
        (["--model", "."], "--model: . isn't a log folder: there is no snapshot in it"),
        (["--resume", "x-log"], "--resume 'x-log': no such folder; there is no run here"),
        (["--max-steps", "1.5e0"], "expected a whole number"),
        (["--set", "force=1", "--set", "force=2"], "a number is changed twice"),
        (["--name", "a\tb"], "expected a plain name without a path"),
        (["--resume", ""], "--resume '': no such folder; there is no run here"),
        (["--model", ""], "--model '': no such folder; there is no run here"),
        (["--max-steps", "0"], "expected a whole number from 1 to 1000000000, not '0'"),
        (["--resume", "x-log", "--model", "x.h5"], "--model does nothing when a run is resumed"),
        (["--test", "--seed", "1"], "--seed does nothing with --test"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_gets_one_line(refused, words, says):
    assert says in refused(*words)


@pytest.mark.parametrize("name", ["a/b", "/tmp/a", "..", ".", "", " ", "a\\b", "c:d"])
def test_a_name_with_a_path_is_refused(refused, name):
    assert "expected a plain name without a path" in refused(f"--name={name}")


def test_a_name_whose_folder_exists_is_refused(refused, tmp_path):
    (tmp_path / "a-log").mkdir()
    assert "a-log exists already" in refused("--name", "a")


def test_a_log_folder_that_cannot_be_made_is_refused(refused):
    assert "can't make the folder" in refused("--name", "a" * 300)


@pytest.mark.parametrize(
    "words", ["--episodes 0", "--seed x", "--speed 2", "--env MountainCra-v0", "--gif car.mp4"]
)
def test_see_refuses_mistakes_too(refused, words):
    refused(*words.split(), main=see.main)


@pytest.fixture(scope="module")
def snapshot(tensorflow, tmp_path_factory):
    """A snapshot of an untrained network, written without training."""
    path = tmp_path_factory.mktemp("snapshot") / "new.h5"
    save_snapshot(path, run.create_model(make_environment("MountainCar-v0")))
    return path


def test_without_a_display_a_line_names_the_ways_to_do_without(snapshot):
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    no_display = {name: value for name, value in os.environ.items() if name not in hidden}
    for words in (["run.py", "--model", snapshot, "--view"], ["see.py"]):
        result = run_command(*words, env=no_display)
        assert result.returncode == 2
        assert result.stderr == (
            f"{words[0]}: error: there is no display to open a window on; "
            "try --gif FILE, --images, or, for a trained policy, --eval\n"
        )


def test_the_three_generations_of_snapshots_load_and_ours_opens_in_keras_too(tensorflow, tmp_path):
    env = make_environment("MountainCar-v0")
    model = run.create_model(env, hidden=(24, 48))
    weights = model.get_weights()
    save_snapshot(tmp_path / "ours.h5", model)
    model.save(tmp_path / "keras3.h5")
    (tmp_path / "2018.h5").write_bytes(snapshot_of_2018(weights))
    loaded = [load_weights(tmp_path / f"{name}.h5", env) for name in ("ours", "keras3", "2018")]
    loaded.append(run.keras.models.load_model(tmp_path / "ours.h5").get_weights())
    for theirs in loaded:
        assert all(map(np.array_equal, theirs, weights))


def test_files_that_are_no_snapshots_are_refused(refused, tmp_path):
    (tmp_path / "empty.h5").touch()
    (tmp_path / "text.h5").write_text("these are not the weights you are looking for")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["temperatures"] = np.arange(5.0)
    broken_chain = [np.zeros(shape) for shape in ((2, 4), (4,), (5, 3), (3,))]
    (tmp_path / "chain.h5").write_bytes(snapshot_of_2018(broken_chain))
    says = {
        "empty.h5": "the file is empty",
        "text.h5": "it isn't an HDF5 file",
        "other.h5": "it isn't a Keras model's snapshot",
        "chain.h5": "expected the weights of a chain of Dense layers",
    }
    for name, reason in says.items():
        assert f"can't use {name}: {reason}" in refused("--model", name, "--eval")


def test_a_snapshot_that_may_not_be_read_is_refused(refused, tmp_path, snapshot):
    shutil.copy(snapshot, tmp_path / "secret.h5")
    (tmp_path / "secret.h5").chmod(0)
    if os.access(tmp_path / "secret.h5", os.R_OK):
        pytest.skip("root may read everything")
    assert "permission denied" in refused("--model", "secret.h5", "--eval")


def test_a_snapshot_of_another_environment_is_refused(refused, snapshot):
    error = refused("--model", snapshot, "--eval", "--env", "CartPole-v1")
    assert "observations have 2 numbers and its actions are 3, but CartPole-v1 has 4 and 2" in error
    error = refused("--model", snapshot, "--train", "--hidden", "16,16")
    assert "--hidden" in error


def test_a_dated_name_gets_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "06-07-18-39")
    names = [create_log_folder().name for _ in range(3)]
    assert names == ["06-07-18-39-log", "06-07-18-39-2-log", "06-07-18-39-3-log"]


def test_the_benchmark_says_how_long_a_policy_took_that_fresh_episodes_confirm(tmp_path):
    words = ["--preset", "tuned", "--until", "-200", "--turns", "1"]  # which every policy reaches
    result = run_command("bench.py", *words, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    turn, total = result.stdout.splitlines()[:2]
    assert re.fullmatch(r"seed 1 +this program +\d+\.\d s", turn)
    assert re.fullmatch(r"this program +1 of 1 solved, in (\d+\.\d) to \1 s", total)
    assert not list(tmp_path.iterdir())
