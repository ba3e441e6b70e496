"""Whole trainings, in this process and by the command line."""

import json
import re
import shlex
import shutil
import time

import keras
import numpy as np
import pytest
from conftest import GOING_ON, SCALARS, relu_network, run_command, weights_in
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import run
from harness import backend, training_run
from harness.environments import make_environment
from harness.log_folder import STATE_FILE
from harness.network import FlatModel
from harness.settings import flag_name, flags_of, kept, training_settings
from harness.snapshots import load_snapshot, save_snapshot
from harness.state import load_state
from harness.summary import summarise

SMALL = {
    "max_steps": 1200,
    "train_start": 300,
    "target_update_every": 200,
    "log_every": 200,
    "snapshot_every": 600,
    "eval_every": 400,
    "eval_steps": 450,
    "q_validation_size": 300,
    "batch_size": 16,
}
UNTRAINED = {**SMALL, "train_start": 10**6}  # nothing is compiled for it
FLAGS = [word for name, value in SMALL.items() for word in (flag_name(name), str(value))]
TIMING = {"episode_seconds", "steps_per_second", "memory_used"}


def events(folder):
    """The scalars of the folder's one events file: {tag: [(step, value), …]}."""
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2  # one is HPARAMS_FILE
    accumulator = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def final_weights(folder, step=SMALL["max_steps"]):
    name = folder.name.removesuffix("-log")
    return np.concatenate([w.ravel() for w in weights_in(folder / f"{name}-{step}.h5")])


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """`python run.py` with small numbers: the finished process, and its folder."""
    folder = tmp_path_factory.mktemp("small")
    return run_command("run.py", *FLAGS, "--seed", 7, "--name", "small", cwd=folder), folder


def test_n_step_1_is_the_tutorials_algorithm_to_the_bit(train):
    """Against a loop that was written without it: plain lists, one reward, Keras' Adam."""
    folder, _ = train(seed=7, name="ours", n_step=1, **{**SMALL, "epsilon": 0.1})

    backend.start_tensorflow(threads=1, seed=7)
    env = make_environment("MountainCar-v0")
    keras_model = run.create_model(env)
    keras_model.compile(
        keras.optimizers.Adam(0.001, global_clipnorm=1.0), loss="mean_squared_error"
    )
    model = FlatModel(keras_model, keras_model.optimizer)
    target_model = FlatModel(keras_model)
    fit_and_predict = run.compile_fit_and_predict(model, target_model, 16)
    rng = np.random.default_rng([7, run.EXPLORATION])
    replay_rng = np.random.default_rng([7, run.REPLAY])
    transitions = []
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    q_values = relu_network(model.get_weights())(observation)
    for step in range(1, SMALL["max_steps"] + 1):
        explore = rng.random() < 0.1
        action = int(rng.integers(3)) if explore else int(q_values.argmax())
        next_observation, reward, terminated, truncated, _ = env.step(action)
        discount = 0.0 if terminated else 0.99
        transitions.append([*observation, action, reward, *next_observation, discount])
        observation = next_observation
        if terminated or truncated:
            observation, _ = env.reset(seed=int(rng.integers(2**31)))
        if step < SMALL["train_start"]:
            q_values = relu_network(model.get_weights())(observation)
            continue
        if step % SMALL["target_update_every"] == 0:
            target_model.set_weights(model.get_weights())
        drawn = (replay_rng.random(16) * len(transitions)).astype(int)
        batch = np.array([transitions[row] for row in drawn], np.float32)
        q_values = fit_and_predict(batch, observation)[1:]
    weights = np.concatenate([weight.ravel() for weight in model.get_weights()])
    assert (weights == final_weights(folder)).all()


def test_averaged_weights_are_played_and_saved_and_leave_the_training_as_it_is(
    train, small_run, monkeypatch
):
    played, evaluate = [], run.evaluate
    probes = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)

    def recorded(env, q_function, *others):
        played.append(q_function(probes))
        return evaluate(env, q_function, *others)

    monkeypatch.setattr(run, "evaluate", recorded)
    folder, ended = train(seed=7, name="averaged", ema_momentum=0.99, **SMALL)
    model = ended.parts["model"]
    assert (model.theta.numpy() == final_weights(small_run[1] / "small-log")).all()
    assert (final_weights(folder) == model.average.numpy()).all()
    assert (final_weights(folder) != model.theta.numpy()).any()
    averaged = relu_network(model.averaged_weights())
    assert (played[-1] == averaged(probes)).all()
    states = ended.progress.q_validation_observations
    expected = averaged(states).max(axis=1).mean()
    assert ended.progress.evaluations[-1][6] == pytest.approx(expected)


