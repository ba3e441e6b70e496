"""The network is what `create_model` says, whatever that is, or it is refused in one line."""

import re
from types import SimpleNamespace

import gym
import keras
import numpy as np
import pytest
from conftest import Corridor, weights_in
from keras import layers, regularizers
from keras.layers import Dense

import run
from harness import network
from harness.environments import make_environment
from harness.network import FlatModel, check_network, compile_q_function, make_models
from replay_buffer import row_width, split_columns

FEW = {
    "env": "CartPole-v1", "seed": 3, "max_steps": 300, "train_start": 150, "epsilon": 0.0,
    "target_update_every": 40, "eval_every": 300, "eval_steps": 1, "snapshot_every": 0,
    "batch_size": 8, "buffer_size": 400, "q_validation_size": 50,
}  # fmt: skip
FLAGS = "--env CartPole-v1 --max-steps 300 --train-start 200 --eval-every 0"


def chain(*activations, **options):
    """Hidden layers with these activations, then one without."""

    def body(observations, n_actions):
        layer = observations
        for activation in activations:
            layer = Dense(7, activation, **options)(layer)
        return Dense(n_actions, **options)(layer)

    return body


def with_layers(*between):
    """Hidden layers with others between them, which functions make."""

    def body(observations, n_actions):
        layer = Dense(7)(observations)
        for make in between:
            layer = Dense(6)(make()(layer))
        return Dense(n_actions)(layer)

    return body


def rescaled(observations, n_actions):
    return chain("relu")(layers.Rescaling(0.5, offset=0.1)(observations), n_actions)


def concatenated(observations, n_actions):
    layer = Dense(7, "relu")(observations)
    return Dense(n_actions)(layers.Concatenate()([layer, observations]))


def residual(observations, n_actions):
    layer = Dense(7, "relu")(observations)
    return Dense(n_actions)(layers.Add()([layer, Dense(7, "tanh")(layer)]))


def dueling(observations, n_actions):
    layer = Dense(7, "relu")(observations)
    value, advantages = Dense(1)(layer), Dense(n_actions)(layer)
    return value + advantages - keras.ops.mean(advantages, axis=1, keepdims=True)


def nested(observations, n_actions):
    inner = keras.Sequential([Dense(7, "relu"), keras.Sequential([Dense(6, "tanh")])])
    return Dense(n_actions)(inner(observations))


def shared(observations, n_actions):
    first, twice = Dense(7, "relu"), Dense(7, "tanh")
    return Dense(n_actions)(twice(twice(first(observations))))


def many_kinds(observations, n_actions):
    first, twice = nested(observations, 7), Dense(7)
    layer = layers.PReLU("uniform")(layers.LayerNormalization()(twice(first)))
    layer = layers.Concatenate()([layers.Add()([layer, twice(layer)]), observations])
    return Dense(n_actions)(layers.LeakyReLU(0.1)(Dense(7)(layers.Rescaling(0.5, 0.1)(layer))))


