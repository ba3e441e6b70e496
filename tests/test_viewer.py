"""Watching an agent: the window, GIFs, frames, and the returns that are printed."""

import signal
import time
from argparse import Namespace

import numpy as np
import pytest
from conftest import GOING_ON, start_command
from gym.envs.classic_control import CartPoleEnv, MountainCarEnv
from PIL import Image

import run
import see
from harness import start, viewer
from harness.errors import UsageError
from harness.frames import GIF_FRAME_MS, GIF_PAUSE_MS
from harness.snapshots import Snapshot

QUICK = {"goal_position": -1.0}  # the first step ends the episode


def along_the_velocity(observation):
    """A policy that reaches the flag."""
    return 2 if observation[1] >= 0 else 0


def play(policy=along_the_velocity, **given):
    settings = Namespace(**{"env": "MountainCar-v0", "episodes": 1, "seed": 1, **given})
    viewer.play(settings, GOING_ON, policy)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# The programs that play


@pytest.fixture
def snapshot(monkeypatch):
    """The flags that play `along_the_velocity`, as if it had been learned."""
    weights = [np.array([[0, 0, 0], [-1, 0, 1]], np.float32), np.float32([0, 0, 1e-9])]
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
    assert capsys.readouterr().out.splitlines() == [*lines, "episode_return_avg -200.000"]


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
    assert capsys.readouterr().out.count(f"Saved {half + 1} frames\n") == 2


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
        assert picture.info["duration"] >= GIF_PAUSE_MS
    assert milliseconds == 124 * GIF_FRAME_MS + GIF_PAUSE_MS
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
    assert "Saved 4 frames\n" in capsys.readouterr().out


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
    def save(picture, path, *arguments, **options):
        raise OSError("encoder error -2")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(UsageError, match=r"^--\w+: can't write \S+: encoder error -2$"):
        play(set=QUICK, **flags)


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
    assert capsys.readouterr().out.splitlines() == lines


def test_without_a_completed_episode_there_is_no_average(titles, capsys):
    play(lambda observation: post("QUIT") or 1)
    assert capsys.readouterr().out == "no episode was completed\n"
