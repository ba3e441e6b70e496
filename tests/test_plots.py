"""The pictures of the value function and the policy."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from harness import plots
from harness.environments import make_environment

LEFT, BOTTOM, PLOT_WIDTH, PLOT_HEIGHT = plots.PLOT
BAR_END = plots.COLOUR_BAR[0] + plots.COLOUR_BAR[2] + 1
TOP = plots.SIZE[1] - BOTTOM - PLOT_HEIGHT
INSIDE = np.s_[TOP + 1 : TOP + PLOT_HEIGHT - 1, LEFT + 1 : LEFT + PLOT_WIDTH - 1]

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def car():
    return make_environment("MountainCar-v0")


def environment(low, high, n_actions=3, name="Unnamed"):
    """As much of an environment as the pictures need."""
    low, high = np.float32(low), np.float32(high)
    return SimpleNamespace(
        observation_space=SimpleNamespace(low=low, high=high, shape=low.shape),
        action_space=SimpleNamespace(n=n_actions),
        spec=SimpleNamespace(name=name),
    )


def waves(n_actions, scale=1.0):
    """A Q function whose values and best actions vary over any range of observations."""

    def q_function(observations):
        phases = np.linspace(0, 9, len(observations))[:, None] + 2 * np.arange(n_actions)
        return (scale * np.sin(phases)).astype(np.float32)

    return q_function


def constant(level, n_actions=3):
    return lambda observations: np.full((len(observations), n_actions), level, np.float32)


def drawn(env, q_function):
    """The pictures as arrays, uint8 (height, width, 3); rows go downwards."""
    return {
        tag: np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        for tag, png in plots.draw_pictures(env, q_function).items()
    }


def inside(picture, across, up):
    """The pixel at two shares, from 0 to 1, of the plot's width and height."""
    row = TOP + round((1 - up) * PLOT_HEIGHT)
    return tuple(picture[row, LEFT + round(across * PLOT_WIDTH)])


def test_both_pictures_are_png_files_of_the_width_that_tensorboard_shows(car):
    pictures = plots.draw_pictures(car, waves(3))
    assert set(pictures) == {"value_function", "policy"}
    for png in pictures.values():
        picture = Image.open(io.BytesIO(png))
        assert picture.format == "PNG"
        assert picture.size == plots.SIZE
        assert picture.width == 350


def test_the_policy_is_drawn_with_the_axes_the_right_way_round(car):
    def left_when_fast_and_right_of_the_middle(observations):
        position, velocity = observations.T
        left = (position > -0.3) & (velocity > 0)
        return np.stack([left, ~left * 0.5, ~left], axis=1).astype(np.float32)

    picture = drawn(car, left_when_fast_and_right_of_the_middle)["policy"]
    left, right = (tuple(np.round(255 * np.array(to_rgb(plots.COLOURS[i])))) for i in (0, 2))
    assert inside(picture, 0.75, 0.75) == left
    for across, up in ((0.25, 0.75), (0.25, 0.25), (0.75, 0.25)):
        assert inside(picture, across, up) == right


@pytest.mark.parametrize(("observed", "brightest"), [(0, (0.95, 0.05)), (1, (0.05, 0.95))])
def test_the_value_function_is_brightest_where_the_largest_q_value_is(car, observed, brightest):
    def q_function(observations):
        return np.stack([observations[:, observed], np.full(len(observations), -9)], axis=1)

    picture = drawn(car, q_function)["value_function"].astype(int)
    assert sum(inside(picture, *brightest)) > 1.5 * sum(inside(picture, *brightest[::-1]))


def test_the_states_reach_from_the_low_to_the_high_bounds():
    def q_function(observations):
        assert observations.dtype == np.float32
        seen.append(observations)
        return waves(3)(observations)

    seen = []
    drawn(environment([-2, 10], [3, 20]), q_function)
    (states,) = seen
    assert states.shape == (plots.GRID**2, 2)
    cell = np.array([5, 10]) / plots.GRID
    assert np.allclose(states.min(axis=0), [-2, 10] + cell / 2)
    assert np.allclose(states.max(axis=0), [3, 20] - cell / 2)


def test_a_later_evaluation_leaves_nothing_in_the_pictures_of_the_next(car):
    plots.empty_plot.cache_clear()
    first = plots.draw_pictures(car, waves(3))
    later = plots.draw_pictures(car, waves(3, scale=-70.0))
    assert later["value_function"] != first["value_function"]
    assert later["policy"] != first["policy"]
    plots.draw_pictures(car, constant(-7.5))
    assert plots.draw_pictures(car, waves(3)) == first


def test_the_plots_are_built_once_for_all_evaluations(car):
    plots.empty_plot.cache_clear()
    for scale in (1.0, 2.0, 3.0):
        plots.draw_pictures(car, waves(3, scale))
    assert plots.empty_plot.cache_info().misses == 2