def test_a_truncated_episode_ends_the_episode_but_bootstraps(train):
    _, ended = train(seed=1, name="cut", **{**UNTRAINED, "max_steps": 400})
    buffer = ended.parts["replay_buffer"]
    assert (buffer.discounts[:400] == np.float32(0.99)).all()  # no seed reaches the flag so soon
    follows = (buffer.observations[1:400] == buffer.next_observations[:399]).all(axis=1)
    # A new episode after step 200, no other seam.
    assert np.flatnonzero(~follows).tolist() == [199]


def test_training_stops_at_a_loss_that_is_not_finite(train, tmp_path):
    diverging = {"learning_rate": 10.0, "clipnorm": 1e9, "target_update_every": 1, "gamma": 1.0}
    diverging |= {"hidden": (32,) * 4, "snapshot_every": 100}
    with pytest.raises(run.TrainingError, match=r"at step \d+ .*--learning-rate"):
        train(seed=1, name="bad", **{**SMALL, **diverging})
    snapshots = list((tmp_path / "bad-log").glob("bad-*.h5"))
    assert snapshots
    for path in snapshots:
        assert all(np.isfinite(w).all() for w in weights_in(path))


def test_n_step_returns_train_with_the_smallest_numbers(train):
    tiny = {"n_step": 10, "train_start": 10, "eval_every": 10, "q_validation_size": 1}
    folder, _ = train(seed=1, name="tiny", **{**SMALL, **tiny, "max_steps": 30})
    assert np.isfinite(final_weights(folder, 30)).all()


def returns_alone(env, q_function, seed, count):
    """The returns of the first episodes that `seed` begins, each played alone."""
    rng, returns = np.random.default_rng(seed), []
    for _ in range(count):
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        episode_return, ended = 0.0, False
        while not ended:
            action = int(q_function(observation).argmax())
            observation, reward, terminated, truncated, _ = env.step(action)
            episode_return, ended = episode_return + reward, terminated or truncated
        returns.append(episode_return)
    return returns


# Reaches the flag in 84 to 180 steps, from wherever the episode starts.
ALONG_THE_VELOCITY = relu_network([np.float32([[0, 0, 0], [-1, 0, 1]]), np.float32([0, 0, 1e-9])])


@pytest.mark.parametrize("steps", [1, 150, 200, 201, 10_000])
def test_an_evaluation_is_as_good_as_its_episodes_played_alone(steps):
    env = make_environment("MountainCar-v0")
    returns = run.evaluate(env, ALONG_THE_VELOCITY, [1, 2], steps)
    assert returns == returns_alone(env, ALONG_THE_VELOCITY, [1, 2], len(returns))
    assert -sum(returns) >= steps > -sum(returns[:-1])  # it ends with the episode that is running
    assert set(returns) != {-200.0}


def test_an_evaluation_plays_as_many_episodes_as_it_is_told():
    env = make_environment("MountainCar-v0")
    assert len(run.evaluate(env, ALONG_THE_VELOCITY, 1, episodes=7)) == 7
    assert len(run.evaluate(env, ALONG_THE_VELOCITY, 1, steps=250, episodes=1)) > 1


def test_an_episode_that_nothing_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(run, "PATIENCE", 300)
    env = make_environment("Endless-v0")
    assert run.evaluate(env, lambda observation: np.zeros(2), 1, steps=100) == []


def test_an_evaluation_in_training_plays_ten_episodes_or_more(train):
    _, ended = train(seed=1, name="few", **{**UNTRAINED, "eval_steps": 50, "max_steps": 400})
    assert [row[2] for row in ended.progress.evaluations] == [10]


def test_that_nothing_will_be_learned_is_said_before_the_run(here, capsys):
    assert run.main(["--max-steps", "300", "--name", "idle"]) == 0
    lines = capsys.readouterr().out.splitlines()
    warning = "warning: nothing is learned before step 2000 (--train-start)"
    assert lines[0] == f"{warning}, and the run ends at step 300"
    assert not any(line.startswith("Every episode") for line in lines)


