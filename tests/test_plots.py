"""The pictures of the value function and the policy, and of a run at a glance."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from harness import plots
from harness.environments import make_environment

LEFT, BOTTOM, PLOT_WIDTH, PLOT_HEIGHT = plots.PLOT
BAR_END = LEFT + PLOT_WIDTH + 8 + plots.BAR_WIDTH + 1
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


def test_the_pictures_show_the_environments_limits_and_names(car):
    low, high = car.observation_space.low, car.observation_space.high
    policy, unnamed, wider = (
        drawn(env, waves())["policy"]
        for env in (car, environment(low, high), environment(2 * low, high, name="MountainCar"))
    )
    for margin in np.s_[-BOTTOM:], np.s_[:, :LEFT], np.s_[:, BAR_END:]:
        assert not np.array_equal(policy[margin], unnamed[margin])
    assert not np.array_equal(policy[-BOTTOM:], wider[-BOTTOM:])
    values, others = (drawn(car, waves(scale=scale))["value_function"] for scale in (1.0, -70.0))
    assert not np.array_equal(values[:, BAR_END:], others[:, BAR_END:])


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
    usual = plots.draw_pictures(car, waves())
    with matplotlib.rc_context(style):
        assert plots.draw_pictures(car, waves()) == usual
        assert {name: matplotlib.rcParams[name] for name in style} == style


def run_of(command="--preset tuned --max-steps 30000 --seed 0", **changes):
    """The progress and the settings of a real run, and its environment."""
    run = json.loads((Path(__file__).parent / "histories.json").read_text())[command]
    rows = run["evaluations"]
    best = max(rows, key=lambda row: row[3])
    progress = {
        "step": rows[-1][0],
        "evaluations": rows,
        "episode_steps": run["episode_steps"],
        "episode_returns": run["episode_returns"],
        "best_step": best[0],
        "best_average": best[3],
        "least_reward": run["rewards"][0],
        "largest_reward": run["rewards"][1],
        "diagnosis": [],
    }
    settings = SimpleNamespace(**run["settings"], largest_gamma=run["settings"]["gamma"])
    return SimpleNamespace(**{**progress, **changes}), settings, make_environment(settings.env)


def figure_of(*run):
    """The figure of a run, and its axes."""
    with plots.default_style():
        figure = plots.run_figure(*run, plots.learned_values(run[-1], waves()))
    return figure, figure.axes


def picture_in(path):
    return Image.open(io.BytesIO(path.read_bytes()))


def labelled(axes):
    return {artist.get_label(): artist for artist in (*axes.lines, *axes.collections)}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_run_at_a_glance_is_a_small_file_written_whole(tmp_path):
    plots.draw_run(tmp_path / "run.png", *run_of(), waves())
    assert os.listdir(tmp_path) == ["run.png"]
    assert (tmp_path / "run.png").stat().st_size < 150_000
    picture = picture_in(tmp_path / "run.png")
    assert picture.size == plots.RUN_SIZE
    pixels = np.asarray(picture.convert("RGB"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


def test_many_episodes_cost_neither_room_nor_time(tmp_path):
    returns = np.random.default_rng(0).uniform(-200, 0, 7000)
    many = {"episode_steps": [4 * n for n in range(7000)], "episode_returns": returns.tolist()}
    _, (curve, *_) = figure_of(*run_of(**many))
    assert len(labelled(curve)["training episode"].get_xdata()) == 1167
    plots.draw_run(tmp_path / "run.png", *run_of(**many), waves())
    assert (tmp_path / "run.png").stat().st_size < 150_000


def test_the_learning_curve_shows_evaluations_episodes_the_solved_line_and_the_best():
    progress, settings, env = run_of()
    figure, (curve, *_) = figure_of(progress, settings, env)
    lines, rows = labelled(curve), np.array(progress.evaluations)
    assert np.array_equal(lines["evaluation: mean, middle half"].get_xydata(), rows[:, [0, 3]])
    (band,) = curve.collections
    edges = {tuple(point) for path in band.get_paths() for point in path.vertices}
    assert {*map(tuple, rows[:, [0, 4]]), *map(tuple, rows[:, [0, 5]])} <= edges
    episodes = lines["training episode"].get_xydata()
    assert np.array_equal(episodes.T, [progress.episode_steps, progress.episode_returns])
    assert list(lines["solved: -110"].get_ydata()) == [-110, -110]
    assert lines["best: -101.2 at step 23 000"].get_xydata().tolist() == [[23000, -101.25]]
    assert legend(curve) == [label for label in lines if not label.startswith("_")]
    assert "MountainCar-v0, --preset tuned, seed 0: 30 000 steps" in figure.get_suptitle()


def test_q_values_are_shown_against_what_is_possible():
    progress, settings, env = run_of()
    _, (_, q_values, *_) = figure_of(progress, settings, env)
    line = labelled(q_values)["avg_max_q_value"]
    assert np.array_equal(line.get_ydata(), np.array(progress.evaluations)[:, 6])
    (span,) = q_values.patches
    assert (span.get_y(), span.get_y() + span.get_height()) == pytest.approx((-500, 0))
    assert legend(q_values) == ["possible: -500 to 0", "avg_max_q_value"]
    assert q_values.get_yscale() == "linear"


def test_absurd_q_values_leave_the_others_to_be_seen():
    command = "--preset tuned --max-steps 30000 --seed 1 --learning-rate 10"
    progress, settings, env = run_of(command)
    assert min(row[6] for row in progress.evaluations) < -800_000
    figure, (_, q_values, *_) = figure_of(progress, settings, env)
    figure.canvas.draw()
    last = q_values.transData.transform([0, progress.evaluations[-1][6]])[1]
    first = q_values.transData.transform([0, progress.evaluations[0][6]])[1]
    assert first - last > 30  # pixels


def test_what_is_learned_of_two_numbers_is_shown_and_nothing_of_more():
    _, axes = figure_of(*run_of())
    assert [one.get_title() for one in axes if one.get_title()] == [
        "largest Q value",
        "greedy action",
    ]
    command = "--preset tuned --max-steps 30000 --seed 0 --env CartPole-v1"
    _, axes = figure_of(*run_of(command))
    assert len(axes) == 2


def test_what_goes_wrong_is_written_below(tmp_path):
    lines = ["the policy fell back: it costs $5 or $6; try --a", "long " * 60]
    figure, _ = figure_of(*run_of(diagnosis=lines))
    texts = [text.get_text() for text in figure.texts]
    assert lines[0] in texts and " ".join(reversed(texts)).count("long") == 60
    plots.draw_run(tmp_path / "run.png", *run_of(diagnosis=lines), waves())
    assert picture_in(tmp_path / "run.png").size[1] > plots.RUN_SIZE[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluations": [], "best_average": -np.inf},
        {"evaluations": [[1000, 1, 0, *[np.nan] * 4, 1.0]], "best_average": -np.inf},
        {"evaluations": [[1000, 1, 9, -200, -200, -200, np.inf, 1.0]]},
        {"episode_steps": [], "episode_returns": []},
        {"least_reward": np.inf, "largest_reward": -np.inf},
        {"least_reward": 0.0, "largest_reward": 0.0},
    ],
)
def test_a_run_of_which_little_is_known_can_be_drawn(tmp_path, changes):
    progress, settings, env = run_of(**changes)
    env.reward_threshold = settings.preset = None
    plots.draw_run(tmp_path / "run.png", progress, settings, env, waves())
    assert picture_in(tmp_path / "run.png").size == plots.RUN_SIZE


def test_curves_can_be_told_apart_without_colours_and_leave_gaps():
    with plots.default_style():
        figure = plots.new_figure(400, 300, 80)
        axes = plots.add_axes(figure, plots.Box(50, 40, 300, 200))
        for color, marker in plots.CURVES:
            averages = [1.0, np.nan, 2.0]
            plots.plot_curve(axes, [1, 2, 3], averages, None, None, marker, color, marker)
        figure.canvas.draw()
    assert len({line.get_marker() for line in axes.lines}) == len(plots.CURVES) == 7
    assert not axes.collections
    assert np.isnan(axes.lines[0].get_ydata()[1])


def test_a_picture_that_fails_is_one_warning(capsys, tmp_path):
    def fail(number):
        raise RuntimeError(f"no font {tmp_path}\nand more")

    assert plots.attempt_picture(fail, 1) is None
    assert plots.attempt_picture(fail, 2) is None
    message = f"warning: a picture couldn't be drawn: no font {tmp_path}\n"
    assert capsys.readouterr().out == message
    assert plots.attempt_picture(len, "abc") == 3
    run = run_of()
    plots.attempt_picture(plots.draw_run, tmp_path / "missing" / "run.png", *run, waves())
    assert "missing" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        plots.attempt_picture(interrupt)


def interrupt():
    raise KeyboardInterrupt


PROGRAM = """
import os, sys
sys.path[:0] = sys.argv[1:]
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from harness import plots
from harness.environments import make_environment

