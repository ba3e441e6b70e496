"""The algorithm: each function against Keras or plain NumPy, and a problem with a known answer."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import Corridor, load_weights, relu_network
from scipy.special import zeta
from scipy.stats import chisquare

import run
from harness import backend
from harness.environments import make_environment
from harness.network import FlatModel
from replay_buffer import row_width, split_columns

BATCH = 64


@pytest.fixture
def env():
    return make_environment("MountainCar-v0")


def make_batch(rng, reward_scale=1.0):
    """A batch of 64 transitions, a third of them terminated."""
    batch = rng.normal(size=(BATCH, row_width(2))).astype(np.float32)
    _, actions, [(rewards, _, discounts)] = split_columns(batch, 2)
    actions[:] = rng.integers(3, size=BATCH)
    rewards *= reward_scale
    discounts[:] = rng.choice([0.0, 0.99, 0.99], size=BATCH)
    return batch


def keras_fit(keras_model, target_weights, batch):
    """One fit as the tutorial writes it, with Keras' own predict and fit; returns the loss."""
    observations, actions, [(rewards, next_observations, discounts)] = split_columns(batch, 2)
    weights = keras_model.get_weights()
    keras_model.set_weights(target_weights)
    ones = np.ones((len(batch), 3), np.float32)
    next_q_values = keras_model([next_observations, ones]).numpy()
    keras_model.set_weights(weights)
    q_values = rewards + discounts * next_q_values.max(axis=1)
    mask = np.eye(3, dtype=np.float32)[actions.astype(int)]
    history = keras_model.fit(
        [observations, mask], mask * q_values[:, None], batch_size=len(batch), verbose=0
    )
    return history.history["loss"][0]


@pytest.mark.parametrize("reward_scale", [1, 100], ids=["short gradients", "clipped gradients"])
def test_fit_batch_does_what_keras_fit_does(tensorflow, env, reward_scale):
    keras_model = run.create_model(env)
    keras_model.run_eagerly, keras_model.jit_compile = True, False  # nothing to compile
    model = FlatModel(keras_model, run.create_model(env).optimizer)
    target_model = FlatModel(keras_model)
    target_model.set_weights([weight + 0.1 for weight in keras_model.get_weights()])
    rng = np.random.default_rng(1)
    step = backend.compile_step(
        lambda batch: run.fit_batch(model, target_model, batch), (BATCH, row_width(2))
    )
    for _ in range(5):
        batch = make_batch(rng, reward_scale)
        loss = keras_fit(keras_model, target_model.get_weights(), batch)
        assert float(step(batch)) == pytest.approx(loss, rel=1e-5)
        for ours, theirs in zip(model.get_weights(), keras_model.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)