def test_an_environment_whose_episodes_do_not_end_shows_where_the_run_is(
    train, monkeypatch, capsys
):
    monkeypatch.setattr(run, "PATIENCE", 300)
    monkeypatch.setattr(training_run, "SILENT_STEPS", 200)
    train(env="Endless-v0", seed=1, name="endless", **{**SMALL, "max_steps": 400})
    lines = [line for line in capsys.readouterr().out.splitlines() if " so far" in line]
    assert len(lines) == 2
    pattern = r"episode 1 steps 400/400 loss \d\.\d{7} return -?\d+\.\d so far, \d+\.\d steps/s"
    assert re.fullmatch(pattern, lines[1])


def test_where_episodes_end_no_line_says_where_the_run_is(train, capsys):
    train(seed=1, name="busy", **{**UNTRAINED, "log_every": 1, "max_steps": 600})
    assert " so far" not in capsys.readouterr().out


def test_no_snapshots_on_the_way_means_the_last_one_alone(train):
    folder, _ = train(seed=1, name="few", **{**UNTRAINED, "snapshot_every": 0, "eval_every": 0})
    assert [path.name for path in folder.glob("*.h5")] == ["few-1200.h5"]


def test_the_state_is_saved_by_the_clock_too(train, here, monkeypatch):
    """What a kill between two snapshots leaves goes on to the same end."""
    monkeypatch.setattr(training_run, "SAVE_SECONDS", 0)
    monkeypatch.setattr(training_run, "SAVE_SHARE", 1)

    def killed_at_800(step, average):
        if step == 800:
            shutil.copytree("whole-log", "killed-log")

    given = {"seed": 3, "name": "whole", **SMALL, "snapshot_every": 0}
    settings = training_settings(run.Settings, given, run.PRESETS)
    folder = run.train(settings, GOING_ON, on_evaluation=killed_at_800).folder
    # The state of an episode's end; the one at step 800 is evaluated first.
    assert load_state(here / "killed-log" / STATE_FILE).progress.step == 600
    assert run.main(["--resume", "killed-log"]) == 0
    assert (final_weights(here / "killed-log") == final_weights(folder)).all()


def test_saving_by_the_clock_takes_a_small_share_of_the_time(train, monkeypatch):
    monkeypatch.setattr(training_run, "SAVE_SECONDS", 0)
    saved = []

    def slowly(*_):
        saved.append(1)
        time.sleep(0.02)

    monkeypatch.setattr(training_run, "save_state", slowly)
    _, ended = train(seed=3, name="slow", **{**UNTRAINED, "snapshot_every": 0, "eval_every": 0})
    assert 1 <= len(saved) <= 2 + ended.progress.seconds * training_run.SAVE_SHARE / 0.02


# Accelerates in the direction in which the car moves: a mean of about -120.
DECENT = [
    np.float32([[0, 0], [100, -100]]),
    np.float32([0, 0]),
    np.float32([[-1, 0, 1], [1, 0, -1]]),
    np.float32([0, 0, 1e-9]),
]


@pytest.fixture
def decent(tensorflow, here):
    """The flags that train a decent policy further, without learning anything."""
    model = run.create_model(make_environment("MountainCar-v0"), hidden=(2,))
    model.set_weights(DECENT)
    save_snapshot(here / "decent.h5", model)
    words = "--model decent.h5 --train --seed 1 --max-steps 400 --eval-every 10 --eval-steps 1"
    return f"{words} --train-start 500 --name goal".split()


