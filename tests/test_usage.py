"""What a user meets: help, mistakes, unusable files, no display."""

import json
import os
import re
import shlex
import shutil
import sys
import time

import gym
import h5py
import numpy as np
import pytest
from conftest import ROOT, load_weights, run_command, snapshot_of_2018, weights_in
from forked import train_forked

import bench
import run
import see
from harness.environments import make_environment
from harness.log_folder import CONFIG_FILE, create_log_folder
from harness.settings import Actions, PlaySettings, as_text, flag_name, flags_of
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


FLAGS = flags_of(Actions, PlaySettings, run.Settings, presets=run.PRESETS)
NUMBERS = {name: flag for name, flag in FLAGS.items() if flag.kind in (int, float, tuple)}


def out_of_bounds(flag):
    """Words that a flag of numbers must refuse."""
    pair = "{0}" if flag.kind is not tuple else "32,{0}"
    step = 1 if flag.kind is not float else max(abs(flag.most), 1) * 1e-3
    least = flag.least - step if flag.least else -1
    return [*map(pair.format, (least, flag.most + step, "nan")), "many", ""]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_its_bounds_is_refused(refused, name):
    for value in out_of_bounds(FLAGS[name]):
        error = refused(f"{flag_name(name)}={value}")
        assert flag_name(name) in error and "expected " in error


def test_the_bounds_themselves_are_accepted():
    for flag in NUMBERS.values():
        for bound in (flag.least, flag.most):
            text = f"{bound:.9f}" if flag.kind is float else str(bound)
            assert flag.parse(text) is not None


@pytest.mark.parametrize("text", ["1000000", "1e6", "1_000_000"])
def test_whole_numbers_may_be_written_in_several_ways(text):
    value = FLAGS["max_steps"].parse(text)
    assert (value, type(value)) == (10**6, int)


def test_every_number_of_the_tutorial_is_a_default():
    defaults = {name: flag.default for name, flag in FLAGS.items() if "hparams" in flag.places}
    for name in "env", "set", "preset":
        del defaults[name]
    assert defaults == {
        "gamma": 0.99, "learning_rate": 0.001, "clipnorm": 1.0, "hidden": (32, 32),
        "batch_size": 64, "buffer_size": 50000, "train_start": 2000, "target_update_every": 1000,
        "epsilon": 0.01, "max_steps": 200000, "log_every": 2000, "snapshot_every": 50000,
        "eval_every": 20000, "eval_steps": 10000, "eval_epsilon": 0.0, "q_validation_size": 10000,
        "n_step": 1, "initial_epsilon": 1.0, "epsilon_decay_steps": 0, "max_repeat": 1,
        "scale_inputs": 0.0, "ema_momentum": 0.0, "double_q": 0, "one_step": 0,
        "initial_gamma": 0.998, "gamma_decay_steps": 0,
    }  # fmt: skip


def help_of(program):
    """What `--help` prints, and the modules that it needed."""
    code = f"import sys, {program} as p; print(p.main(['--help'])); print(*sys.modules)"
    text, status, modules = run_command("-c", code, cwd=ROOT).stdout.rstrip().rsplit("\n", 2)
    assert status == "0"
    return text, set(modules.split())


def test_help_answers_without_tensorflow_and_names_every_flag():
    text, modules = help_of("run")
    assert not {"tensorflow", "keras", "gym", "matplotlib", "ray"} & modules
    text = " ".join(text.split())
    assert list(FLAGS)[-len(run.Settings.__annotations__) :] == list(run.Settings.__annotations__)
    for name, flag in FLAGS.items():
        assert f"{flag_name(name)} " in text
        if name in NUMBERS and flag.default is not None:
            assert f"(default {as_text(flag.default)})" in text


def test_the_help_of_see_has_no_word_about_training():
    text, modules = help_of("see")
    assert not {"tensorflow", "keras", "gym", "matplotlib"} & modules
    assert "--gif" in text
    assert not re.search(r"train|--model|snapshot|policy|run\.py", text)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--modle", "x.h5"], "unrecognized argument --modle: did you mean --model?"),
        (["--learning_rate", "1"], "unrecognized argument --learning_rate: did you mean "
         "--learning-rate?"),
        (["--render"], "unrecognized argument --render: did you mean --view?"),
        (["--steps", "9"], "unrecognized argument --steps: did you mean --max-steps?"),
        (["--output=x"], "unrecognized argument --output: did you mean --name?"),
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
        (["--initial-epsilon", "0.5"], "does nothing while --epsilon-decay-steps is 0"),
        (["--initial-gamma", "0.5"], "does nothing while --gamma-decay-steps is 0"),
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
        (["--set", "gravity"], "expected NAME=VALUE"),
        (["--set", "gravity="], "expected NAME=VALUE"),
        (["--set", "=1"], "expected NAME=VALUE"),
        (["--set", "gravity=nan"], "expected a number, not nan"),
        (["--set", "gravity=1e999"], "expected a number, not 1e999"),
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
        "chain.h5": "layer 'dense_2' has weights of shape (5, 3) and (3,); expected (4, 3)",
    }
    for name, reason in says.items():
        assert f"can't use {name}: {reason}" in refused("--model", name, "--eval")