def test_the_colour_bar_follows_the_values(car):
    small, large = (drawn(car, waves(3, scale))["value_function"] for scale in (1.0, 1000.0))
    assert inside(small, 0.5, 0.5) == inside(large, 0.5, 0.5)
    assert not np.array_equal(small[:, BAR_END:], large[:, BAR_END:])


def test_another_environment_gets_a_plot_of_its_own(car):
    low, high = car.observation_space.low, car.observation_space.high
    before = plots.draw_pictures(car, waves(3))
    policy = drawn(car, waves(3))["policy"]
    for other in (environment(low, high), environment(2 * low, high, name="MountainCar")):
        other_policy = drawn(other, waves(3))["policy"]
        assert np.array_equal(other_policy[INSIDE], policy[INSIDE])
        assert not np.array_equal(other_policy, policy)
    assert plots.draw_pictures(car, waves(3)) == before


def test_the_axes_and_the_actions_have_the_environments_names(car):
    bounds = car.observation_space.low, car.observation_space.high
    named, unnamed = (drawn(env, waves(3))["policy"] for env in (car, environment(*bounds)))
    below_the_plot, left_of_it, right_of_it = np.s_[-BOTTOM:], np.s_[:, :LEFT], np.s_[:, BAR_END:]
    for part in (below_the_plot, left_of_it, right_of_it):
        assert not np.array_equal(named[part], unnamed[part])


@pytest.mark.parametrize(("n_actions", "n_names"), [(1, 1), (3, 3), (12, 12), (13, 7), (30, 10)])
def test_no_two_names_of_actions_overlap(n_actions, n_names):
    picture = drawn(environment([0, 0], [1, 1], n_actions), waves(n_actions))["policy"]
    after_the_ticks = picture[:, BAR_END + 8 :]
    written_on = (after_the_ticks < 200).any(axis=(1, 2))
    assert (np.diff(written_on.astype(int)) == 1).sum() == n_names


@pytest.mark.parametrize("n_actions", [1, 2, 8, 9, 30])
def test_every_action_has_a_colour_of_its_own(n_actions):
    def each_action_in_turn(observations):
        best = np.arange(len(observations)) * n_actions // len(observations)
        return np.eye(n_actions)[best]

    picture = drawn(environment([0, 0], [1, 1], n_actions), each_action_in_turn)["policy"]
    colours = {inside(picture, 0.5, (i + 0.5) / n_actions) for i in range(n_actions)}
    assert len(colours) == n_actions


@pytest.mark.parametrize(
    ("low", "high", "n_actions", "scale"),
    [
        ([-1.2, -0.07], [0.6, 0.07], 3, 70.0),
        ([-9999, -9999], [9999, 9999], 12, -1e5),
        ([-9e5, -0.01], [9e5, 0.01], 13, 1e-5),
        ([-1e-3, -9e5], [1e-3, 9e5], 30, 3.4e38),
        ([99999, 99999], [100000, 100000], 100, 9e5),
    ],
)
def test_nothing_is_cut_off_at_the_edge_of_a_picture(low, high, n_actions, scale):
    for name in ("MountainCar", "Unnamed") if n_actions == 3 else ("Unnamed",):
        env = environment(low, high, n_actions, name)
        for picture in drawn(env, waves(n_actions, scale)).values():
            for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
                assert (edge == 255).all()


@pytest.mark.parametrize("level", [0.0, -7.5, 1e30, 3.4e38])
def test_a_constant_value_function_can_be_drawn(car, level):
    picture = drawn(car, constant(level))["value_function"]
    assert len(np.unique(picture[INSIDE].reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("change", [1e-45, 1e-30, 1e30, 3.4e38])
def test_tiny_and_huge_differences_of_value_can_be_drawn(car, change):
    picture = drawn(car, waves(3, change))["value_function"]
    assert len(np.unique(picture[INSIDE].reshape(-1, 3), axis=0)) > 1


@pytest.mark.parametrize("q_value", [np.nan, np.inf, -np.inf])
def test_q_values_that_are_not_finite_are_not_drawn(car, q_value):
    def q_function(observations):
        q_values = waves(3)(observations)
        q_values[-1, 0] = q_value
        return q_values

    assert plots.draw_pictures(car, q_function) == {}


@pytest.mark.parametrize(
    "high", [[1.0], [1.0, np.inf], [1.0, 3.4e38], [1e6, 1.0], [1.0, 0.0], [1.0, 1.0, 1.0]]
)
def test_observations_other_than_two_bounded_numbers_are_not_drawn(high):
    assert plots.draw_pictures(environment(np.negative(high), high), None) == {}