def test_what_few_episodes_reach_by_chance_ends_no_run(decent, here, capsys):
    assert run.main([*decent, "--until", "-117"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"^100 fresh episodes return -1[12]\d\.\d{3}: --until not reached$", shown, re.M
    )
    assert "--until reached" not in shown
    result = json.loads((here / "goal-log/result.json").read_text())
    assert (result["step"], result["until_reached"]) == (400, False)


def test_what_fresh_episodes_confirm_ends_the_run(decent, here, capsys):
    assert run.main([*decent, "--until", "-130"]) == 0
    assert re.search(
        r"^100 fresh episodes return -1[12]\d.*: --until reached$", capsys.readouterr().out, re.M
    )
    result = json.loads((here / "goal-log/result.json").read_text())
    assert result["step"] < 100 and result["until_reached"]


def test_a_goal_of_the_wrong_sign_is_asked_about(decent, capsys):
    assert run.main([*decent, "--until", "115"]) == 0
    warning = "warning: --until 115 is out of reach: MountainCar-v0 is solved at -110; did you mean"
    assert f"{warning} --until -110?\n" in capsys.readouterr().out
    lines = []
    given = {"env": "CartPole-v1", "until": -110.0}
    training_settings(run.Settings, given, run.PRESETS, None, lines.append)
    warning = "--until -110 is too easily reached: CartPole-v1 is solved at 475; did you mean"
    assert lines == [f"{warning} --until 475?"]


def test_gamma_alone_is_the_discount_factor_of_the_whole_run():
    def chosen(**given):
        settings = training_settings(run.Settings, {"preset": "tuned", **given}, run.PRESETS)
        return settings.gamma_decay_steps, settings.largest_gamma

    assert chosen() == (100000, 0.998)
    assert chosen(gamma=0.9) == (0, 0.9)
    assert chosen(gamma=0.9, gamma_decay_steps=500) == (500, 0.998)
    assert chosen(gamma=0.9, initial_gamma=0.95) == (100000, 0.95)


def test_the_policy_that_training_starts_from_is_evaluated_too(decent, here, capsys):
    learning = ["--train-start", "10", "--learning-rate", "1", "--eval-steps", "2000"]
    assert run.main([*decent, *learning, "--eval-every", "200", "--initial-epsilon=1",
                     "--epsilon-decay-steps=100", "--gamma-decay-steps=50"]) == 0  # fmt: skip
    rows = (here / "goal-log/evaluations.csv").read_text().splitlines()
    assert rows[1].startswith("0,0,") and rows[-1].startswith("400,")
    assert load_state(here / "goal-log" / STATE_FILE).progress.best_step == 0
    best = weights_in(here / "goal-log/goal-best.h5")
    assert all(map(np.array_equal, best, DECENT))
    shown = capsys.readouterr().out
    assert "Best episode_return_avg -1" in shown and "at step 0\n" in shown
    assert "epsilon starts at 1 and reaches 0.01 after 100 steps" in shown
    assert "gamma starts at 0.998 and reaches 0.99 after 50 steps" in shown


def test_hparams_show_the_steps_that_a_resumed_run_has(train, here):
    folder, _ = train(seed=1, name="more", **{**UNTRAINED, "max_steps": 250})
    assert run.main(["--resume", "more", "--max-steps", "300"]) == 0
    metadata = EventAccumulator(str(folder)).Reload().SummaryMetadata(SESSION_START_INFO_TAG)
    start = HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info
    assert start.hparams["max_steps"].number_value == 300
    assert start.hparams["batch_size"].number_value == 16


CORRIDOR = {
    "env": "Corridor-v0", "seed": 4, "max_steps": 2000, "train_start": 500, "gamma": 0.9,
    "target_update_every": 100, "epsilon": 0.2, "eval_every": 250, "eval_steps": 500,
}  # fmt: skip


def test_a_run_ends_as_finished_at_the_first_evaluation_that_reaches_until(train, here, capsys):
    folder, ended = train(name="until", until=0.8, **CORRIDOR)
    averages = [average for _, _, _, average, *_ in ended.progress.evaluations]
    assert averages[-1] >= 0.8 > max(averages[:-1])
    assert ended.finished and ended.saved_step == 250 * len(averages) < 2000
    assert (folder / f"until-{ended.saved_step}.h5").exists()
    # The state is that of the running episode's end.
    state = load_state(folder / STATE_FILE).progress
    assert 0 <= state.step - ended.saved_step < 20
    summarise(ended)
    assert "run.py --model until-log/until-best.h5 --eval\n" in capsys.readouterr().out

    # A resumed run ends there, too.
    train(name="part", until=0.8, **{**CORRIDOR, "max_steps": 600})
    assert run.main(["--resume", "part-log", "--max-steps", "2000"]) == 0
    resumed = load_state(here / "part-log" / STATE_FILE).progress
    assert resumed.step == state.step
    assert run.main(["--resume", "part-log", "--max-steps", "2500"]) == 2
    assert "; raise --until to continue it\n" in capsys.readouterr().err
    assert run.main(["--resume", "part-log", "--max-steps", "1300", "--until", "2"]) == 0
    assert 1300 <= load_state(here / "part-log" / STATE_FILE).progress.step < 1320


def test_a_goal_that_is_low_but_reached_is_no_failure(train, capsys):
    _, reached = train(seed=1, name="low", until=-300.0, **{**UNTRAINED, "max_steps": 400})
    summarise(reached)
    assert "run.py --model low-log/low-best.h5" in capsys.readouterr().out


def test_a_policy_is_played_whatever_settings_its_run_had(here, capsys, tensorflow):
    keras_model = run.create_model(make_environment("MountainCar-v0"))
    origin = {"env": "MountainCar-v0", "set": {}, "seed": 1, "step": 5, "reward_scale": 2.0}
    save_snapshot(here / "own.h5", keras_model, origin)
    assert run.main(["--model", "own.h5", "--eval", "--episodes", "1"]) == 0
    left_out = "warning: own.h5: settings that this version doesn't know are left out: reward_scale"
    assert left_out in capsys.readouterr().out


def test_a_snapshot_knows_its_run_and_training_goes_on_with_its_settings(train, here, capsys):
    gravity = ["--set", "gravity=0.002"]
    train(seed=5, name="first", set={"gravity": 0.002}, gamma=0.9, **{**SMALL, "max_steps": 400})
    origin = load_snapshot(here / "first-log/first-best.h5").origin
    assert (origin["seed"], origin["step"]) == (5, 400)
    assert (origin["gamma"], origin["set"]) == (0.9, {"gravity": 0.002})
    capsys.readouterr()
    again = ["--model", "first-log", "--train", "--name", "again", "--epsilon", "0.2"]
    assert run.main([*again, "--max-steps", "250"]) == 0
    same = final_weights(here / "again-log", 250) == final_weights(here / "first-log", 400)
    assert same.all()  # nothing is fitted before step 300
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "Loaded first-log/first-best.h5"  # after a warning
    assert sorted(lines[2:4]) == [
        "--epsilon is 0.2; the snapshot's run had 0.01",
        "--max-steps is 250; the snapshot's run had 400",
    ]
    config = json.loads((here / "again-log/config.json").read_text())
    assert (config["gamma"], config["set"], config["epsilon"]) == (0.9, {"gravity": 0.002}, 0.2)
    assert run.main(["--resume", "again", "--max-steps", "260", *gravity]) == 0  # NAME will do


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"env": "evil:Car-v0"}, "its run names code to import; --env 'evil:Car-v0' allows it"),
        (
            {"gamma": "x"},
            "its run has impossible settings: --gamma: expected a number from 0 to 1, not 'x'",
        ),
        ({"set": {"gravity": [1]}}, "its run has impossible settings: --set: expected NAME=VALUE"),
        ({"set": [1]}, "its run has impossible settings"),
        ({"hidden": "x"}, "its run has impossible settings: --hidden: expected comma-separated"),
        ({"seed": None}, "its run has impossible settings"),
        (
            {"epsilon": 7},
            "its run has impossible settings: --epsilon: expected a number from 0 to 1, not 7",
        ),
    ],
)
def test_a_snapshot_whose_run_is_impossible_is_refused(tensorflow, here, refused, change, says):
    settings = training_settings(run.Settings, {"seed": 1}, run.PRESETS)
    model = run.create_model(make_environment("MountainCar-v0"))
    save_snapshot(here / "made.h5", model, {**kept(settings, "snapshot"), **change})
    (here / "evil.py").write_text("open('executed', 'w')")
    for flags in (["--eval"], ["--train", "--name", "x"]):
        assert f"can't use made.h5: {says}" in refused("--model", "made.h5", *flags)