def test_a_snapshot_that_may_not_be_read_is_refused(refused, tmp_path, snapshot):
    shutil.copy(snapshot, tmp_path / "secret.h5")
    (tmp_path / "secret.h5").chmod(0)
    if os.access(tmp_path / "secret.h5", os.R_OK):
        pytest.skip("root may read everything")
    assert "permission denied" in refused("--model", "secret.h5", "--eval")


def test_a_snapshot_of_another_environment_is_refused(refused, snapshot, capsys):
    assert run.main(["--model", str(snapshot), "--eval", "--env", "CartPole-v1"]) == 2
    error = capsys.readouterr().err
    assert "observations have 2 numbers and its actions are 3, but CartPole-v1 has 4 and 2" in error
    error = refused("--model", snapshot, "--train", "--hidden", "16,16")
    assert "--hidden" in error


def test_a_dated_name_gets_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "06-07-18-39")
    names = [create_log_folder().name for _ in range(3)]
    assert names == ["06-07-18-39-log", "06-07-18-39-2-log", "06-07-18-39-3-log"]


def test_the_benchmark_prints_what_the_parts_of_a_step_take(tensorflow, here, capsys, monkeypatch):
    monkeypatch.setattr(bench, "STEPS", 900)
    monkeypatch.setattr(bench, "WARM_STEPS", 600)
    assert bench.main(["--turns", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    parts = [line[:30].rstrip() for line in lines if line.endswith(" µs")]
    assert {"act", "environment step", "fit and predict", "whole step"} <= set(parts)
    assert not list(here.iterdir())


# What a run is told by


FEW = ["--env=Corridor-v0", "--max-steps=60", "--train-start=20", "--eval-every=0", "--hidden=8"]
OTHERS_WORDS = ["/usr/lib/ipykernel_launcher.py", "-f", "kernel.json"]


def command_in(folder):
    program, file, *words = shlex.split(json.loads((folder / CONFIG_FILE).read_text())["command"])
    assert (program, file) == ("python", "run.py")
    return words


def assert_repeats(words, folder):
    """The words start a run that ends with the weights of the one in the folder."""
    (here,) = {folder.parent}
    assert run.main([*words, "--name", "again"]) == 0
    (ours,), (theirs,) = (here / "again-log").glob("*-60.h5"), folder.glob("*-60.h5")
    assert all(map(np.array_equal, weights_in(ours), weights_in(theirs)))


def test_a_runs_command_repeats_it_whatever_program_called_main(tensorflow, here, monkeypatch):
    monkeypatch.setattr(sys, "argv", OTHERS_WORDS)
    words = [*FEW, "--set", "max_episode_steps=9", "--name", "a b"]
    assert run.main(words) == 0
    kept = command_in(here / "a b-log")
    assert kept[:-1] == [*words, "--seed"]  # which was drawn
    assert_repeats(kept, here / "a b-log")


def test_a_runs_command_is_that_of_the_command_line(tensorflow, here, monkeypatch):
    words = [*FEW, "--seed=3", "--name=x"]
    monkeypatch.setattr(sys, "argv", ["../run.py", *words])
    assert run.main() == 0
    assert command_in(here / "x-log") == words


def test_a_script_that_trains_without_main_leaves_a_command_too(train, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c"])
    few = {"max_steps": 60, "train_start": 20, "eval_every": 0, "hidden": (8, 4)}
    folder, _ = train(env="Corridor-v0", set={"max_episode_steps": 9}, seed=5, **few)
    words = command_in(folder)
    assert words[words.index("--hidden") :][:2] == ["--hidden", "8,4"]
    assert_repeats(words, folder)


# Surroundings that something is wrong with


@pytest.mark.parametrize("words", [["--max-steps", "9000"], ["--resume", "x"], ["--model", "x"]])
def test_where_the_current_folder_was_removed_a_line_says_so(refused, here, words, monkeypatch):
    (here / "gone").mkdir()
    monkeypatch.chdir(here / "gone")
    (here / "gone").rmdir()
    assert "no such f" in refused(*words)


def test_a_module_that_switched_eager_execution_off_is_refused_in_one_line(here):
    off = "import tensorflow as tf\ntf.compat.v1.disable_eager_execution()\n"
    (here / "static.py").write_text(off)
    training = train_forked(here, "--env static:CartPole-v1 --name x")
    assert training.exitcode == 2
    assert training.output.startswith("run.py: error: a module in this process has switched Tens")
    assert training.output.count("\n") == 1
    assert not (here / "x-log").exists()
