"""Watching an agent: the window, GIFs, frames, and the returns that are printed."""

import gc
import itertools
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import start_command
from gym.envs.classic_control import CartPoleEnv, MountainCarEnv
from PIL import GifImagePlugin, Image
from players import play

import run
import see
from harness import start
from harness.errors import UsageError
from harness.frames import GifWriter
from harness.snapshots import Snapshot

QUICK = {"goal_position": -1.0}  # the first step ends the episode
CLOSING = "q or Escape closes the window"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# The programs that play


@pytest.fixture
def snapshot(monkeypatch):
    """The flags that play `along_the_velocity`, as if it had been learned."""
    weights = [np.array([[0, 0, 0], [-1, 0, 1]], np.float32), np.float32([0, 0, 1e-9])]
    monkeypatch.setattr(start, "find_snapshot", Path)
    monkeypatch.setattr(start, "load_snapshot", lambda path: Snapshot(weights, {}))
    return ["--model", "x.h5", "--seed", "7"]


def test_a_seed_plays_the_same_episodes_in_every_version_of_the_program(snapshot, capsys):
    assert run.main([*snapshot, "--eval", "--episodes", "5"]) == 0
    returns = [f"episode {n} return -{r}.0" for n, r in enumerate((123, 121, 123, 121, 124), 1)]
    expected = ["Loaded x.h5", *returns, "episode_return_avg -122.400"]
    assert capsys.readouterr().out.splitlines() == expected


def test_a_policy_makes_a_gif_that_only_force_overwrites(snapshot, here, capsys):
    for status, *force in [(0,), (2,), (0, "--force")]:
        assert run.main([*snapshot, "--gif", "trained.gif", *force]) == status
    assert (here / "trained.gif").exists()
    assert "--gif: trained.gif exists already; --force overwrites it" in capsys.readouterr().err


def test_see_plays_five_random_episodes(monkeypatch, capsys):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    # Real time would be 33 s.
    monkeypatch.setitem(MountainCarEnv.metadata, "render_fps", 10_000)
    assert see.main(["--seed", "1"]) == 0
    lines = [f"episode {n} return -200.0" for n in range(1, 6)]
    shown = [CLOSING, *lines, "episode_return_avg -200.000"]
    assert capsys.readouterr().out.splitlines() == shown


def test_see_takes_the_actions_that_the_environment_has(here, capsys, monkeypatch):
    actions, step = [], CartPoleEnv.step

    def recorded_step(env, action):
        actions.append(int(action))
        return step(env, action)

    monkeypatch.setattr(CartPoleEnv, "step", recorded_step)
    for _ in range(2):
        assert see.main(["--env", "CartPole-v1", "--seed", "1", "--images", "--force"]) == 0
    assert set(actions) == {0, 1}
    half = len(actions) // 2
    assert actions[:half] == actions[half:]
    frames = half - 2 + 1  # the check of the environment took each action once
    assert capsys.readouterr().out.count(f"Saved {frames} frames in {here}\n") == 2


def test_an_episode_that_does_not_end_is_given_up_with_the_cure(capsys, monkeypatch, environments):
    monkeypatch.setattr("harness.viewer.PATIENCE", 30)
    play(lambda observation: 1, env="fields:Unlimited-v0", eval=True, episodes=3)
    line = "episode 1 doesn't end; give the environment a time limit, such as --set max_episode_st"
    assert capsys.readouterr().out.startswith(line)


def test_ctrl_c_ends_with_the_gif_and_the_average_so_far(here):
    with start_command("see.py", "--episodes", 20, "--gif", "x.gif") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "")
    assert stdout.splitlines()[-2:] == ["Saved x.gif", "episode_return_avg -200.000"]
    assert "episode 20 " not in stdout
    assert Image.open("x.gif").n_frames > 1


# Pictures


def test_a_gif_loops_and_is_small_and_pauses_at_the_end_with_the_car_at_the_flag(here, capsys):
    play(gif="flag.gif")
    lines = ["episode 1 return -124.0", "Saved flag.gif", "episode_return_avg -124.000"]
    assert capsys.readouterr().out.splitlines() == lines
    assert (here / "flag.gif").stat().st_size < 1e5
    frames, milliseconds = [], 0
    with Image.open("flag.gif") as picture:
        assert picture.info["loop"] == 0
        for frame in range(picture.n_frames):
            picture.seek(frame)
            frames.append(np.asarray(picture.convert("RGB")).astype(int))
            milliseconds += picture.info["duration"]
        assert picture.info["duration"] == 1500
    assert milliseconds == pytest.approx(124 * 1000 / 30 + 1500, abs=10)
    first, last = frames[0], frames[-1]
    assert (abs(last - [204, 204, 0]).max(axis=2) < 20).any()  # the flag is yellow
    right = np.s_[:, 520:]
    assert (last[right].sum(axis=2) < 100).sum() > (first[right].sum(axis=2) < 100).sum() + 300


