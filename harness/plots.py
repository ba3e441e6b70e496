"""Pictures of a run: what was learned, for TensorBoard, and the run at a glance, `NAME.png`.

Matplotlib takes a third of a second to import and can fail in many ways, so it is imported only
by what draws. Call that through `attempt_picture`.
"""

import contextlib
import functools
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.arrays import Array
from harness.diagnosis import ABSURD, possible_q_values
from harness.environments import MOST_BOUND, names
from harness.terminal import log
from harness.whole_files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SIZE = 350, 260  # width and height in pixels: TensorBoard shows every picture 350 pixels wide
DPI = 80  # makes Matplotlib's default fonts 11 and 13 pixels high
RUN_SIZE = 1200, 860  # of NAME.png, without the lines below its plots
RUN_DPI = 100
LINE_HEIGHT, LINE_WIDTH = 18, 155  # of those lines: pixels, characters
GRID = 100  # GRID * GRID states are shown
# Okabe and Ito's colours, which colour-blind people can tell apart, with grey instead of black.
COLOURS = ["#0072b2", "#dddddd", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442"]
BLUE, _, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW = COLOURS
# The colours and markers of curves that are drawn against each other.
CURVES = list(zip((BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, "black"), "os^DvPX", strict=True))
MOST_EPISODES = 1200  # of training, as dots; of more, every second is left out, and so on
MOST_MARKED = 40  # evaluations of a curve, each with a marker; of more, now and then one has it


def attempt_picture(draw: Callable[..., Any], *arguments: Any) -> Any:
    """Call `draw(*arguments)`; return what it returns, or None after a warning if it fails.

    A picture is never worth a run: whatever is wrong with Matplotlib, its fonts, its
    configuration or the disk costs that picture, and nothing else. Each warning is given once.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a character without a glyph, for example
            return draw(*arguments)
    except Exception as error:  # of any kind: a backend, a font, a style file
        lines = str(error).splitlines() or [type(error).__name__]
        _warn(f"warning: a picture couldn't be drawn: {textwrap.shorten(lines[0], 150)}")
        return None


@functools.cache  # the next snapshot's picture mostly fails like the last one
def _warn(line: str) -> None:
    log(line)


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Inside the `with`, Matplotlib draws as if nobody had configured it, and without a screen.

    Neither a matplotlibrc nor MPLBACKEND changes anything, not even a backend that doesn't exist,
    which Matplotlib refuses when it is imported. Afterwards all is as the user wanted it.
    """
    backend = os.environ.get("MPLBACKEND")
    if backend and "matplotlib" not in sys.modules:
        del os.environ["MPLBACKEND"]
        try:
            import matplotlib
        finally:
            os.environ["MPLBACKEND"] = backend
        with contextlib.suppress(ValueError):  # it doesn't exist
            matplotlib.rcParams["backend"] = backend
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


class Box(NamedTuple):
    """A place in a picture, in pixels from its left and lower edges.

    Matplotlib can find places by itself, but that takes as long as all the rest.
    """

    left: int
    bottom: int
    width: int
    height: int


def new_figure(width: int, height: int, dpi: int) -> "Figure":
    """An empty figure of a size in pixels, drawn into memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / dpi, height / dpi), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: "Figure", box: Box) -> "Axes":
    """Empty axes in a place of a figure."""
    width, height = figure.bbox.size
    return figure.add_axes(
        (box.left / width, box.bottom / height, box.width / width, box.height / height)
    )


PLOT = Box(70, 46, 184, 184)  # of TensorBoard's pictures, beside the colour bar
BAR_WIDTH = 13
CURVE = Box(76, 438, 1104, 362)  # of NAME.png


class LearnedValues(NamedTuple):
    """What a network thinks of all states of two observed numbers.

    Attributes:
        q_values: float64 (GRID, GRID, n_actions); the first index is the second number's.
        extent: the least and the largest value of the first number, then of the second.
        observations, actions: their names.
    """

    q_values: npt.NDArray[np.float64]
    extent: tuple[float, float, float, float]
    observations: tuple[str, ...]
    actions: tuple[str, ...]


def learned_values(env: Any, q_function: Callable[[Array], Array]) -> LearnedValues | None:
    """Compute the Q values of a grid of states.

    Args:
        env: gym environment; its observation space gives the limits.
        q_function: maps observations, float32 (batch, 2), to Q values, (batch, n_actions).

    Returns:
        None unless the environment has exactly two observed numbers, both bounded, and all the Q
        values are finite.
    """
    low = np.asarray(env.observation_space.low, np.float64)
    high = np.asarray(env.observation_space.high, np.float64)
    if low.shape != (2,) or not ((low > -MOST_BOUND) & (low < high) & (high < MOST_BOUND)).all():
        return None
    cells = low + (np.arange(GRID)[:, None] + 0.5) / GRID * (high - low)
    states = np.stack(np.meshgrid(*cells.T), axis=-1, dtype=np.float32)
    q_values = np.asarray(q_function(states.reshape(-1, 2)), np.float64).reshape(GRID, GRID, -1)
    if not np.isfinite(q_values).all():
        return None
    return LearnedValues(q_values, (low[0], high[0], low[1], high[1]), *names(env))


def draw_pictures(env: Any, q_function: Callable[[Array], Array]) -> dict[str, bytes]:
    """Draw the value function and the policy, as in `learned_values`, for TensorBoard.

    Returns:
        dict of PNG files, bytes, of SIZE pixels: `value_function`, the largest Q value of each
        state, and `policy`, the action that has it. Empty where there are no `learned_values`.
    """
    values = learned_values(env, q_function)
    if values is None:
        return {}
    pictures = {}
    with default_style():
        for name, draw in (("value_function", draw_value_function), ("policy", draw_policy)):
            figure = new_figure(*SIZE, DPI)
            draw(figure, PLOT, values)
            content = io.BytesIO()
            figure.savefig(content, format="png")
            pictures[name] = content.getvalue()
    return pictures


def draw_value_function(figure: "Figure", box: Box, values: LearnedValues) -> None:
    """Draw the largest Q value of each state."""
    _, bar = _draw_map(figure, box, values, values.q_values.max(axis=-1), "largest Q value")
    bar.ax.locator_params(nbins=7)
    bar.ax.ticklabel_format(scilimits=(-3, 4))


def draw_policy(figure: "Figure", box: Box, values: LearnedValues) -> None:
    """Draw the action with the largest Q value of each state."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    actions = values.q_values.argmax(axis=-1)
    image, bar = _draw_map(figure, box, values, actions, "greedy action")
    n_actions = len(values.actions)
    few = n_actions <= len(COLOURS)
    viridis = colormaps["viridis"].resampled(n_actions)
    image.set(cmap=ListedColormap(COLOURS[:n_actions]) if few else viridis)
    image.set_clim(-0.5, n_actions - 0.5)
    ticks = range(0, n_actions, -(-n_actions // 12))  # there is room for 12 names
    bar.set_ticks(ticks, labels=[values.actions[tick] for tick in ticks])


def _draw_map(
    figure: "Figure", box: Box, values: LearnedValues, cells: npt.NDArray[Any], title: str
) -> tuple["AxesImage", "Colorbar"]:
    axes = add_axes(figure, box)
    axes.set(title=title, xlabel=values.observations[0], ylabel=values.observations[1])
    axes.yaxis.set_label_coords(-52 / box.width, 0.5)
    extent = values.extent
    image = axes.imshow(cells, origin="lower", extent=extent, aspect="auto", interpolation="none")
    axes.locator_params(nbins=5)
    axes.ticklabel_format(scilimits=(-3, 4))  # longer numbers would run into the axis label
    bar_box = box._replace(left=box.left + box.width + 8, width=BAR_WIDTH)
    return image, figure.colorbar(image, add_axes(figure, bar_box))


def draw_run(
    path: Path, progress: Any, settings: Any, env: Any, q_function: Callable[[Array], Array]
) -> None:
    """Draw a run at a glance into a PNG file, written whole or not at all.

    Args:
        progress, settings, env: of the run.
        q_function: of the policy that is evaluated, as in `learned_values`.
    """
    values = learned_values(env, q_function)
    with default_style():
        write_file(path, run_figure(progress, settings, env, values).savefig)


def run_figure(progress: Any, settings: Any, env: Any, values: LearnedValues | None) -> "Figure":
    """A run's learning curve, its Q values, what it has learned and what went wrong.

    Args:
        progress: Progress.
        settings: run.Settings.
        env: Environment.
        values: None where they can't be shown.
    """
    lines = [part for line in progress.diagnosis for part in textwrap.wrap(line, LINE_WIDTH)]
    room = LINE_HEIGHT * len(lines)  # below the plots
    width, height = RUN_SIZE[0], RUN_SIZE[1] + room
    figure = new_figure(width, height, RUN_DPI)
    preset = f", --preset {settings.preset}" if settings.preset else ""
    title = f"{settings.env}{preset}, seed {settings.seed}: {thousands(progress.step)} steps"
    heading = figure.suptitle(title, fontweight="bold", fontsize=13, y=1 - 10 / height)
    heading.set_parse_math(False)
    _draw_learning_curve(figure, CURVE._replace(bottom=CURVE.bottom + room), progress, env)
    below = Box(CURVE.left, room + 48, CURVE.width if values is None else 320, 292)
    _draw_q_values(figure, below, progress, settings.largest_gamma)
    if values is not None:
        draw_value_function(figure, below._replace(left=480, width=225), values)
        draw_policy(figure, below._replace(left=865, width=225), values)
    for number, line in enumerate(reversed(lines)):
        y = (8 + LINE_HEIGHT * number) / height
        figure.text(CURVE.left / width, y, line, color=VERMILION, fontsize=10, parse_math=False)
    return figure


def _draw_learning_curve(figure: "Figure", box: Box, progress: Any, env: Any) -> None:
    axes = add_axes(figure, box)
    rows = np.array(progress.evaluations, np.float64).reshape(-1, 8)
    every = -(-len(progress.episode_steps) // MOST_EPISODES) or 1
    axes.plot(
        progress.episode_steps[::every],
        progress.episode_returns[::every],
        linestyle="none",
        marker=".",
        markersize=3,
        color="#999999",
        label="training episode",
        zorder=1,
    )
    steps, averages, lower, upper = rows[:, 0], rows[:, 3], rows[:, 4], rows[:, 5]
    plot_curve(axes, steps, averages, lower, upper, "evaluation: mean, middle half", BLUE)
    plot_threshold(axes, env.reward_threshold)
    if np.isfinite(progress.best_average):
        axes.plot(
            progress.best_step,
            progress.best_average,
            linestyle="none",
            marker="*",
            markersize=17,
            color=ORANGE,
            markeredgecolor="black",
            label=f"best: {progress.best_average:.1f} at step {thousands(progress.best_step)}",
            zorder=4,
        )
    axes.set_ylabel("return")
    label_steps(axes)
    _add_legend(axes)


def _draw_q_values(figure: "Figure", box: Box, progress: Any, gamma: float) -> None:
    axes = add_axes(figure, box)
    rows = np.array(progress.evaluations, np.float64).reshape(-1, 8)
    q_values = rows[:, 6]
    possible = possible_q_values(progress.least_reward, progress.largest_reward, gamma)
    if possible is not None:
        low, high = possible
        label = f"possible: {low:.4g} to {high:.4g}"
        axes.axhspan(low, high, color=GREEN, alpha=0.15, linewidth=0, label=label)
        for bound in possible:
            axes.axhline(bound, color=GREEN, linewidth=1)
        largest = np.nanmax(np.abs(q_values), initial=0.0)
        if ABSURD * (high - low) < largest < np.inf:  # all others would be one line
            axes.set_yscale("symlog", linthresh=high - low)
            powers = 10.0 ** np.arange(np.ceil(np.log10(high - low)), np.log10(largest) + 1)
            axes.set_yticks([*-powers[::-1], low, high, *powers], minor=False)
            axes.set_yticks([], minor=True)
    plot_curve(axes, rows[:, 0], q_values, None, None, "avg_max_q_value", BLUE, "s")
    axes.set_ylabel("return that the network expects")
    label_steps(axes, max(4, 9 * box.width // CURVE.width))
    _add_legend(axes)


def _add_legend(axes: "Axes") -> None:
    """Say above the axes what is drawn in them: there it hides nothing."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        frameon=False,
        borderaxespad=0.2,
        columnspacing=1.5,
        handletextpad=0.5,
    )


def plot_curve(
    axes: "Axes",
    steps: Any,
    averages: Any,
    lower: Any,
    upper: Any,
    label: str,
    color: str,
    marker: str = "o",
) -> None:
    """Draw a learning curve with a band around it.

    Args:
        steps, averages: (n,) numbers; NaN leaves a gap.
        lower, upper: (n,), the band's edges, or None for no band.
        color, marker: such as those of CURVES, which can be told apart without colours.
    """
    if lower is not None and upper is not None:
        axes.fill_between(steps, lower, upper, color=color, alpha=0.25, linewidth=0, zorder=2)
    axes.plot(
        steps,
        averages,
        color=color,
        marker=marker,
        markersize=4,
        markevery=max(1, len(steps) // MOST_MARKED),
        label=label,
        zorder=3,
    )


def plot_threshold(axes: "Axes", threshold: float | None) -> None:
    """Draw the mean return that solves an environment, where there is one."""
    if threshold is not None:
        label = f"solved: {threshold:g}"
        axes.axhline(threshold, color="black", linestyle="--", linewidth=1.2, label=label)


def label_steps(axes: "Axes", most_ticks: int = 9) -> None:
    """Let the horizontal axis count steps, in thousands that can be read."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(most_ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: thousands(step)))
    axes.grid(alpha=0.3)


def thousands(number: float) -> str:
    """A number with its thousands apart: 120 000."""
    return f"{number:,.0f}".replace(",", " ")