def test_a_preset_replaces_the_hyperparameters_of_a_snapshots_run(train, here, capsys):
    train(name="first", gamma=0.9, hidden=(8,), **{**SMALL, "max_steps": 20})
    again = ["--model", "first-log/first-20.h5", "--train", "--max-steps", "20"]
    assert run.main([*again, "--name", "again", "--preset", "tutorial"]) == 0
    config = json.loads((here / "again-log/config.json").read_text())
    assert (config["gamma"], config["batch_size"], config["hidden"]) == (0.99, 64, [8])
    assert run.main([*again, "--preset", "tuned"]) == 2
    assert "first-20.h5 has layers of 8, not 64,64" in capsys.readouterr().err


def test_a_run_whose_name_begins_with_a_dash_can_be_watched(train, here, capsys):
    _, trained = train(name="-x", until=-9.0, **{**CORRIDOR, "train_start": 10**6})
    capsys.readouterr()
    summarise(trained)
    *_, watch = capsys.readouterr().out.splitlines()
    words = shlex.split(watch)[2:]
    assert words == ["--model", "./-x-log/-x-best.h5", "--eval"]  # it can't be drawn
    assert run.main([*words, "--episodes", "1"]) == 0


def test_acrobot_trains_too(train):
    folder, _ = train(env="Acrobot-v1", seed=1, name="acrobot", **{**SMALL, "max_steps": 400})
    assert np.isfinite(final_weights(folder, 400)).all()


