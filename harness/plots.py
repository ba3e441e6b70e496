"""Pictures of what was learned, for TensorBoard: the value function and the policy.

Matplotlib takes a third of a second to import, so import this module only to draw.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imsave

from harness.arrays import Array
from harness.environments import MOST_BOUND, names

# TensorBoard shows every picture 350 pixels wide and doesn't smooth when it scales: pictures of
# another width would lose thin lines, such as minus signs.
SIZE = 350, 260  # width and height in pixels
DPI = 80  # makes Matplotlib's default fonts 11 and 13 pixels high
PLOT = 70, 46, 184, 184  # left, bottom, width and height in pixels
COLOUR_BAR = 262, 46, 13, 184
GRID = 92  # the plots show GRID * GRID states, 2 * 2 pixels each
# Okabe and Ito's colours, which colour-blind people can tell apart, with grey instead of black.
COLOURS = ["#0072b2", "#dddddd", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442"]


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Inside the `with`, a user's matplotlibrc changes nothing of what is drawn."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def draw_pictures(env: Any, q_function: Callable[[Array], Array]) -> dict[str, bytes]:
    """Draw the value function and the policy over all states of two observed numbers.

    Args:
        env: gym environment; its observation space gives the limits of the axes.
        q_function: maps observations, float32 (batch, 2), to Q values, (batch, n_actions).

    Returns:
        dict of PNG files, bytes, of SIZE pixels: `value_function`, the largest Q value of each
        state, and `policy`, the action that has it. Empty unless the environment has exactly two
        observed numbers, both bounded, and all the Q values are finite.
    """
    low = np.asarray(env.observation_space.low, np.float64)
    high = np.asarray(env.observation_space.high, np.float64)
    if low.shape != (2,) or not ((low > -MOST_BOUND) & (low < high) & (high < MOST_BOUND)).all():
        return {}
    cells = low + (np.arange(GRID)[:, None] + 0.5) / GRID * (high - low)
    states = np.stack(np.meshgrid(*cells.T), axis=-1, dtype=np.float32)
    q_values = np.asarray(q_function(states.reshape(-1, 2)), np.float64).reshape(GRID, GRID, -1)
    if not np.isfinite(q_values).all():
        return {}
    observations, actions = names(env)
    extent = (low[0], high[0], low[1], high[1])
    values = q_values.max(axis=-1)
    levels = np.unique(np.linspace(values.min(), values.max(), 12))
    with default_style():
        value_plot = empty_plot("largest Q value", extent, observations)
        policy_plot = empty_plot("greedy action", extent, observations, actions)
        return {
            "value_function": png(value_plot, values, levels),
            "policy": png(policy_plot, q_values.argmax(axis=-1)),
        }


class Plot(NamedTuple):
    """A plot as it is before its values are drawn.

    Attributes:
        canvas: what Matplotlib draws on.
        pixels: a copy of the canvas, without the colour bar and the image's values.
        image: the AxesImage that the values go to.
    """

    canvas: FigureCanvasAgg
    pixels: Any
    image: AxesImage


@functools.lru_cache(maxsize=2)  # drawing text is slow, so later evaluations reuse both plots
def empty_plot(
    title: str,
    extent: tuple[float, float, float, float],
    axis_names: tuple[str, ...],
    actions: tuple[str, ...] = (),
) -> Plot:
    """Draw what stays the same for all values.

    Args:
        extent: the least and the largest value of the horizontal axis, then of the vertical one.
        actions: names beside the colour bar; without them, it has numbers.
    """
    width, height = SIZE
    figure = Figure((width / DPI, height / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes(shares(PLOT), title=title)
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    axes.yaxis.set_label_coords(-0.29, 0.5)
    image = axes.imshow(np.zeros((GRID, GRID)), origin="lower", extent=extent, aspect="auto")
    image.set_interpolation("nearest")  # by default, Matplotlib may blend neighbouring colours
    axes.locator_params(nbins=5)
    axes.ticklabel_format(scilimits=(-3, 4))  # longer numbers would run into the axis label
    bar_axes = figure.add_axes(shares(COLOUR_BAR), animated=True)  # left to `png`
    bar = figure.colorbar(image, bar_axes)
    if actions:
        image.set(cmap=action_colours(len(actions)), clim=(-0.5, len(actions) - 0.5))
        ticks = range(0, len(actions), -(-len(actions) // 12))  # there is room for 12 names
        bar.set_ticks(ticks, labels=[actions[tick] for tick in ticks])
    canvas.draw()
    return Plot(canvas, canvas.copy_from_bbox(figure.bbox), image)


def shares(box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """A box in pixels as Matplotlib takes it: in shares of a picture's width and height."""
    left, bottom, box_width, box_height = box
    width, height = SIZE
    return left / width, bottom / height, box_width / width, box_height / height


def action_colours(n_actions: int) -> Colormap:
    """A colour map of `n_actions` colours."""
    if n_actions > len(COLOURS):
        return colormaps["viridis"].resampled(n_actions)
    return ListedColormap(COLOURS[:n_actions])


def png(
    plot: Plot, values: npt.NDArray[Any], levels: Sequence[float] | npt.NDArray[Any] = ()
) -> bytes:
    """Fill a plot with (GRID, GRID) values and contour lines at `levels`; returns a PNG file."""
    canvas, pixels, image = plot
    axes, bar_axes = canvas.figure.axes
    image.set_data(values)
    for contours in axes.collections:
        contours.remove()
    if len(levels):
        image.set_clim(levels[0], levels[-1])
    if len(levels) > 2:
        axes.contour(
            values,
            levels[1:-1],
            origin="lower",
            extent=image.get_extent(),
            colors="black",
            linestyles="solid",
            linewidths=0.5,
        )
    canvas.restore_region(pixels)
    for artist in (image, *axes.collections, *axes.spines.values(), bar_axes):
        axes.draw_artist(artist)
    content = io.BytesIO()
    imsave(content, canvas.buffer_rgba(), format="png")
    return content.getvalue()
