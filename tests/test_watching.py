"""Watching an agent: the window, GIFs, frames, and the returns that are printed."""

import contextlib
import gc
import itertools
import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gym
import numpy as np
import pytest
import scipy.stats
from conftest import GOING_ON, ROOT, start_command
from gym.envs.classic_control import CartPoleEnv, MountainCarEnv
from PIL import GifImagePlugin, Image
from players import STANDARD, play

import run
import see
from harness.environments import make_environment
from harness.errors import UsageError
from harness.gif import GifWriter
from harness.watching import how_to_watch, summary_lines, t_quantile, watching

QUICK = {"goal_position": -1.0}  # the first step ends the episode
AGAIN = ["The same episodes again: --seed 1"]
CLOSING = "q or Escape closes the window"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# The programs that play


MOUNTAIN = ["--model", ROOT / "assets/mountain.h5", "--seed", "7"]


def run_py(*words):
    return run.main([str(word) for word in words])


def test_a_seed_plays_the_same_episodes_in_every_version_of_the_program(capsys):
    assert run_py(*MOUNTAIN, "--eval", "--episodes", 5) == 0
    _loaded, *lines = capsys.readouterr().out.splitlines()
    returns = [-103.0, -85.0, -104.0, -87.0, -103.0]
    episodes = [f"episode {n} return {one:.1f}" for n, one in enumerate(returns, start=1)]
    assert lines[:5] == episodes
    assert lines[-2:] == [
        "The same episodes again: --seed 7",
        f"episode_return_avg {np.mean(returns):.3f}",
    ]


def test_a_policy_makes_a_gif_that_only_force_overwrites(here, capsys):
    for status, *force in [(0,), (2,), (0, "--force")]:
        assert run_py(*MOUNTAIN, "--gif", "trained.gif", *force) == status
    assert (here / "trained.gif").exists()
    assert "--gif: trained.gif exists already; --force overwrites it" in capsys.readouterr().err


def test_see_plays_five_random_episodes(monkeypatch, capsys):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    # Real time would be 33 s.
    monkeypatch.setitem(MountainCarEnv.metadata, "render_fps", 10_000)
    assert see.main(["--seed", "1"]) == 0
    closing, *lines = capsys.readouterr().out.splitlines()
    assert closing == CLOSING
    assert lines[:5] == [f"episode {n} return -200.0" for n in range(1, 6)]
    assert lines[-1] == "episode_return_avg -200.000"


def test_see_takes_the_actions_that_the_environment_has(here, capsys, monkeypatch):
    actions, step = [], CartPoleEnv.step

    def recorded_step(env, action):
        actions.append(int(action))
        return step(env, action)

    monkeypatch.setattr(CartPoleEnv, "step", recorded_step)
    plays = []
    for _ in range(2):
        assert see.main(["--env", "CartPole-v1", "--seed", "1", "--images", "--force"]) == 0
        shown = capsys.readouterr().out
        steps = int(re.search(r"episode 1 return (\d+)\.0\n", shown)[1])  # each is worth 1
        assert f"Saved {steps + 1} frames in frames\n" in shown
        plays.append(actions[-steps:])  # the check of the environment came before
    assert set(plays[0]) == {0, 1}
    assert plays[0] == plays[1]


def test_ctrl_c_ends_with_the_gif_and_the_average_so_far(here):
    with start_command("see.py", "--episodes", 20, "--gif", "x.gif") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "")
    assert "Saved x.gif\n" in stdout
    assert stdout.endswith("episode_return_avg -200.000\n")
    assert "episode 20 " not in stdout
    assert Image.open("x.gif").n_frames > 1


# The returns


def lines_of(capsys, **given):
    play(**given)
    return capsys.readouterr().out.splitlines()


