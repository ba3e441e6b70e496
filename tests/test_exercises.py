"""docs/exercises.md: each change is made in a copy of run.py, which is trained for a moment."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import GOING_ON, ROOT, random_weights, relu_network, weights_in

import run
import sweep
from harness import training_run
from harness.network import FlatModel
from harness.snapshot_reader import read_snapshot
from harness.snapshots import read_content
from harness.start import read_command_line
from replay_buffer import row_width, split_columns

DOCUMENT = (ROOT / "docs/exercises.md").read_text()
PLAIN, ACTIVATION, SHORTCUTS, DUELING, DOUBLE, HUBER, DECAY, SHAPING, NO_TARGET = range(9)
CHANGES = [ACTIVATION, SHORTCUTS, DUELING, HUBER, DECAY, SHAPING, NO_TARGET]  # of the program
FEW = (
    "--seed 1 --max-steps 200 --train-start 60 --eval-every 100 --eval-steps 100 "
    "--buffer-size 150 --batch-size 16 --q-validation-size 40 --epsilon 0.3 "
    "--learning-rate 0.05 --hidden 8,8"
)
CAR = SimpleNamespace(observation_size=2, n_actions=3)  # all that create_model asks for


def blocks(exercise, language):
    """The code blocks of an exercise."""
    text = re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[exercise]
    assert text.startswith(f"{exercise}. ")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def apply(diff, text):
    """The text with the lines of a diff changed, each of whose parts must fit just one place."""
    for part in re.split(r"^@@\n", diff, flags=re.MULTILINE):
        lines = part.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
        assert before != after
        assert text.count(before) == 1, f"run.py has this {text.count(before)} times:\n{before}"
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def copy_of(tensorflow, tmp_path_factory):
    """`copy_of(exercise)`: the module of a copy of run.py with the changes of an exercise."""
    copies = {PLAIN: run}
    place = tmp_path_factory.mktemp("copies")

    def copy_of(exercise):
        if exercise not in copies:
            text = (ROOT / "run.py").read_text()
            for diff in blocks(exercise, "diff"):
                text = apply(diff, text)
            path = place / f"run_{exercise}.py"
            path.write_text(text)
            spec = importlib.util.spec_from_file_location(path.stem, path)
            copies[exercise] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(copies[exercise])
        return copies[exercise]

    return copy_of


@pytest.fixture(scope="module")
def trained(copy_of, tmp_path_factory):
    """`trained(exercise)`: the last snapshot of a short run of its copy."""
    place, snapshots = tmp_path_factory.mktemp("trained"), {}
    (place / "shaped.py").write_text(*blocks(SHAPING, "python"))

    def trained(exercise, target_update_every=40):
        key = exercise, target_update_every
        if key not in snapshots:
            name = "exercise-{}-{}".format(*key)
            flags = [*FEW.split(), "--name", name]
            flags += ["--target-update-every", str(target_update_every)]
            if exercise == SHAPING:
                flags += ["--env", "shaped:Shaped-v0"]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place)
                patch.setattr(training_run.TrainingRun, "_draw", lambda run: None)
                assert copy_of(exercise).main(flags, GOING_ON) == 0
            snapshots[key] = place / f"{name}-log" / f"{name}-200.h5"
        return snapshots[key]

    return trained


def flat(path):
    return np.concatenate([np.ravel(weight) for weight in weights_in(path)])


def description(path):
    return read_snapshot(read_content(path)).config


@pytest.mark.parametrize("exercise", CHANGES)
def test_each_change_trains_something_else_and_is_played(exercise, copy_of, trained, capsys):
    assert not np.array_equal(flat(trained(exercise)), flat(trained(PLAIN)))
    capsys.readouterr()
    words = ["--model", trained(exercise), "--eval", "--episodes", "2"]
    if exercise == SHAPING:
        words += ["--env", "MountainCar-v0"]
    assert copy_of(exercise).main([str(word) for word in words], GOING_ON) == 0
    assert len(re.findall(r"^episode \d return", capsys.readouterr().out, re.MULTILINE)) == 2


def test_the_networks_are_those_that_the_exercises_name(trained):
    assert description(trained(PLAIN)).count('"relu"') == 2
    assert description(trained(ACTIVATION)).count('"tanh"') == 2
    assert '"relu"' not in description(trained(ACTIVATION))
    assert '"add_2"' in description(trained(SHORTCUTS))
    assert '"add_1"' not in description(trained(SHORTCUTS))
    assert '"advantage"' in description(trained(DUELING))


def test_a_shortcut_adds_a_layers_input_to_its_output(copy_of):
    model = copy_of(SHORTCUTS).create_model(CAR, hidden=(8, 8))
    observation = np.ones((1, 2), np.float32)
    first, second, output = (
        lambda x, w=weights: x @ w[0] + w[1]
        for weights in zip(*[iter(model.get_weights())] * 2, strict=True)
    )
    hidden = np.maximum(first(observation), 0)
    expected = output(hidden + np.maximum(second(hidden), 0))
    found = model([observation, np.ones((1, 3), np.float32)])
    assert np.allclose(found, expected, atol=1e-5)


def test_advantages_are_relative_to_their_mean(copy_of):
    module = copy_of(DUELING)
    model = module.create_model(CAR, hidden=(8,))
    observation = np.ones((1, 2), np.float32)
    value = keras.Model(model.inputs, model.get_layer("value").output)
    inputs = [observation, np.ones((1, 3), np.float32)]
    assert np.mean(model(inputs)) == pytest.approx(float(value(inputs)[0, 0]), abs=1e-5)


@pytest.mark.parametrize("exercise", [PLAIN, HUBER, NO_TARGET])
def test_fit_batch_computes_the_loss_of_the_exercise(exercise, copy_of):
    module = copy_of(exercise)
    keras_model = module.create_model(CAR, hidden=(8,))
    model, target_model = FlatModel(keras_model, keras_model.optimizer), FlatModel(keras_model)
    weights = random_weights((2, 8, 3))
    target_weights = [weight + 0.5 for weight in weights]
    model.set_weights(weights)
    target_model.set_weights(target_weights)
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(64, row_width(2))).astype(np.float32)
    observations, actions, [(rewards, next_observations, discounts)] = split_columns(batch, 2)
    actions[:] = rng.integers(3, size=64)
    q_of, target_q_of = relu_network(weights), relu_network(target_weights)
    next_values = (q_of if exercise == NO_TARGET else target_q_of)(next_observations).max(1)
    q_values = q_of(observations)[np.arange(64), actions.astype(int)]
    errors = abs(q_values - rewards - discounts * next_values)
    squares = errors**2
    losses = np.where(errors < 1, squares / 2, errors - 0.5) if exercise == HUBER else squares
    loss = float(module.fit_batch(model, target_model, batch))
    assert loss == pytest.approx(losses.sum() / batch[:, :3].size, rel=1e-4)


def test_the_learning_rate_falls_along_half_a_cosine(copy_of):
    optimizer = copy_of(DECAY).create_model(CAR).optimizer
    weight = keras.Variable(np.zeros(1, np.float32))
    optimizer.build([weight])
    rates = []
    for step in 0, 9000, 18000, 20000:
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    assert rates == pytest.approx([0.001, 0.0005, 0, 0], abs=1e-7)


def test_without_a_target_network_is_a_target_that_is_renewed_at_each_step(trained):
    assert (flat(trained(NO_TARGET)) == flat(trained(PLAIN, target_update_every=1))).all()


def test_the_shaped_rewards_add_up_to_the_true_ones_and_a_difference(tmp_path, monkeypatch):
    (tmp_path / "shaped_alone.py").write_text(*blocks(SHAPING, "python"))
    monkeypatch.syspath_prepend(tmp_path)
    shaped = importlib.import_module("shaped_alone")
    gym = shaped.gym
    env, true_env = gym.make("Shaped-v0"), gym.make("MountainCar-v0")
    observation, _ = env.reset(seed=3)
    assert (observation == true_env.reset(seed=3)[0]).all()
    expected, found, discount, terminated = -shaped.potential(observation), 0.0, 1.0, False
    while not terminated:
        action = 2 if observation[1] >= 0 else 0  # swings up to the flag
        true_observation, true_reward, *_ = true_env.step(action)
        observation, reward, terminated, *_ = env.step(action)
        assert (observation == true_observation).all()
        found += discount * reward
        expected += discount * true_reward
        discount *= 0.99
    assert found == pytest.approx(expected)


def test_every_command_is_understood():
    commands = re.findall(r"python (run|sweep)\.py ([^`\n]+)", DOCUMENT)
    assert len(commands) >= 7
    for program, words in commands:
        if program == "run":
            read_command_line(shlex.split(words), run.Settings, run.PRESETS)
        else:
            sweep.parse_arguments(shlex.split(words))


# Parts of the program in another project


def test_the_replay_buffer_works_alone(tmp_path):
    shutil.copy(ROOT / "replay_buffer.py", tmp_path)
    (tmp_path / "own.py").write_text(
        "import sys\n"
        "import numpy as np\n"
        "from replay_buffer import ReplayBuffer, split_columns\n"
        "buffer = ReplayBuffer(10, 2, gamma=0.5, n_step=2, rng=np.random.default_rng(0))\n"
        "for step in range(4):\n"
        "    buffer.add(np.full(2, step), step, 1.0, np.full(2, step + 1), step == 3, False)\n"
        "batch = buffer.sample(5)\n"
        "print(len(buffer), batch.shape, buffer.rewards[:4], buffer.discounts[:4])\n"
        "print({'harness', 'keras', 'tensorflow', 'gym'} & set(sys.modules))\n"
    )
    command = [sys.executable, "own.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines() == [
        "4 (5, 7) [1.5 1.5 1.5 1. ] [0.25 0.25 0.   0.  ]",
        "set()",
    ]
    assert ended.stderr == ""


def test_create_model_takes_any_object_with_the_two_sizes_and_keras_trains_it(tensorflow):
    model = run.create_model(SimpleNamespace(observation_size=5, n_actions=4), hidden=(16,))
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(64, 5)).astype(np.float32)
    masks = np.eye(4, dtype=np.float32)[rng.integers(4, size=64)]
    first, *_, last = model.fit([observations, masks], masks, epochs=20, verbose=0).history["loss"]
    assert last < 0.9 * first
    q_values = run.predict(model, observations)
    assert np.allclose(model.predict([observations, np.ones((64, 4))], verbose=0), q_values)