def test_a_run_prints_its_lines(small_run):
    result, _ = small_run
    assert result.returncode == 0 and result.stderr == ""
    assert "\r" not in result.stdout  # no progress bar in a pipe
    lines = result.stdout.splitlines()
    created = lines.index("Created small-log")
    assert any("Total params: 1,251" in line for line in lines[:created])
    log_line = (
        r"episode \d+ steps \d+/\d+ (loss \d+\.\d{7} )?return -\d+\.\d in \d+\.\d\ds "
        r"\d+\.\d steps/s \d+\.\d/\d+\.\d GB RAM"
    )
    evaluation = r"episode \d+ step \d+ episode_return_avg -\d+\.\d{3} avg_max_q_value -?\d+\.\d{3}"
    logs = [line for line in lines[created:] if re.fullmatch(log_line, line)]
    evaluations = [line for line in lines[created:] if re.fullmatch(evaluation, line)]
    assert [int(re.search(r"/(\d+)", line)[1]) for line in logs] == [200, 400, 600, 800, 1000, 1200]
    assert [int(line.split()[3]) for line in evaluations] == [400, 800, 1200]
    saved = [line for line in lines if line.startswith("Saved ")]
    assert saved[-1] == "Saved small-log/small-1200.h5"
    assert lines[-1].startswith("every return is the same: all 6 episodes returned -200")
    others = len(lines) - created - 1 - len(logs) - len(evaluations) - len(saved)
    assert lines[created + 1] == "Seed 7"
    assert others == 3  # the seed, steps and speed, and that


def test_a_run_leaves_its_files(small_run):
    _, folder = small_run
    log = folder / "small-log"
    files = sorted(path.name for path in log.iterdir() if "tfevents" not in path.name)
    snapshots = ["small-1200.h5", "small-600.h5", "small-best.h5"]
    others = ["config.json", "evaluations.csv", "result.json", "small.png", "state.npz"]
    assert files == sorted([*others, *snapshots])
    assert set(events(log)) == SCALARS
    config = json.loads((log / "config.json").read_text())
    assert set(flags_of(run.Settings)) - {"film"} <= set(config)
    assert (config["seed"], config["max_steps"], config["gamma"]) == (7, 1200, 0.99)
    assert set(config["versions"]) == {"tensorflow", "keras", "gym", "numpy", "python"}
    assert config["command"].endswith("--seed 7 --name small")


def test_the_scalars_are_those_of_the_lines(small_run):
    result, folder = small_run
    scalars = events(folder / "small-log")
    printed = re.findall(
        r"step (\d+) episode_return_avg (\S+) avg_max_q_value (\S+)", result.stdout
    )
    for tag, column in (("episode_return_avg", 1), ("avg_max_q_value", 2)):
        expected = [(int(row[0]), pytest.approx(float(row[column]), abs=6e-4)) for row in printed]
        assert scalars[tag] == expected
    printed = re.findall(r"steps (\d+)/(\d+)(?: loss (\S+))? return (\S+)", result.stdout)
    assert scalars["episode_steps"] == [(int(step), int(steps)) for steps, step, *_ in printed]
    assert scalars["episode_return"] == [(int(row[1]), float(row[3])) for row in printed]
    # Nothing is fitted yet at step 200.
    losses = [(int(row[1]), pytest.approx(float(row[2]), abs=1e-6)) for row in printed[1:]]
    assert scalars["loss"] == losses


def test_the_seed_alone_decides_what_is_learned(small_run, train):
    printed = events(small_run[1] / "small-log")
    same, other = (events(train(seed=seed, name=f"{seed}", **SMALL)[0]) for seed in (7, 8))
    for tag in SCALARS - TIMING:
        np.testing.assert_array_equal(printed[tag], same[tag])
    assert same["loss"] != other["loss"]


def test_the_preset_of_the_command_line_is_overridden_by_single_flags(train):
    given = {**SMALL, "hidden": (8,), "max_steps": 20}
    folder, _ = train(preset="tuned", name="p", seed=1, **given)
    config = json.loads((folder / "config.json").read_text())
    expected = {**run.PRESETS["tuned"], **given, "hidden": [8]}
    assert {name: config[name] for name in expected} == expected


def test_the_self_check_tries_every_phase(tmp_path):
    result = run_command("run.py", "--test", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("Everything works.\n")