NETWORKS = {
    "one hidden layer": chain("tanh"),
    "five hidden layers": chain("sigmoid", "elu", "selu", "softplus", "silu"),
    "leaky_relu": chain("leaky_relu", "relu"),
    "gelu": chain("gelu", "relu"),
    "no bias": chain("relu", "tanh", use_bias=False),
    "LeakyReLU, PReLU": with_layers(layers.LeakyReLU, layers.PReLU),
    "Activation, ReLU, ELU": with_layers(
        lambda: layers.Activation("tanh"), layers.ReLU, lambda: layers.ELU(0.5)
    ),
    "LayerNormalization": with_layers(layers.LayerNormalization),
    "Rescaling": rescaled,
    "Concatenate": concatenated,
    "residual Add": residual,
    "dueling": dueling,
    "nested Sequential": nested,
    "shared layer": shared,
    "many kinds": many_kinds,
}
# Of these, whole trainings; of all, a step.
TRAINED = ["one hidden layer", "five hidden layers", "gelu", "no bias", "many kinds", "dueling"]
PROBES = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
FITS = {
    **{name: {"body": body} for name, body in NETWORKS.items()},
    "L1 and L2": {
        "body": chain(
            "relu",
            kernel_regularizer=regularizers.L2(0.1),
            bias_regularizer=regularizers.L1(0.1),
            activity_regularizer=regularizers.L2(0.1),
        )
    },
    "ActivityRegularization": {"body": with_layers(lambda: layers.ActivityRegularization(0.1))},
    "Huber loss": {"loss": lambda: keras.losses.Huber(0.1)},
    "Huber loss by name": {"loss": lambda: "huber"},
    "sum of the losses": {"loss": lambda: keras.losses.MeanSquaredError(reduction="sum")},
    "no reduction": {"loss": lambda: keras.losses.MeanSquaredError(reduction=None)},
    "RMSprop": {"optimizer": lambda: keras.optimizers.RMSprop(0.01, centered=True)},
    "SGD": {"optimizer": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)},
    "SGD by name": {"optimizer": lambda: "sgd"},
    "AdamW": {"optimizer": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1)},
    "Nadam": {"optimizer": lambda: keras.optimizers.Nadam(0.01)},
    "Lion": {"optimizer": lambda: keras.optimizers.Lion(0.01)},
    "Adadelta": {"optimizer": lambda: keras.optimizers.Adadelta(0.1)},
    "Adagrad": {"optimizer": lambda: keras.optimizers.Adagrad(0.01)},
    "Adamax": {"optimizer": lambda: keras.optimizers.Adamax(0.01)},
    "Ftrl": {"optimizer": lambda: keras.optimizers.Ftrl(0.01, l2_regularization_strength=0.1)},
    "amsgrad": {"optimizer": lambda: keras.optimizers.Adam(0.01, amsgrad=True)},
    "clipvalue": {"optimizer": lambda: keras.optimizers.Adam(0.01, clipvalue=0.01)},
    "accumulated gradients": {
        "optimizer": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    },
    "a schedule": {
        "optimizer": lambda: keras.optimizers.SGD(
            keras.optimizers.schedules.PiecewiseConstantDecay([1, 2], [0.1, 0.01, 1.0])
        )
    },
}


TANH = chain("tanh")


def creator(body=TANH, optimizer=keras.optimizers.Adam, loss=lambda: "mean_squared_error"):
    """A `create_model` of a reader's own."""

    def create_model(env, **_):
        observations = layers.Input((env.observation_size,), name="observations")
        action_mask = layers.Input((env.n_actions,), name="action_mask")
        q_values = body(observations, env.n_actions)
        output = layers.Multiply()([q_values, action_mask])
        model = keras.Model([observations, action_mask], output)
        model.compile(optimizer(), loss=loss())
        return model

    return create_model


@pytest.fixture
def env():
    return make_environment("CartPole-v1")


def in_keras(path, create_model):
    """The network of a snapshot, as Keras reads it."""
    try:
        return keras.models.load_model(path, compile=False)
    except ValueError:  # it can't make an operation of keras.ops of a description
        model = create_model(make_environment("CartPole-v1"))
        model.load_weights(path)
        return model


def q_values_in_keras(keras_model, observations):
    """Q values, (n, n_actions), by Keras' own call."""
    ones = np.ones((len(observations), keras_model.output_shape[-1]), np.float32)
    return keras_model([observations, ones]).numpy()