def test_the_returns_are_summed_up(capsys):
    *episodes, summed, interval, solved, again, average = lines_of(capsys, eval=True, episodes=6)
    returns = np.array([float(line.split()[-1]) for line in episodes])
    assert summed == (
        f"6 episodes: mean {returns.mean():.2f}, standard deviation {returns.std(ddof=1):.2f}, "
        f"least {returns.min():.1f}, most {returns.max():.1f}"
    )
    error = scipy.stats.sem(returns)
    low, high = scipy.stats.t.interval(0.95, 5, returns.mean(), error)
    assert interval == f"95 % interval of the mean: {low:.2f} to {high:.2f}"
    assert solved == "Solved: 0 % of the episodes (-110 or more)"
    assert again == "The same episodes again: --seed 1"
    assert average == f"episode_return_avg {returns.mean():.3f}"


def test_the_share_of_solved_episodes_counts_those_that_reach_the_threshold():
    lines = summary_lines([-109.0, -110.0, -111.0, -112.0], -110.0, 3)
    assert "Solved: 50 % of the episodes (-110 or more)" in lines
    assert not any("Solved" in line for line in summary_lines([1.0, 2.0, 3.0], None, 3))


def test_two_episodes_are_too_few_for_statistics(capsys):
    lines = lines_of(capsys, eval=True, episodes=2, set=QUICK, seed=5)
    assert lines[2:] == ["The same episodes again: --seed 5", "episode_return_avg -1.000"]


@pytest.mark.parametrize("freedom", [2, 3, 5, 20, 99])
def test_the_quantiles_are_students(freedom):
    assert t_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=0.01)


def test_the_returns_are_written_as_csv(here, capsys):
    lines = lines_of(capsys, eval=True, episodes=3, csv="returns.csv")
    returns = [line.split()[-1] for line in lines[:3]]
    assert "Saved returns.csv" in lines
    expected = ["episode,return", *(f"{n},{one}" for n, one in enumerate(returns, start=1))]
    assert (here / "returns.csv").read_text().splitlines() == expected
    with pytest.raises(UsageError, match=r"^--csv: returns\.csv exists already; --force"):
        play(policy=None, eval=True, csv="returns.csv")
    play(eval=True, csv="returns.csv", force=True, set=QUICK)
    assert (here / "returns.csv").read_text() == "episode,return\n1,-1.0\n"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/x.csv", "no such file or directory"), ("folder", "it is a folder"), ("", "it is a")],
)
def test_returns_that_cannot_be_written_are_refused_before_anything_is_played(here, name, reason):
    (here / "folder").mkdir()
    with pytest.raises(UsageError, match=rf"^--csv: can't write {name}: {reason}"):
        play(policy=None, eval=True, csv=name, force=True)
    assert names(here) == ["folder"]


def test_force_alone_is_refused():
    with pytest.raises(UsageError, match="it needs --gif, --images or --csv"):
        play(policy=None, eval=True, force=True)


def test_an_episode_that_does_not_end_is_given_up_with_the_cure(capsys):
    settings = SimpleNamespace(**STANDARD | {"eval": True})
    with watching(settings, GOING_ON) as (_, watcher):
        watcher.reset()
        watcher.give_up()
    line = "episode 1 doesn't end; give the environment a time limit, such as --set max_episode_st"
    assert capsys.readouterr().out.startswith(line)


def test_ctrl_c_ends_watching_after_the_step(capsys):
    stop = SimpleNamespace(number=0)

    def interrupted(observation):
        stop.number = signal.SIGINT
        return 1

    assert lines_of(capsys, policy=interrupted, stop=stop, eval=True) == [
        "no episode was completed"
    ]


