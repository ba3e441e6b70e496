"""The pictures of the value function and the policy."""

import io
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from harness import plots
from harness.environments import make_environment

LEFT, BOTTOM, PLOT_WIDTH, PLOT_HEIGHT = plots.PLOT
BAR_END = plots.COLOUR_BAR[0] + plots.COLOUR_BAR[2] + 1
TOP = plots.SIZE[1] - BOTTOM - PLOT_HEIGHT

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


def waves(n_actions=3, scale=1.0):
    """A Q function whose values and best actions vary over any range of observations."""

    def q_function(observations):
        phases = np.linspace(0, 9, len(observations))[:, None] + 2 * np.arange(n_actions)
        return (scale * np.sin(phases)).astype(np.float32)

    return q_function


def drawn(env, q_function):
    """The pictures as arrays, uint8 (height, width, 3); rows go downwards."""
    return {
        tag: np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        for tag, png in plots.draw_pictures(env, q_function).items()
    }


def inside(picture, across, up):
    """The pixel at two shares, from 0 to 1, of the plot's width and height."""
    row = TOP + round((1 - up) * PLOT_HEIGHT)
    return picture[row, LEFT + round(across * PLOT_WIDTH)]


def test_the_pictures_have_the_axes_the_right_way_round_and_show_the_best_action(car):
    def left_is_best_when_fast_and_right_of_the_middle(observations):
        reached = observations.min(axis=0), observations.max(axis=0)
        assert np.allclose(reached, (car.observation_space.low, car.observation_space.high), 0.02)
        position, velocity = observations.T
        left = (position > -0.3) & (velocity > 0)
        return np.stack([2 * left, 0.5 * left, ~left], axis=1).astype(np.float32)

    pictures = drawn(car, left_is_best_when_fast_and_right_of_the_middle)
    left, right = (tuple(np.round(255 * np.array(to_rgb(plots.COLOURS[i])))) for i in (0, 2))
    largest = sum(inside(pictures["value_function"], 0.75, 0.75).astype(int))
    assert tuple(inside(pictures["policy"], 0.75, 0.75)) == left
    for across, up in ((0.25, 0.75), (0.25, 0.25), (0.75, 0.25)):
        assert tuple(inside(pictures["policy"], across, up)) == right
        assert largest > 1.5 * sum(inside(pictures["value_function"], across, up).astype(int))


def test_the_pictures_show_the_environments_limits_and_names_and_nothing_of_earlier_ones(car):
    low, high = car.observation_space.low, car.observation_space.high
    first = plots.draw_pictures(car, waves())
    policy, unnamed, wider = (
        drawn(env, waves())["policy"]
        for env in (car, environment(low, high), environment(2 * low, high, name="MountainCar"))
    )
    for margin in np.s_[-BOTTOM:], np.s_[:, :LEFT], np.s_[:, BAR_END:]:
        assert not np.array_equal(policy[margin], unnamed[margin])
    assert not np.array_equal(policy[-BOTTOM:], wider[-BOTTOM:])
    values, others = (drawn(car, waves(scale=scale))["value_function"] for scale in (1.0, -70.0))
    assert not np.array_equal(values[:, BAR_END:], others[:, BAR_END:])
    assert plots.draw_pictures(car, waves()) == first


@pytest.mark.parametrize(("n_actions", "n_names"), [(1, 1), (8, 8), (9, 9), (12, 12), (30, 10)])
def test_every_action_has_its_own_colour_and_no_two_names_overlap(n_actions, n_names):
    def each_action_in_turn(observations):
        return np.eye(n_actions)[np.arange(len(observations)) * n_actions // len(observations)]

    picture = drawn(environment([0, 0], [1, 1], n_actions), each_action_in_turn)["policy"]
    colours = {tuple(inside(picture, 0.5, (i + 0.5) / n_actions)) for i in range(n_actions)}
    assert len(colours) == n_actions
    after_the_ticks = picture[:, BAR_END + 8 :]
    written_on = (after_the_ticks < 200).any(axis=(1, 2))
    assert (np.diff(written_on.astype(int)) == 1).sum() == n_names


@pytest.mark.parametrize(
    ("low", "high", "n_actions", "scale", "name"),
    [
        ([-1.2, -0.07], [0.6, 0.07], 3, 70.0, "MountainCar"),
        ([-9999, -9999], [9999, 9999], 12, -1e5, "Unnamed"),
        ([-9e5, -0.01], [9e5, 0.01], 13, 1e-5, "Unnamed"),
        ([-1e-3, -9e5], [1e-3, 9e5], 30, 3.4e38, "Unnamed"),
        ([99999, 99999], [100000, 100000], 100, 9e5, "Unnamed"),
    ],
)
def test_nothing_is_cut_off_at_the_edge_of_a_picture(low, high, n_actions, scale, name):
    for picture in drawn(environment(low, high, n_actions, name), waves(n_actions, scale)).values():
        for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
            assert (edge == 255).all()


@pytest.mark.parametrize("size", [1e-45, 7.5, 3.4e38])
def test_values_of_any_size_can_be_drawn_even_if_all_are_the_same(car, size):
    def constant(observations):
        return np.full((len(observations), 3), -size, np.float32)

    for q_function, varies in (constant, False), (waves(scale=size), True):
        picture = drawn(car, q_function)["value_function"]
        plot = picture[TOP + 1 : TOP + PLOT_HEIGHT - 1, LEFT + 1 : LEFT + PLOT_WIDTH - 1]
        assert (len(np.unique(plot.reshape(-1, 3), axis=0)) > 1) == varies


@pytest.mark.parametrize("q_value", [np.nan, np.inf, -np.inf])
def test_q_values_that_are_not_finite_are_not_drawn(car, q_value):
    def q_function(observations):
        return np.append(waves()(observations)[1:], [[0, q_value, 0]], axis=0)

    assert plots.draw_pictures(car, q_function) == {}


@pytest.mark.parametrize(
    "high", [[1.0], [1.0, np.inf], [1.0, 3.4e38], [1e6, 1.0], [1.0, 0.0], [1.0, 1.0, 1.0]]
)
def test_observations_other_than_two_bounded_numbers_are_not_drawn(high):
    assert plots.draw_pictures(environment(np.negative(high), high), None) == {}


def test_a_users_own_style_changes_no_picture_and_stays_as_it_is(car):
    style = {"axes.facecolor": "black", "font.size": 30.0, "image.cmap": "gray"}
    plots.empty_plot.cache_clear()
    usual = plots.draw_pictures(car, waves())
    plots.empty_plot.cache_clear()
    with matplotlib.rc_context(style):
        assert plots.draw_pictures(car, waves()) == usual
        assert {name: matplotlib.rcParams[name] for name in style} == style