def returns_in_keras(keras_model, seed, episodes):
    """The returns of the episodes that `seed` begins, played side by side with Keras' own call."""
    rng = np.random.default_rng(seed)
    envs = [make_environment("CartPole-v1") for _ in range(episodes)]
    seeds = [int(rng.integers(2**31)) for _ in envs]
    observations = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    returns, running = [0.0] * episodes, list(range(episodes))
    while running:
        seen = np.array([observations[number] for number in running])
        actions = q_values_in_keras(keras_model, seen).argmax(axis=1)
        for number, action in zip(list(running), actions, strict=True):
            observations[number], reward, *ended, _ = envs[number].step(int(action))
            returns[number] += reward
            if any(ended):
                running.remove(number)
    return returns


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_played_is_the_network_that_is_trained(train, monkeypatch, capsys, name):
    create_model, evaluate = creator(NETWORKS[name]), run.evaluate
    first, evaluations = [], []

    def remembered(env, **_):
        model = create_model(env)
        first.append(create_model(env))
        first[-1].set_weights(model.get_weights())
        return model

    def recorded(env, q_function, seed, *others, **options):
        probed = [q_function(probe) for probe in PROBES]
        returns = evaluate(env, q_function, seed, *others, **options)
        evaluations.append((seed, probed, returns))
        return returns

    monkeypatch.setattr(run, "create_model", remembered)
    monkeypatch.setattr(run, "evaluate", recorded)
    folder, ended = train(name="own", **FEW)
    snapshot = folder / "own-300.h5"
    saved = in_keras(snapshot, create_model)

    # The actions before learning, the evaluation, its largest Q values.
    buffer = ended.parts["replay_buffer"]
    q_values = q_values_in_keras(first[0], buffer.observations[:150])
    assert (buffer.actions[:150] == q_values.argmax(axis=1)).all()
    ((seed, probed, returns),) = evaluations
    np.testing.assert_allclose(probed, q_values_in_keras(saved, PROBES), rtol=1e-4, atol=1e-5)
    assert returns == returns_in_keras(saved, seed, len(returns))
    states = ended.progress.q_validation_observations
    expected = q_values_in_keras(saved, states).max(axis=1).mean()
    assert ended.progress.evaluations[-1][6] == pytest.approx(expected, rel=1e-4)

    # The snapshot, played and trained on.
    capsys.readouterr()
    assert run.main(f"--model {snapshot} --eval --seed 5 --episodes 10".split()) == 0
    shown = re.findall(r"^episode \d+ return (\S+)$", capsys.readouterr().out, re.M)
    assert list(map(float, shown)) == returns_in_keras(saved, 5, 10)
    np.testing.assert_allclose(evaluations[-1][1], probed, rtol=1e-4, atol=1e-5)
    again = f"--model {snapshot} --train --name again --max-steps 20 --eval-every 0"
    assert run.main(again.split()) == 0
    unchanged = in_keras(folder.parent / "again-log/again-20.h5", create_model)
    assert all(map(np.array_equal, unchanged.get_weights(), saved.get_weights()))


@pytest.mark.parametrize("name", FITS)
def test_a_step_of_fit_batch_is_keras_own(tensorflow, env, name):
    keras.utils.set_random_seed(1)
    create_model = creator(**FITS[name])
    ours, theirs = create_model(env), create_model(env)
    theirs.set_weights(ours.get_weights())
    theirs.run_eagerly = True
    theirs.jit_compile = False
    model, target_model = FlatModel(ours, ours.optimizer), FlatModel(ours)
    rng = np.random.default_rng(2)
    for _ in range(3):
        batch = rng.normal(size=(16, row_width(4))).astype(np.float32)
        observations, actions, [(rewards, next_observations, discounts)] = split_columns(batch, 4)
        actions[:] = rng.integers(2, size=16)
        next_q_values = q_values_in_keras(ours, next_observations).max(axis=1)
        mask = np.eye(2, dtype=np.float32)[actions.astype(int)]
        targets = mask * (rewards + discounts * next_q_values)[:, None]
        expected = theirs.train_on_batch([observations, mask], targets)
        loss = run.fit_batch(model, target_model, batch)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        for our, their in zip(model.get_weights(), theirs.trainable_variables, strict=True):
            np.testing.assert_allclose(our, their.numpy(), rtol=1e-4, atol=1e-5)


def test_a_resumed_run_keeps_its_network_losses_and_optimizer(train, here, monkeypatch):
    schedule = keras.optimizers.schedules.ExponentialDecay
    create_model = creator(
        chain("tanh", kernel_regularizer=regularizers.L2(0.01)),
        lambda: keras.optimizers.Nadam(schedule(0.01, decay_steps=20, decay_rate=0.5)),
        lambda: keras.losses.Huber(0.5),
    )
    monkeypatch.setattr(run, "create_model", create_model)
    whole, _ = train(name="whole", **FEW)
    train(name="part", **{**FEW, "max_steps": 200})
    assert run.main(["--resume", "part", "--max-steps", "300"]) == 0
    unbroken = weights_in(whole / "whole-300.h5")
    resumed = weights_in(here / "part-log/part-300.h5")
    assert all(map(np.array_equal, unbroken, resumed))