class Dice(gym.Env):
    """Draws from the generators of the whole process."""

    observation_space = gym.spaces.Box(0, 6, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        return np.array([np.random.randint(6)], np.float32), {}

    def step(self, action):
        reward = np.random.randint(1000) + random.randint(0, 1000)
        return np.zeros(1, np.float32), reward, True, False, {}


gym.register("Dice-v0", entry_point=Dice)


def test_a_seed_also_decides_what_comes_from_the_generators_of_the_process(capsys):
    played = []
    for seed in (2**33, 2**33, 2**33 + 1):
        random.seed(len(played))
        np.random.seed(len(played))
        before = random.getstate(), np.random.get_state()[1].tolist()
        given = {"env": "Dice-v0", "eval": True, "episodes": 3, "seed": seed}
        played.append(lines_of(capsys, policy=lambda _: 0, **given))
    one, same, other = played
    assert one == same
    assert one[:3] != other[:3]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


# What a summary offers


@pytest.fixture
def no_display(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("env", "with_display", "without"),
    [
        ("MountainCar-v0", [], ["--gif", "car-best.gif"]),
        ("paths:Path-v0", [], ["--gif", "car-best.gif"]),
        ("paths:Texts-v0", ["--eval"], ["--eval"]),
        ("paths:Limited-v0", ["--eval"], ["--eval"]),
        ("fields:DrawnWithoutConstructor-v0", ["--eval"], ["--eval"]),
        ("fields:DrawnWithoutRenderMode-v0", ["--eval"], ["--eval"]),
        ("Corridor-v0", ["--eval"], ["--eval"]),
    ],
)
def test_what_can_be_watched_here_is_offered(no_display, environments, env, with_display, without):
    with contextlib.closing(make_environment(env)) as made:
        assert how_to_watch(made, Path("car-log/car-best.h5")) == without
        for platform, variable in (
            ("linux", "DISPLAY"),
            ("linux", "WAYLAND_DISPLAY"),
            ("darwin", "X"),
        ):
            with no_display.context() as patch:
                patch.setattr(sys, "platform", platform)
                patch.setenv(variable, ":0")
                assert how_to_watch(made, Path("car-log/car-best.h5")) == with_display


# Pictures


def test_a_gif_loops_and_is_small_and_pauses_at_the_end_with_the_car_at_the_flag(here, capsys):
    play(gif="flag.gif")
    lines = ["episode 1 return -124.0", "Saved flag.gif", *AGAIN, "episode_return_avg -124.000"]
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


FRAMES = ["1_000000.png", "1_000001.png", "2_000000.png", "2_000001.png"]


def test_frames_are_named_after_episode_and_step_in_a_folder_of_their_own(here, capsys):
    play(images=True, episodes=2, set=QUICK)
    assert names(here) == ["frames"]
    assert names(here / "frames") == FRAMES
    with Image.open("frames/2_000001.png") as picture:
        assert picture.size == (600, 400)
    assert "Saved 4 frames in frames\n" in capsys.readouterr().out


def test_existing_frames_are_refused_before_anything_is_played(here):
    (here / "frames").mkdir()
    with pytest.raises(UsageError, match=r"--images: frames exists already; --force"):
        play(policy=None, episodes=2, images=True)
    assert names(here / "frames") == []


def test_force_replaces_earlier_frames_and_nothing_else(here):
    others = ["1_7.png", "1_000007.txt", "holiday_000001.png"]
    (here / "frames").mkdir()
    for name in ["1_000001.png", "2_000150.png", "10_000001.png", *others]:
        (here / "frames" / name).write_text("there before")
    play(images=True, episodes=2, set=QUICK, force=True)
    assert names(here / "frames") == sorted([*FRAMES, *others])
    assert {(here / "frames" / name).read_text() for name in others} == {"there before"}
    assert (here / "frames" / "1_000001.png").read_bytes().startswith(b"\x89PNG")


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


def test_files_are_written_where_the_user_stands_wherever_the_environment_goes(here):
    (here / "away").mkdir()

    def goes_away(observation):
        os.chdir(here / "away")
        return 2

    for files in {"gif": "x.gif", "csv": "x.csv"}, {"images": True}:
        os.chdir(here)
        play(goes_away, set=QUICK, **files)
    assert names(here) == ["away", "frames", "x.csv", "x.gif"]
    assert names(here / "frames") == FRAMES[:2]


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
    lines = ["episode 1 return -1.0", "episode 2 return -1.0", *AGAIN, "episode_return_avg -1.000"]
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