def test_double_q_values_the_online_networks_choice(tensorflow, env):
    keras_model = run.create_model(env)
    keras_model.run_eagerly, keras_model.jit_compile = True, False
    batch = make_batch(np.random.default_rng(1))
    observations, actions, [(rewards, next_observations, discounts)] = split_columns(batch, 2)
    weights = np.random.default_rng(2)
    shapes = [weight.shape for weight in keras_model.get_weights()]
    online, target = (
        [weights.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(2)
    )
    keras_model.set_weights(online)
    rows = np.arange(len(batch))
    chosen = relu_network(online)(next_observations).argmax(axis=1)
    others = relu_network(target)(next_observations)
    assert (chosen != others.argmax(axis=1)).any()
    q_values = rewards + discounts * others[rows, chosen]
    model, target_model = FlatModel(keras_model, keras_model.optimizer), FlatModel(keras_model)
    target_model.set_weights(target)
    actual = relu_network(online)(observations)[rows, actions.astype(int)]
    expected = np.mean((q_values - actual) ** 2) / env.n_actions
    loss = float(run.fit_batch(model, target_model, batch, double_q=True))
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("double_q", [False, True])
def test_two_returns_of_a_transition_are_fitted_as_their_mean(tensorflow, env, double_q):
    rng = np.random.default_rng(1)
    batch = rng.normal(size=(BATCH, row_width(2, True))).astype(np.float32)
    _, actions, returns = split_columns(batch, 2)
    actions[:] = rng.integers(3, size=BATCH)
    for _, _, discounts in returns:
        discounts[:] = rng.choice([0.0, 0.99], size=BATCH)
    keras_model = run.create_model(env)
    model, target_model = FlatModel(keras_model, keras_model.optimizer), FlatModel(keras_model)
    target_model.set_weights([weight + 0.1 for weight in model.get_weights()])
    online, target = (relu_network(one.get_weights()) for one in (model, target_model))
    rows, q_values = np.arange(BATCH), np.zeros(BATCH)
    for rewards, next_observations, discounts in returns:
        judge = online if double_q else target
        chosen = judge(next_observations).argmax(axis=1)
        q_values += (rewards + discounts * target(next_observations)[rows, chosen]) / 2
    actual = online(batch[:, :2])[rows, actions.astype(int)]
    expected = np.mean((q_values - actual) ** 2) / env.n_actions
    assert float(run.fit_batch(model, target_model, batch, double_q)) == pytest.approx(
        expected, rel=1e-4
    )


def test_epsilon_and_gamma_go_linearly_from_their_first_value_to_their_last():
    settings = run.Settings(epsilon=0.1, epsilon_decay_steps=100, gamma=0.9, gamma_decay_steps=200)
    assert [run.epsilon_at(step, settings) for step in (0, 50, 100, 999)] == [1, 0.55, 0.1, 0.1]
    gammas = [run.gamma_at(step, settings) for step in (0, 100, 200, 999)]
    assert gammas == pytest.approx([0.998, 0.949, 0.9, 0.9])
    assert run.gamma_at(0, run.Settings(gamma=0.7)) == 0.7
    assert (settings.largest_gamma, run.Settings(gamma=0.7).largest_gamma) == (0.998, 0.7)


def test_averaged_weights_are_an_exponential_moving_average(tensorflow, env):
    keras_model = run.create_model(env, ema_momentum=0.9)
    model = FlatModel(keras_model, keras_model.optimizer)
    target_model, rng, expected = FlatModel(model.keras_model), np.random.default_rng(1), None
    for averaged, now in zip(model.averaged_weights(), model.get_weights(), strict=True):
        assert (averaged == now).all()
    for _ in range(20):
        run.fit_batch(model, target_model, make_batch(rng))
        now = model.theta.numpy()
        expected = now if expected is None else 0.9 * expected + 0.1 * now
    averaged = np.concatenate([weight.ravel() for weight in model.averaged_weights()])
    np.testing.assert_allclose(averaged, expected, rtol=1e-4, atol=1e-6)
    assert abs(averaged - now).max() > 1e-3
    for saved, weight in zip(model.as_keras().get_weights(), model.averaged_weights(), strict=True):
        assert (saved == weight).all()


def test_the_direct_call_equals_tensorflows_own_bit_for_bit(tensorflow, env):
    losses, weights = [], []
    keras_model = run.create_model(env, hidden=(48, 16))
    for call in ("step", "compiled", "eager"):
        model = FlatModel(keras_model, run.create_model(env).optimizer)
        target_model = FlatModel(keras_model)

        def fit(batch, model=model, target_model=target_model):
            return run.fit_batch(model, target_model, batch)

        step = backend.compile_step(fit, (BATCH, row_width(2)))
        function = {"step": step, "compiled": step.compiled, "eager": fit}[call]
        rng = np.random.default_rng(4)
        losses.append([float(function(make_batch(rng))) for _ in range(20)])
        weights.append(np.concatenate([weight.ravel() for weight in model.get_weights()]))
    assert losses[0] == losses[1] and (weights[0] == weights[1]).all()
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-4)
    np.testing.assert_allclose(weights[0], weights[2], rtol=1e-3, atol=1e-5)


def test_predict_is_the_model_with_a_mask_of_ones_another_mask_zeroes(tensorflow, env):
    keras_model = run.create_model(env, hidden=(64, 8, 32))
    observations = np.random.default_rng(5).normal(size=(30, 2)).astype(np.float32)
    expected = keras_model.predict([observations, np.ones((30, 3))], verbose=0)
    np.testing.assert_allclose(run.predict(keras_model, observations), expected, rtol=1e-5)
    flat = run.predict(FlatModel(keras_model), observations)
    np.testing.assert_allclose(flat, expected, rtol=1e-5)
    mask = np.tile(np.eye(3, dtype=np.float32), (10, 1))
    masked = keras_model.predict([observations, mask], verbose=0)
    np.testing.assert_allclose(masked, mask * expected, rtol=1e-5)


def test_the_network_is_the_tutorials(tensorflow, env):
    keras_model = run.create_model(env)
    assert [weight.shape for weight in keras_model.get_weights()] == [
        (2, 32), (32,), (32, 32), (32,), (32, 3), (3,),
    ]  # fmt: skip
    names = [layer.name for layer in keras_model.layers]
    assert {"hidden_2", "filtered_output", "action_mask"} <= set(names)
    assert isinstance(keras_model.optimizer, keras.optimizers.Adam)
    assert keras_model.optimizer.global_clipnorm == 1.0
    assert keras_model.optimizer.learning_rate.numpy() == np.float32(0.001)
    assert keras_model.loss == "mean_squared_error"