@pytest.mark.parametrize("activation", network.ACTIVATIONS)
def test_numpy_computes_what_predict_does(tensorflow, env, activation):
    keras_model = creator(chain(activation, "relu"))(env)
    model = FlatModel(keras_model)
    made = []

    def predict(model, observations):
        made.append(observations)
        return run.predict(model, observations)

    q_function = compile_q_function(predict, model, env)(model.get_weights())
    made.clear()
    observations = PROBES * np.float32([[1], [1e-3], [30], [1000]] * 5)
    expected = q_values_in_keras(keras_model, observations)
    with np.errstate(all="raise"):  # as a package may set it; and nothing may be printed
        found = q_function(observations)
        one = [q_function(observation) for observation in observations]
    assert found.dtype == one[0].dtype == np.float32 and one[0].shape == (2,)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-4)
    assert not made  # TensorFlow wasn't asked


def test_what_numpy_would_compute_otherwise_is_computed_by_predict(tensorflow, env, monkeypatch):
    monkeypatch.setitem(network.ACTIVATIONS, "tanh", lambda layer: layer)
    keras_model = creator()(env)
    model = FlatModel(keras_model)
    q_function = compile_q_function(run.predict, model, env)(model.get_weights())
    expected = q_values_in_keras(keras_model, PROBES)
    np.testing.assert_allclose(q_function(PROBES), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q_function(PROBES[0]), expected[0], rtol=1e-4, atol=1e-5)


def test_create_model_needs_nothing_but_the_two_sizes(tensorflow):
    model = run.create_model(SimpleNamespace(observation_size=5, n_actions=3))
    assert model.input_shape == [(None, 5), (None, 3)] and model.output_shape == (None, 3)


def functional(build):
    """A `create_model` that compiles what `build(observations, action_mask, n_actions)` returns.

    That is the inputs and the output of the model.
    """

    def create_model(env, **_):
        observations = layers.Input((env.observation_size,), name="observations")
        action_mask = layers.Input((env.n_actions,), name="action_mask")
        model = keras.Model(*build(observations, action_mask, env.n_actions))
        model.compile("adam", loss="mean_squared_error")
        return model

    return create_model


def swapped(observations, action_mask, n_actions):
    output = layers.Multiply()([chain("relu")(observations, n_actions), action_mask])
    return [action_mask, observations], output


def swapped_in_use(observations, action_mask, n_actions):
    """Multiplies the observations, which are as many as the actions, by a network of the mask."""
    output = layers.Multiply()([chain("relu")(action_mask, n_actions), observations])
    return [observations, action_mask], output


def without_mask(observations, action_mask, n_actions):
    return [observations, action_mask], chain("relu")(observations, n_actions)


def masked_advantages(observations, action_mask, n_actions):
    advantages = layers.Multiply()([chain("relu")(observations, n_actions), action_mask])
    return [observations, action_mask], layers.Add()([advantages, Dense(1)(observations)])


def masked_twice(observations, action_mask, n_actions):
    seen = layers.Concatenate()([observations, action_mask])
    q_values = layers.Multiply()([chain("relu")(seen, n_actions), action_mask])
    return [observations, action_mask], q_values


def one_input(observations, action_mask, n_actions):
    return observations, chain("relu")(observations, n_actions)


def too_wide(observations, action_mask, n_actions):
    output = layers.Multiply()([chain("relu")(observations, n_actions), action_mask])
    return [observations, action_mask], layers.Concatenate()([output, output])


def one_value(observations, action_mask, n_actions):
    value = Dense(1, kernel_initializer="zeros")(observations)
    return [observations, action_mask], layers.Multiply()([value, action_mask])


def unit_too_many(observations, action_mask, n_actions):
    output = Dense(n_actions + 1)(observations)
    return [observations, action_mask], layers.Multiply()([output, action_mask])


def uncompiled(env, **_):
    model = creator()(env)
    return keras.Model(model.inputs, model.outputs)


def with_precision(policy):
    def create_model(env, **_):
        keras.config.set_dtype_policy(policy)
        try:
            return creator()(env)
        finally:
            keras.config.set_dtype_policy("float32")

    return create_model


class Subclassed(keras.Model):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return self.model(inputs)


def subclassed(env, **_):
    model = Subclassed(creator()(env))
    model.compile("adam", loss="mean_squared_error")
    return model


def with_loss(loss, **options):
    def create_model(env, **_):
        model = creator()(env)
        model.compile("adam", loss=loss, **options)
        return model

    return create_model


def no_decay_of_biases():
    optimizer = keras.optimizers.AdamW(0.01)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