def q_function(observations):
    return observations @ np.ones((2, 3), np.float32)

assert "matplotlib" not in sys.modules
before = dict(os.environ)
env = make_environment("MountainCar-v0")
pictures = plots.attempt_picture(plots.draw_pictures, env, q_function)
row = [1000, 5, 10, -200.0, -200.0, -200.0, 0.5, 1.0]
progress = SimpleNamespace(
    step=1000, evaluations=[row], episode_steps=[200], episode_returns=[-200.0], best_step=1000,
    best_average=-200.0, least_reward=-1.0, largest_reward=-1.0, diagnosis=[],
)
settings = SimpleNamespace(env="MountainCar-v0", preset="tuned", seed=1, largest_gamma=0.99)
plots.attempt_picture(plots.draw_run, Path("run.png"), progress, settings, env, q_function)
changed = dict(set(os.environ.items()) ^ set(before.items()))
assert set(changed) <= {"PYGAME_HIDE_SUPPORT_PROMPT"}, changed  # gym sets it
print("drawn" if pictures else "not drawn", os.path.exists("run.png"))
"""


def drawn_elsewhere(tmp_path, *folders, **variables):
    """What a process of its own prints that draws a run's pictures in an empty folder."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", PROGRAM, *map(str, folders), str(root)]
    env = {**os.environ, **variables}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "nonsense", "qtagg"]
)
def test_no_backend_is_needed(tmp_path, backend):
    assert drawn_elsewhere(tmp_path, MPLBACKEND=backend) == "drawn True\n"


def test_the_users_own_backend_is_the_users_again_afterwards(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from harness import plots\n"
        "with plots.default_style(): pass\n"
        "import matplotlib; print(matplotlib.rcParams['backend'])"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent.parent)]
    env = {**os.environ, "MPLBACKEND": "svg"}
    assert subprocess.check_output(command, cwd=tmp_path, env=env, text=True) == "svg\n"


def test_a_matplotlib_that_does_not_work_costs_the_pictures_alone(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "matplotlib.py").write_text("raise ImportError('libfreetype.so.6: not found')")
    assert drawn_elsewhere(tmp_path, folder) == (
        "warning: a picture couldn't be drawn: libfreetype.so.6: not found\nnot drawn False\n"
    )