@pytest.mark.parametrize(
    ("epsilon", "low", "high"), [(0, 0, 0), (0.5, 4800, 5200), (1, 10**4, 10**4)]
)
def test_epsilon_is_the_share_of_random_actions(epsilon, low, high):
    # With 100 actions, a random one is the greedy one in a hundredth of the draws.
    q_values, rng = np.arange(100.0), np.random.default_rng(6)
    actions = [run.epsilon_greedy_action(q_values, epsilon, rng) for _ in range(10_000)]
    others = sum(action != 99 for action in actions)
    assert 0.99 * low - 30 * (epsilon > 0) <= others <= high
    if epsilon == 1:
        counts = np.bincount(actions, minlength=100)
        assert abs(counts - 100).max() < 5 * 10  # binomial: mean 100, deviation 10


def exploring_actions(count, max_repeat, epsilon=1.0, n_actions=10**6):
    """The actions of so many steps; action 0 is the greedy one."""
    settings = run.Settings(epsilon=epsilon, max_repeat=max_repeat)
    exploration, q_values = run.Exploration(settings, np.random.default_rng(6)), np.zeros(n_actions)
    return np.array([exploration.action(q_values, step) for step in range(count)])


def test_the_durations_of_random_actions_follow_the_zeta_distribution():
    most = 8
    actions = exploring_actions(50_000, max_repeat=most)
    ends = np.flatnonzero(np.diff(actions))  # of a million actions, none follows itself
    durations = np.diff(ends)
    counts = np.bincount(durations, minlength=most + 1)[1:]
    shares = 1 / np.arange(1, most + 1) ** 2 / zeta(2)
    shares[-1] = 1 - shares[:-1].sum()  # what would last longer is cut
    assert chisquare(counts, shares * len(durations)).pvalue > 0.01
    assert chisquare(counts, np.full(most, len(durations) / most)).pvalue < 1e-9


def test_a_random_action_starts_as_often_as_epsilon_says_and_lasts():
    actions = exploring_actions(100_000, max_repeat=100, epsilon=0.02, n_actions=10**4)
    started = np.count_nonzero(np.diff(actions) * actions[1:])
    decisions = np.count_nonzero(actions == 0) + started
    assert 0.018 < started / decisions < 0.022
    mean = sum(min(n, 100) / n**2 for n in range(1, 10**5)) / zeta(2)
    assert np.count_nonzero(actions) / started == pytest.approx(mean, rel=0.2)


def test_actions_that_last_one_step_are_epsilon_greedy_ones():
    rng = np.random.default_rng(6)
    expected = [run.epsilon_greedy_action(np.zeros(10**6), 0.3, rng) for _ in range(1000)]
    assert exploring_actions(1000, max_repeat=1, epsilon=0.3).tolist() == expected


def test_epsilon_falls_linearly_and_stays():
    settings = SimpleNamespace(epsilon=0.01, initial_epsilon=0.11, epsilon_decay_steps=1000)
    epsilons = [run.epsilon_at(step, settings) for step in (0, 250, 500, 1000, 5000)]
    assert epsilons == pytest.approx([0.11, 0.085, 0.06, 0.01, 0.01])
    settings.epsilon_decay_steps = 0
    assert run.epsilon_at(1, settings) == 0.01


@pytest.mark.parametrize(("n_step", "steps"), [(1, 6000), (3, 4000)])
def test_a_corridor_is_learned_to_within_one_percent(train, n_step, steps):
    folder, trained = train(
        env="Corridor-v0", seed=1, name="corridor", max_steps=steps, train_start=500, gamma=0.9,
        learning_rate=0.002, target_update_every=100, epsilon=1.0 if n_step == 1 else 0.0,
        n_step=n_step, eval_every=2000, eval_steps=500, snapshot_every=0,
    )  # fmt: skip
    env = make_environment("Corridor-v0")
    weights = load_weights(folder / f"corridor-{steps}.h5", env)
    learned = relu_network(weights)(np.eye(Corridor.cells, dtype=np.float32))
    exact = Corridor.exact_q_values(0.9)
    if n_step == 1:
        np.testing.assert_allclose(learned, exact, rtol=0.01)
    assert (learned.argmax(axis=1) == exact.argmax(axis=1)).all()
    assert trained.progress.best_average > 0.8