REFUSED = {
    "BatchNormalization": (creator(with_layers(layers.BatchNormalization)), "has state"),
    "Dropout": (creator(with_layers(lambda: layers.Dropout(0.1))), "(Dropout) has state"),
    "Dropout, nested": (
        creator(with_layers(lambda: keras.Sequential([Dense(7), layers.Dropout(0.1)]))),
        "(Dropout) has state",
    ),
    "GaussianNoise": (creator(with_layers(lambda: layers.GaussianNoise(0.1))), "has state"),
    "frozen": (creator(with_layers(lambda: Dense(7, trainable=False))), "is frozen"),
    "MaxNorm": (creator(chain("relu", kernel_constraint="max_norm")), "has a constraint"),
    "NonNeg bias": (creator(chain("relu", bias_constraint="non_neg")), "has a constraint"),
    "wrong output": (functional(too_wide), "its output has the shape"),
    "one value": (functional(one_value), "needs a unit for each of the 2 actions"),
    "a unit too many": (functional(unit_too_many), "Inputs have incompatible shapes"),
    "swapped inputs": (functional(swapped), "its inputs have the shapes"),
    "one input": (functional(one_input), "its inputs have the shapes"),
    "mask ignored": (functional(without_mask), "times action_mask"),
    "masked advantages": (functional(masked_advantages), "times action_mask"),
    "mask as an input": (functional(masked_twice), "times action_mask"),
    "uncompiled": (uncompiled, "expected a compiled model"),
    "clipnorm": (
        creator(optimizer=lambda: keras.optimizers.Adam(0.01, clipnorm=1.0)),
        "use global_clipnorm",
    ),
    "Adafactor": (creator(optimizer=keras.optimizers.Adafactor), "Adafactor isn't supported"),
    "no decay of biases": (creator(optimizer=no_decay_of_biases), "exclude_from_weight_decay"),
    "a list of losses": (with_loss(["mean_squared_error"]), "isn't a loss"),
    "an unknown loss": (with_loss("no_such_loss"), "'no_such_loss' isn't a loss"),
    "loss weights": (with_loss("mean_squared_error", loss_weights=0.5), "loss_weights"),
    "mixed precision": (with_precision("mixed_float16"), "expected float32"),
    "mixed precision of bfloat16": (with_precision("mixed_bfloat16"), "expected float32"),
    "float64": (with_precision("float64"), "expected float32"),
    "subclass": (subclassed, "its inputs have the shapes"),
    "no model": (lambda env, **_: None, "its inputs have the shapes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line(refused, monkeypatch, tensorflow, name):
    create_model, says = REFUSED[name]
    monkeypatch.setattr(run, "create_model", create_model)
    line = refused(*FLAGS.split())
    assert line.startswith("run.py: error: create_model: ") and says in line


@pytest.mark.parametrize("hidden", [(64,) * 250, (1,) * 3, (2000,)])
def test_no_depth_or_width_is_refused(env, tensorflow, hidden):
    check_network(run.create_model(env, hidden), env)


def test_what_cannot_be_trained_is_not_played(here, env, monkeypatch, capsys, tensorflow):
    create_model, says = REFUSED["BatchNormalization"]
    create_model(env).save(here / "own.h5")
    monkeypatch.setattr(run, "create_model", create_model)
    assert run.main(["--model", "own.h5", "--eval", "--env", "CartPole-v1"]) == 2
    assert says in capsys.readouterr().err


def test_inputs_swapped_in_use_are_refused(refused, monkeypatch, tensorflow):
    monkeypatch.setattr(run, "create_model", functional(swapped_in_use))
    assert "times action_mask" in refused(*FLAGS.split(), "--env", "TwoCells-v0")


class Pair(Corridor):
    """As many observed numbers as actions."""

    cells = 2


class Seek(gym.Env):
    """Walk to a goal on a line of 21 places, which are numbered from `base` on."""

    def __init__(self, base=0, bounded=True):
        self.base = base
        low, high = (base, base + 20) if bounded else (-np.inf, np.inf)
        self.observation_space = gym.spaces.Box(low, high, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.goal = self.np_random.choice(21, 2, replace=False)
        return self._observe(), {}

    def step(self, action):
        self.at = int(np.clip(self.at + (1 if action else -1), 0, 20))
        return self._observe(), -1.0, bool(self.at == self.goal), False, {}

    def _observe(self):
        return np.array([self.base + self.at, self.base + self.goal], np.float32)


gym.register("TwoCells-v0", entry_point=Pair, max_episode_steps=20)
gym.register("Seek-v0", entry_point=Seek, max_episode_steps=60)


@pytest.mark.parametrize(
    ("env_id", "bounds"),
    [("MountainCar-v0", [1.2, 0.07]), ("CartPole-v1", [4.8, 1, 0.41887903, 1])],
)
@pytest.mark.parametrize("factor", [0.0, 1.0, 4.4])
def test_first_weights_are_multiplied_by_the_factor_over_the_bounds(
    tensorflow, env_id, bounds, factor
):
    env = make_environment(env_id)
    keras_model = run.create_model(env)
    plain = keras_model.get_weights()
    model, target_model = make_models(keras_model, env, factor, None)
    if factor:  # CartPole's velocities have no bounds: the random steps tell their scale
        model.scale_unbounded_inputs(np.float32([[0.5, 0.5, 0.1, 0.5], [-0.5, -0.5, -0.1, -0.5]]))
    first, *others = model.get_weights()
    expected = plain[0] * (factor / np.float64(bounds)[:, None] if factor else 1)
    np.testing.assert_allclose(first, expected, rtol=1e-6)
    assert all(map(np.array_equal, others, plain[1:]))
    if factor and env_id == "MountainCar-v0":
        assert (model.theta.numpy() == target_model.theta.numpy()).all()


@pytest.mark.parametrize(
    ("base", "bounded", "tolerance"),
    [(1000, True, 1e-3), (1000, False, 1e-3), (100_000, True, 0.1), (100_000, False, 0.1)],
)
def test_inputs_far_from_0_are_fitted_as_scaled_ones(tensorflow, base, bounded, tolerance):
    """Against the same network, which sees (observation - centre) / scale instead."""
    env = make_environment("Seek-v0", {"base": base, "bounded": bounded})
    rng = np.random.default_rng(1)
    observations = base + rng.integers(21, size=(300, 2)).astype(np.float32)
    centre, scale = np.float32([base + 10] * 2), np.float32([10, 10])
    if not bounded:
        centre, scale = observations.mean(axis=0), 2 * observations.std(axis=0)

    keras_model = run.create_model(env)
    kernel, *others = keras_model.get_weights()
    model, target_model = make_models(keras_model, env, 4.4, None)
    model.scale_unbounded_inputs(observations)
    target_model.set_weights(model.get_weights())
    plain_model = run.create_model(env)
    plain_model.set_weights([4.4 * kernel, *others])
    plain, plain_target = FlatModel(plain_model, plain_model.optimizer), FlatModel(plain_model)

    def q_values():
        scaled = run.predict(plain, (observations - centre) / scale).numpy()
        return run.predict(model, observations).numpy(), scaled

    np.testing.assert_allclose(*q_values(), atol=tolerance)
    before = q_values()[0]
    for _ in range(20):
        batch = rng.normal(size=(16, row_width(2))).astype(np.float32)
        split_columns(batch, 2)[1][:] = rng.integers(2, size=16)
        scaled_batch = batch.copy()
        seen, seen_next = observations[rng.integers(300, size=(2, 16))]
        for rows, centred in (batch, 0.0), (scaled_batch, centre):
            factor = scale if rows is scaled_batch else 1.0
            its_observations, _, [(_, next_observations, _)] = split_columns(rows, 2)
            its_observations[:] = (seen - centred) / factor
            next_observations[:] = (seen_next - centred) / factor
        run.fit_batch(model, target_model, batch)
        run.fit_batch(plain, plain_target, scaled_batch)
    np.testing.assert_allclose(*q_values(), atol=tolerance)
    assert abs(q_values()[0] - before).max() > 3 * tolerance  # it was more than nothing
    # What is saved is an ordinary network, and what a resumed run goes on with is all of it.
    saved = q_values_in_keras(model.as_keras(), observations)
    np.testing.assert_allclose(saved, q_values()[0], atol=1e-5)
    again, _ = make_models(run.create_model(env), env, 4.4, None)
    again.set_state(model.get_state())
    assert all(map(np.array_equal, again.get_weights(), model.get_weights()))