def test_frames_are_named_after_episode_and_step(here, capsys):
    play(images=True, episodes=2, set=QUICK)
    expected = ["1_000000.png", "1_000001.png", "2_000000.png", "2_000001.png"]
    assert names(here) == expected
    with Image.open("2_000001.png") as picture:
        assert picture.size == (600, 400)
    assert f"Saved 4 frames in {here}\n" in capsys.readouterr().out


def test_existing_frames_are_refused_before_anything_is_played(here):
    (here / "2_000007.png").write_text("mine")
    with pytest.raises(UsageError, match=r"--images: 2_000007\.png exists already; --force"):
        play(policy=None, episodes=2, images=True)
    assert names(here) == ["2_000007.png"]
    assert (here / "2_000007.png").read_text() == "mine"


def test_force_replaces_earlier_frames_of_these_episodes_and_nothing_else(here):
    others = ["10_000001.png", "1_7.png", "1_000007.txt", "3_000001.png", "holiday_000001.png"]
    for name in ["1_000001.png", "2_000150.png", *others]:
        (here / name).write_text("there before")
    play(images=True, episodes=2, set=QUICK, force=True)
    frames = ["1_000000.png", "1_000001.png", "2_000000.png", "2_000001.png"]
    assert names(here) == sorted([*frames, *others])
    assert {(here / name).read_text() for name in others} == {"there before"}
    assert (here / "1_000001.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"gif": "car.mp4"}, "--gif: expected a file name that ends in .gif, not 'car.mp4'"),
        ({"gif": ""}, "--gif: expected a file name that ends in .gif, not ''"),
        ({"gif": "missing/x.gif"}, "--gif: can.t write missing.x.gif: no such file"),
        ({"gif": "folder.gif", "force": True}, "--gif: can.t write folder.gif: it is a folder"),
        ({"gif": "x" * 300 + ".gif"}, "x.gif: file name too long"),
        ({"gif": "x.gif", "images": True}, "--gif and --images can't be combined"),
        ({"gif": "x.gif", "env": "Corridor-v0"}, "--env Corridor-v0: .* can't be drawn"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render")
def test_pictures_that_cannot_be_made_are_refused_before_anything_is_played(here, flags, reason):
    (here / "folder.gif").mkdir()
    with pytest.raises(UsageError, match=reason):
        play(policy=None, **flags)
    assert names(here) == ["folder.gif"]


@pytest.mark.parametrize("flags", [{"gif": "x.gif"}, {"images": True}])
def test_a_failure_to_write_is_one_line_even_without_the_systems_words(here, monkeypatch, flags):
    def fails(*arguments, **options):
        raise OSError("encoder error -2")

    monkeypatch.setattr(Image.Image, "save", fails)
    monkeypatch.setattr(GifImagePlugin, "getdata", fails)
    with pytest.raises(UsageError, match=r"^--\w+: can't write \S+: encoder error -2$"):
        play(set=QUICK, **flags)
    assert names(here) == []


def forwards(observation):
    """A policy that walks to the end of the path."""
    return 1


def durations(path):
    with Image.open(path) as picture:
        for frame in range(picture.n_frames):
            picture.seek(frame)
            yield picture.info["duration"]


@pytest.mark.parametrize(
    ("env", "milliseconds", "frames"),
    [("Path", [100] * 6, 7), ("Timeless", [30] * 6, 7), ("Fast", [33, 33, 33], 4)],
)
def test_frames_last_as_long_as_the_environment_says(here, environments, env, milliseconds, frames):
    play(forwards, env=f"paths:{env}-v0", gif="path.gif")
    shown = list(durations("path.gif"))
    assert shown[-1] == 1500
    assert len(shown) <= 7
    assert min(shown) >= 20  # browsers show shorter frames for 100 ms
    assert sum(shown[:-1]) == pytest.approx(sum(milliseconds), abs=10)
    assert len(shown) in (frames, frames + 1)


def test_a_gif_shows_what_the_environment_drew(here, environments):
    play(forwards, env="paths:Path-v0", gif="path.gif", episodes=2)
    with Image.open("path.gif") as picture:
        assert picture.n_frames == 14
        for frame in range(14):
            picture.seek(frame)
            pixels = np.asarray(picture.convert("RGB")).astype(int)
            walked = frame % 7
            expected = np.full((16, 112, 3), (0, 90, 0))
            expected[:, 16 * walked : 16 * walked + 16] = 240, 200, 40
            assert abs(pixels - expected).max() <= 30


def test_a_gif_has_one_size_whatever_the_environment_draws(here, environments):
    play(forwards, env="paths:Growing-v0", gif="path.gif")
    with Image.open("path.gif") as picture:
        assert picture.n_frames == 7
        for frame in range(picture.n_frames):
            picture.seek(frame)
            assert picture.size == (112, 16)


def test_colours_that_turn_up_later_are_shown(here):
    with open("x.gif", "wb") as file:
        gif = GifWriter(file)
        for colour in ["black", "red", "lime", "blue", "white"]:
            gif.add(Image.new("RGB", (8, 8), colour), 0.1)
        gif.end()
    with Image.open("x.gif") as picture:
        shown = []
        for frame in range(picture.n_frames):
            picture.seek(frame)
            shown.append(picture.convert("RGB").getpixel((3, 3)))
    assert shown == [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def test_what_stands_still_is_stored_once(here):
    with open("x.gif", "wb") as file:
        gif = GifWriter(file)
        for _ in range(1000):
            gif.add(Image.new("RGB", (300, 300), "red"), 1 / 30)
        gif.end()
    assert sum(durations("x.gif")) == pytest.approx(1000 * 1000 / 30, abs=10)
    assert (here / "x.gif").stat().st_size < 5000


def test_a_long_gif_takes_no_more_memory_than_a_short_one(here, environments):
    pictures = []
    actions = itertools.count()

    def backwards(observation):
        action = next(actions)
        if action % 10 == 5:
            pictures.append(sum(isinstance(thing, Image.Image) for thing in gc.get_objects()))
        return action % 2

    play(backwards, env="paths:Path-v0", gif="path.gif", episodes=4)
    assert len(pictures) == 20
    assert max(pictures[10:]) <= max(pictures[:2])


@pytest.mark.parametrize("flags", [{"gif": "x.gif"}, {"images": True}])
@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ("paths:Silent-v0", "its render returns None; expected an array"),
        ("paths:Films-v0", "its render returns a list; expected an array"),
        ("paths:Floats-v0", r"its render returns an array \(16, 112, 3\) of float64; expected"),
        ("paths:Texts-v0", "its metadata has no render mode rgb_array"),
        ("fields:Field-v0", "its metadata has no render mode rgb_array"),
        ("fields:DrawnWithoutRenderMode-v0", "its constructor takes no render_mode"),
        ("fields:DrawnWithoutConstructor-v0", "its constructor takes no render_mode"),
    ],
)
def test_environments_that_draw_no_picture_are_refused(here, environments, env, reason, flags):
    with pytest.raises(
        UsageError, match=f"^--env {env}: this environment can't be drawn: {reason}"
    ):
        play(forwards, env=env, **flags)
    assert names(here) == []


def test_a_missing_pygame_is_one_line_with_its_cure(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    for flags in {}, {"gif": "x.gif"}:
        with pytest.raises(UsageError, match=r"pygame.*pip install pygame\b"):
            play(**flags)
    assert names(here) == []


# The window


@pytest.fixture
def titles(monkeypatch):
    """The window's titles, with SDL's driver for no display."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    import pygame

    titles = []
    monkeypatch.setattr(pygame.display, "set_caption", titles.append)
    return titles


def test_the_window_title_shows_episode_return_and_action(titles):
    play(episodes=2, set=QUICK)
    assert titles == [
        f"MountainCar-v0: episode {episode}, return {shown}"
        for episode in (1, 2)
        for shown in ("0", "-1, push right")
    ]


def post(kind, key=None):
    import pygame

    values = {"key": getattr(pygame, key)} if key else {}
    pygame.event.post(pygame.event.Event(getattr(pygame, kind), values))


def test_the_window_has_gyms_frame_rate(titles):
    def ends_after_15_steps(observation):
        return 1 if len(titles) < 16 else post("QUIT") or 1

    started = time.monotonic()
    play(ends_after_15_steps)
    assert time.monotonic() - started > 14 / 30


@pytest.mark.parametrize("event", [("QUIT",), ("KEYDOWN", "K_ESCAPE"), ("KEYDOWN", "K_q")])
def test_closing_the_window_ends_with_the_average_so_far(titles, capsys, event):
    def closes_in_episode_3(observation):
        post("KEYDOWN", "K_SPACE")  # does nothing
        if "episode 3" not in titles[-1]:
            return 2
        post(*event)
        return 0  # away from the goal

    play(closes_in_episode_3, episodes=9, set=QUICK)
    lines = ["episode 1 return -1.0", "episode 2 return -1.0", "episode_return_avg -1.000"]
    assert capsys.readouterr().out.splitlines() == [CLOSING, *lines]


def test_without_a_completed_episode_there_is_no_average(titles, capsys):
    play(lambda observation: post("QUIT") or 1)
    assert capsys.readouterr().out == f"{CLOSING}\nno episode was completed\n"


def test_an_environment_without_a_window_of_its_own_is_shown_in_ours(titles, environments):
    import pygame

    sizes = []

    def looks(observation):
        screen = pygame.display.get_surface()
        sizes.append((screen.get_size(), tuple(screen.get_at((16 * len(sizes) + 5, 5)))[:3]))
        return 1

    started = time.monotonic()
    play(looks, env="paths:Path-v0")
    assert time.monotonic() - started > 5 / 10
    assert sizes == [((112, 16), (240, 200, 40))] * 6
    assert titles[-1] == "Path-v0: episode 1, return -6, action 1"
