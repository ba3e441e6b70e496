"""What people look at: TensorBoard, pictures, the window, and the terminal."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import loggers
import pictures
import run
import see
import viewer
from arguments import UsageError
from environments import make_environment

PROJECT = Path(run.__file__).parent
SHORT = "--max-steps 2500 --eval-every 1000 --eval-steps 400 --log-every 400 --seed 1"
EIGHT = {
    *("episode_return", "episode_steps", "episode_seconds", "steps_per_second"),
    *("memory_used", "loss", "episode_return_avg", "avg_max_q_value"),
}
GOING_ON = SimpleNamespace(number=0)


def train(*arguments):
    """Train in the current folder; return what was printed, as a pipe gets it."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        assert run.main([*SHORT.split(), *arguments]) == 0
    assert stderr.getvalue() == ""
    return stdout.getvalue()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of two short runs, and what the first printed: car-log, pole-log."""
    folder = tmp_path_factory.mktemp("runs")
    with contextlib.chdir(folder):
        printed = train("--name", "car")
        train("--name", "pole", "--env", "CartPole-v1")
    return SimpleNamespace(folder=folder, car=folder / "car-log", printed=printed)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), {"images": 0})
    return accumulator.Reload()


# TensorBoard


def test_each_evaluation_draws_the_value_function_and_the_policy(runs):
    accumulator = events(runs.car)
    assert set(accumulator.Tags()["images"]) == {"value_function", "policy"}
    for tag in ("value_function", "policy"):
        drawn = accumulator.Images(tag)
        assert [event.step for event in drawn] == [1000, 2000]
        for event in drawn:
            picture = Image.open(io.BytesIO(event.encoded_image_string))
            assert picture.format == "PNG"
            assert picture.size == pictures.SIZE == (event.width, event.height)


def test_an_environment_of_more_observed_numbers_gets_no_pictures(runs):
    assert events(runs.folder / "pole-log").Tags()["images"] == []


def test_a_log_folder_has_one_events_file_with_eight_plots(runs):
    assert len(list(runs.car.glob("events*"))) == 1
    assert set(events(runs.car).Tags()["scalars"]) == EIGHT


def test_the_best_evaluation_is_a_point_of_the_same_plot(runs):
    accumulator = events(runs.car / "best")
    assert accumulator.Tags()["scalars"] == ["episode_return_avg"]
    assert [event.value for event in accumulator.Scalars("episode_return_avg")] == [-200]


def test_drawing_changes_nothing_of_a_run(runs, here, monkeypatch):
    monkeypatch.setattr(pictures, "draw_pictures", lambda env, q_function: {})
    train("--name", "undrawn")
    assert events("undrawn-log").Tags()["images"] == []
    paths = runs.car / "car-2500.h5", here / "undrawn-log/undrawn-2500.h5"
    drawn, undrawn = (h5py.File(path)["model_weights/output"] for path in paths)
    names = []
    drawn.visit(names.append)
    for name in names:
        if isinstance(drawn[name], h5py.Dataset):
            assert np.array_equal(drawn[name], undrawn[name])


def test_a_full_disk_costs_the_best_evaluation_a_warning_only(here, capsys):
    with loggers.TensorBoardLogger(here) as logger:
        (here / "best").write_text("in the way")
        logger.log_best(1, -200.0)
    assert "training goes on" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tensorboard(runs):
    """A function that asks a real TensorBoard, which shows the two runs, over HTTP."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", runs.folder, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    address = None
    while address is None:
        line = process.stderr.readline().decode()
        assert line, "TensorBoard ended"
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
    threading.Thread(target=process.stderr.read, daemon=True).start()

    def ask(path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address[0]}/data/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    deadline = time.monotonic() + 30
    while len(json.loads(ask("runs"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    yield ask
    process.terminate()
    process.wait()
    process.stderr.close()


def test_tensorboard_shows_eight_plots(tensorboard):
    tags = json.loads(tensorboard("plugin/scalars/tags"))
    assert set(tags) == {"car-log", "car-log/best", "pole-log", "pole-log/best"}
    assert {tag for run_tags in tags.values() for tag in run_tags} == EIGHT


def test_tensorboard_shows_the_pictures(tensorboard):
    tags = json.loads(tensorboard("plugin/images/tags"))
    assert set(tags) == {"car-log"}
    assert set(tags["car-log"]) == {"value_function", "policy"}
    query = "tag=policy&run=car-log&sample=0"
    (last,) = json.loads(tensorboard(f"plugin/images/images?{query}"))[-1:]
    png = tensorboard(f"plugin/images/individualImage?{last['query']}")
    assert Image.open(io.BytesIO(png)).size == pictures.SIZE


def test_tensorboard_compares_the_runs_by_their_last_and_best_evaluation(tensorboard):
    experiment = json.loads(tensorboard("plugin/hparams/experiment", {}))
    shown = [metric["displayName"] for metric in experiment["metricInfos"]]
    assert shown == ["episode_return_avg", "best episode_return_avg"]
    body = {
        "startIndex": 0,
        "sliceSize": 10,
        "allowedStatuses": ["STATUS_UNKNOWN"],
        "colParams": [],
    }
    groups = json.loads(tensorboard("plugin/hparams/session_groups", body))["sessionGroups"]
    assert [group["name"] for group in groups] == ["car-log", "pole-log"]
    for group in groups:
        metrics = {(m["name"]["group"], m["name"]["tag"]): m for m in group["metricValues"]}
        assert set(metrics) == {("", "episode_return_avg"), ("best", "episode_return_avg")}
        last, best = metrics["", "episode_return_avg"], metrics["best", "episode_return_avg"]
        assert best["value"] >= last["value"]
        assert set(run.HYPERPARAMETERS) <= set(group["hparams"])
        assert group["hparams"]["gamma"] == 0.99
    assert groups[0]["metricValues"][0]["value"] == -200


def test_tensorboard_shows_the_command_and_the_configuration(tensorboard):
    (text,) = json.loads(tensorboard("plugin/text/text?run=car-log&tag=configuration"))
    assert "max_steps&quot;: 2500" in text["text"].replace('"', "&quot;")
    assert "command" in text["text"]


# The pictures themselves


@pytest.fixture(scope="module")
def car():
    return make_environment("MountainCar-v0")


def drawn(env, q_function):
    return {
        tag: np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        for tag, png in pictures.draw_pictures(env, q_function).items()
    }


def test_the_policy_is_drawn_with_the_axes_the_right_way_round(car):
    def left_when_fast_and_right_of_the_middle(observations):
        position, velocity = observations.T
        left = (position > -0.3) & (velocity > 0)
        return np.stack([left, ~left * 0.5, ~left], axis=1).astype(np.float32)

    picture = drawn(car, left_when_fast_and_right_of_the_middle)["policy"]
    left, _, right = pictures.palette(pictures.ACTION_COLOURS)[:3]
    width, height = pictures.RIGHT - pictures.LEFT, pictures.BOTTOM - pictures.TOP
    for across, down, colour in ((3, 1, left), (1, 1, right), (3, 3, right), (1, 3, right)):
        pixel = picture[pictures.TOP + height * down // 4, pictures.LEFT + width * across // 4]
        assert tuple(pixel) == tuple(colour)


def test_the_value_function_is_brightest_where_the_largest_q_value_is(car):
    picture = drawn(car, lambda observations: observations.repeat(2, axis=1)[:, [0, 1, 1]])
    value = picture["value_function"].sum(axis=2)
    middle = (pictures.TOP + pictures.BOTTOM) // 2
    left, *_, right = value[middle, pictures.LEFT + 20 : pictures.RIGHT - 20 : 30]
    assert right > left


@pytest.mark.parametrize("level", [0.0, -7.5, 1e30])
def test_a_constant_value_function_can_be_drawn(car, level):
    assert len(drawn(car, lambda observations: np.full((len(observations), 3), level, "f4"))) == 2


@pytest.mark.parametrize("q_value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_drawn(car, q_value):
    def q_function(observations):
        return np.full((len(observations), 3), q_value, np.float32)

    assert pictures.draw_pictures(car, q_function) == {}


@pytest.mark.parametrize("high", [[1.0], [1.0, np.inf], [1.0, 3.4e38], [1.0, 1.0, 1.0]])
def test_observations_without_two_bounded_numbers_are_not_drawn(high):
    high = np.array(high, np.float32)
    env = SimpleNamespace(observation_space=SimpleNamespace(low=-high, high=high))
    assert pictures.draw_pictures(env, None) == {}


@given(st.floats(-1e8, 1e8), st.floats(0, 1e8))
def test_ticks_are_few_and_lie_between_the_ends(low, span):
    high = low + span
    marks = pictures.ticks(low, high)
    slack = 1e-9 * max(abs(low), abs(high), 1)
    assert 1 <= len(marks) <= 9
    assert all(low - slack <= mark <= high + slack for mark in marks)


# Watching


def along_the_velocity(observation, rng):
    """A policy that reaches the flag."""
    return 2 if observation[1] >= 0 else 0


def watch(changes=None, choose_action=along_the_velocity, stop=GOING_ON, episodes=1, **flags):
    viewer.watch("MountainCar-v0", changes, choose_action, stop, 1, episodes, **flags)


def test_a_gif_loops_and_is_small_and_pauses_at_the_end(here, capsys):
    assert see.main(["--gif", "random.gif", "--seed", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *("episode 1 return -200.0", "Saved random.gif", "episode_return_avg -200.000")
    ]
    assert (here / "random.gif").stat().st_size < 1e6
    with Image.open("random.gif") as picture:
        assert picture.info["loop"] == 0
        milliseconds = 0
        for frame in range(picture.n_frames):
            picture.seek(frame)
            milliseconds += picture.info["duration"]
        assert picture.info["duration"] >= 1000
    assert milliseconds == 200 * viewer.GIF_FRAME_MS + viewer.GIF_PAUSE_MS


def test_a_gif_shows_the_car_at_the_flag(here):
    watch(gif="flag.gif")
    with Image.open("flag.gif") as picture:
        first = np.asarray(picture.convert("RGB")).astype(int)
        picture.seek(picture.n_frames - 1)
        last = np.asarray(picture.convert("RGB")).astype(int)
    right = np.s_[:, 520:]
    assert (last[right].sum(axis=2) < 100).sum() > (first[right].sum(axis=2) < 100).sum() + 300


def test_a_snapshot_makes_a_gif(runs, here, capsys):
    arguments = ["--model", str(runs.car / "car-2500.h5"), "--gif", "trained.gif", "--seed", "1"]
    assert run.main(arguments) == 0
    assert (here / "trained.gif").exists()
    assert run.main(arguments) == 2
    assert "--gif: trained.gif exists already; --force overwrites it" in capsys.readouterr().err
    assert run.main([*arguments, "--force"]) == 0


def test_images_are_named_after_episode_and_step(here):
    watch(images=True, episodes=2, changes={"goal_position": -1.0})
    assert sorted(path.name for path in here.iterdir()) == [
        *("1_0.png", "1_1.png", "2_0.png", "2_1.png")
    ]
    with Image.open("2_1.png") as picture:
        assert picture.size == (600, 400)


@pytest.mark.parametrize("flags", [{"gif": "2_7.png"}, {"images": True}])
def test_an_existing_picture_is_refused_before_anything_is_played(here, flags):
    (here / "2_7.png").write_text("mine")
    with pytest.raises(UsageError, match=r"2_7\.png exists already; --force"):
        watch(episodes=2, choose_action=None, **flags)
    assert (here / "2_7.png").read_text() == "mine"
    assert len(list(here.iterdir())) == 1


def test_other_pictures_and_forced_ones_are_no_hindrance(here):
    (here / "1_1.png").write_text("overwritten")
    (here / "3_1.png").write_text("an episode that isn't played")
    (here / "holiday_1.png").write_text("something else")
    watch(images=True, episodes=2, changes={"goal_position": -1.0}, force=True)
    assert (here / "1_1.png").read_bytes().startswith(b"\x89PNG")
    assert (here / "3_1.png").read_text() == "an episode that isn't played"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"gif": "missing/x.gif"}, "--gif: there is no folder missing"),
        ({"gif": ".", "force": True}, "--gif: . is a folder"),
        ({"gif": "x.gif", "images": True}, "--gif and --images exclude each other"),
    ],
)
def test_pictures_that_cannot_be_written_are_refused(here, flags, reason):
    with pytest.raises(UsageError, match=reason):
        watch(choose_action=None, **flags)


@pytest.fixture
def titles(monkeypatch):
    """The window's titles, with SDL's driver for no display."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    import pygame

    titles = []
    monkeypatch.setattr(pygame.display, "set_caption", titles.append)
    return titles


def test_the_window_title_tells_episode_return_and_action(titles, capsys):
    watch(episodes=2, changes={"goal_position": -1.0})
    assert titles == [
        "MountainCar-v0: episode 1, return 0",
        "MountainCar-v0: episode 1, return -1, push right",
        "MountainCar-v0: episode 2, return 0",
        "MountainCar-v0: episode 2, return -1, push right",
    ]
    assert capsys.readouterr().out.endswith("episode_return_avg -1.000\n")


def test_the_window_has_gyms_frame_rate(titles):
    def closes_after_15_steps(observation, rng):
        if len(titles) == 16:
            close_the_window()
        return 1

    started = time.monotonic()
    watch(choose_action=closes_after_15_steps)
    assert time.monotonic() - started > 14 / 30


def close_the_window():
    import pygame

    pygame.event.post(pygame.event.Event(pygame.QUIT))


def test_closing_the_window_ends_with_the_average_so_far(titles, capsys):
    def closes_in_episode_3(observation, rng):
        if "episode 3" in titles[-1]:
            close_the_window()
        return 2

    watch(choose_action=closes_in_episode_3, episodes=9, changes={"goal_position": -1.0})
    lines = ["episode 1 return -1.0", "episode 2 return -1.0", "episode_return_avg -1.000"]
    assert capsys.readouterr().out.splitlines()[:3] in (
        lines,
        [*lines[:2], "episode 3 return -1.0"],
    )


@pytest.mark.parametrize("flags", [[], ["--view"]])
def test_without_a_display_the_window_is_refused_in_one_line(runs, flags):
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "XDG_RUNTIME_DIR")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, PROJECT / "run.py", "--model", runs.car / "car-2500.h5", *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "run.py: error: there is no display to open a window on; "
        "try --gif FILE, --images, or, for a trained policy, --eval\n"
    )


def test_ctrl_c_ends_with_the_average_so_far():
    command = [
        sys.executable,
        PROJECT / "see.py",
        "--episodes",
        "100000",
        "--gif",
        "/dev/shm/x.gif",
    ]
    command = [sys.executable, "-c", LONG_EVALUATION]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT
    ) as process:
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == ""
    assert stdout.splitlines()[-1] == "episode_return_avg -200.000"


LONG_EVALUATION = """
import sys, checkpoint, viewer
stop = checkpoint.StopSignal()
viewer.watch("MountainCar-v0", {}, lambda o, rng: 1, stop, 1, 10**6, eval=True)
sys.exit(stop.exit_status)
"""


# Other mountains


def returns(capsys, **options):
    watch(eval=True, episodes=3, **options)
    return float(capsys.readouterr().out.split()[-1])


def test_set_changes_the_mountain(capsys):
    assert returns(capsys) < returns(capsys, changes={"force": 0.002}) < 0
    assert returns(capsys, changes={"force": 0}) == -200


def test_set_is_kept_and_shown_by_a_training(here):
    command = ["--name", "steep", "--set", "gravity=0.0026", "--set", "goal_position=0.4"]
    printed = train(*command, "--max-steps", "400", "--eval-every", "400")
    settings = json.loads((here / "steep-log/config.json").read_text())
    assert settings["set"] == {"gravity": 0.0026, "goal_position": 0.4}
    last = printed.splitlines()[-1]
    assert last.endswith("steep-best.h5 --set gravity=0.0026 --set goal_position=0.4")


@pytest.mark.parametrize("mode", [[], ["--eval"], ["--gif", "x.gif"], ["--train"]])
def test_set_refuses_unknown_names_with_the_known_ones(runs, here, capsys, mode):
    model = ["--model", str(runs.car / "car-2500.h5")] if mode else []
    assert run.main([*model, *mode, "--set", "friction=1"]) == 2
    assert capsys.readouterr().err == (
        "run.py: error: --set friction: the environment has no such number, only force, "
        "goal_position, goal_velocity, gravity, max_position, max_speed, min_position\n"
    )
    assert not list(here.iterdir())


@pytest.mark.parametrize("text", ["gravity", "gravity=", "=1", "gravity=nan", "gravity=1e999"])
def test_set_refuses_what_is_not_a_number(capsys, text):
    with pytest.raises(SystemExit) as ended:
        run.main(["--set", text])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_set_refuses_a_mountain_that_cannot_be_drawn(here):
    with pytest.raises(UsageError, match="--set: MountainCar-v0 can't be played so"):
        watch(gif="x.gif", changes={"max_position": -1.2})


# The terminal


@contextlib.contextmanager
def terminal():
    """Standard output and error go to a pseudo-terminal of 80 columns; yields its bytes."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    written = []

    def read():
        while select.select([master], [], [], 30)[0]:
            data = os.read(master, 65536)
            written.append(data)
            if data.endswith(b"\0"):
                return

    reader = threading.Thread(target=read)
    reader.start()
    with open(slave, "w", closefd=False) as screen:
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            yield written
        screen.write("\0")
    reader.join()
    os.close(slave)
    os.close(master)


def test_a_terminal_shows_a_bar_below_the_log_lines(here):
    with terminal() as written:
        assert run.main([*SHORT.split(), "--name", "bar"]) == 0
    text = b"".join(written).decode()
    last = [part for part in re.split(r"[\r\n]", text) if "2500/2500" in part][-1]
    pattern = r".*\| 2500/2500, +[\d.]+ steps/s, 00:00 left, return -200.0, evaluation -200.0 *"
    assert re.fullmatch(pattern, last)
    for line in ("Created bar-log", "Saved bar-log/bar-2500.h5"):
        assert re.search(rf"[\r\n]{line}\r?\n", text)


def test_a_pipe_gets_lines_only(runs):
    assert "\r" not in runs.printed
    assert "steps/s, " not in runs.printed
    assert "Created car-log\n" in runs.printed


def test_a_long_evaluation_has_a_bar_of_its_own(car):
    weights = [np.zeros(shape, np.float32) for shape in ((2, 8), 8, (8, 3), 3)]
    with terminal() as written:
        run.evaluate(car, weights, 100_000, 0.0, [1])
    assert re.search(r"evaluation .*\| \d+/100000, ", b"".join(written).decode())


def test_a_long_series_of_episodes_has_a_bar_unless_it_is_piped(capsys):
    def long(observation, rng):
        time.sleep(0.002)
        return 1

    with terminal() as written:
        watch(choose_action=long, episodes=4, eval=True)
    assert re.search(r"\| [34]/4, ", b"".join(written).decode())
    watch(episodes=1, eval=True)
    assert "\r" not in "".join(capsys.readouterr())
