"""A film of a policy that learns: when it films, what it shows, and what it survives."""

import errno
import os
import random

import gym
import numpy as np
import pytest
from PIL import Image, ImageChops
from players import along_the_velocity, play_episode

from harness import film as film_module
from harness.errors import UsageError
from harness.film import MOST_FRAMES, Film, captioned


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def right(observation):
    return 1


def film_run(film, steps, policy=along_the_velocity):
    """Do what training does with a film, at each of the steps; return the steps filmed."""
    filmed = []
    for step in steps:
        if film.is_due(step):
            filmed.append(step)
            with film.scene(step):
                play_episode(film.env, policy, film, seed=1)
    return filmed


def frames_of(path):
    """The frames of a GIF, and how many seconds each is shown."""
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0
        for number in range(picture.n_frames):
            picture.seek(number)
            yield picture.convert("RGB"), picture.info["duration"] / 1000


def test_twelve_moments_are_filmed_more_of_them_early(here, environments):
    with Film("x.gif", "paths:Path-v0", {}, 100_000) as film:
        filmed = film_run(film, range(100_001), right)
    assert len(filmed) == 12
    assert (filmed[0], filmed[-1]) == (0, 100_000)
    assert sum(step <= 20_000 for step in filmed) == 5  # where `tuned` learns
    assert (np.diff(filmed, 2) >= 0).all()


def test_each_moment_is_filmed_once_also_where_steps_are_passed_over(here, environments):
    with Film("x.gif", "paths:Path-v0", {}, 1000) as film:
        # As a resumed run, which begins at a later step, does.
        assert film_run(film, [400, 401, 402, 950, 999, 1000, 1000], right) == [400, 950, 1000]
        assert not film.is_due(1000, ended=True)


def test_a_run_shorter_than_its_moments_is_filmed(here, environments):
    with Film("x.gif", "paths:Path-v0", {}, 3) as film:
        assert film_run(film, range(4), right) == [0, 1, 2, 3]


def test_a_run_that_ends_early_is_filmed_at_its_end(here, environments):
    with Film("x.gif", "paths:Path-v0", {}, 1000) as film:
        film_run(film, range(500), right)
        assert film.is_due(499, ended=True)
        with film.scene(499):
            play_episode(film.env, right, film, seed=1)
        assert not film.is_due(499, ended=True)
    assert names(here) == ["x.gif"]


def test_mountain_car_is_a_small_film_at_a_pace_that_can_be_followed(here, capsys):
    with Film("car.gif", "MountainCar-v0", {}, 100_000) as film:
        filmed = film_run(film, [0, 50_000, 100_000])
    assert len(filmed) == 3
    assert capsys.readouterr().out == "Saved car.gif\n"
    assert (here / "car.gif").stat().st_size < 1e6 / 4  # of twelve, less than 1 MB
    pictures, seconds = zip(*frames_of("car.gif"), strict=True)
    pauses = [one for one in seconds if one > 0.5]
    assert pauses == [0.8, 0.8, 2.5]
    assert seconds[-1] == 2.5
    assert sum(seconds) - sum(pauses) == pytest.approx(3 * 124 / 30 / 3, rel=0.05)
    assert {picture.size for picture in pictures} == {(300, 224)}
    assert has_caption(pictures[0], 0, 0.0)
    assert has_caption(pictures[-1], 100_000, -124.0)
    assert not has_caption(pictures[-1], 100_000, -104.0)


def blank():
    return Image.new("RGB", (600, 400), "white")


def has_caption(frame, step, episode_return):
    """Whether a frame's strip is that of a caption, as far as a GIF's colours show it."""
    strips = frame, captioned(blank(), step, episode_return)
    one, other = (np.asarray(strip.convert("L")).astype(int)[200:] for strip in strips)
    return abs(one - other).max() < 60


def test_a_caption_says_how_far_the_run_is_and_what_the_episode_returns():
    one = captioned(blank(), 12_345, -123.0)
    assert one.size == (300, 224)
    assert ImageChops.difference(one, captioned(blank(), 12_345, -124.0)).getbbox()[0] > 150
    assert ImageChops.difference(one, captioned(blank(), 12_346, -123.0)).getbbox()[2] < 150


def test_an_environment_that_goes_slowly_is_shown_step_by_step(here, environments):
    with Film("x.gif", "paths:Path-v0", {}, 1000) as film:
        film_run(film, [0], right)
    pictures = [picture for picture, _ in frames_of("x.gif")]
    assert len(pictures) == 7
    walked = [picture.getpixel((16 * number + 5, 5)) for number, picture in enumerate(pictures)]
    assert all(abs(np.subtract(pixel, (240, 200, 40))).max() <= 30 for pixel in walked)


def test_an_episode_without_end_is_left(here, environments):
    with Film("x.gif", "paths:Path-v0", {"max_episode_steps": 600}, 1000) as film:
        film_run(film, [0, 1000], lambda observation: 0)
    assert len(list(frames_of("x.gif"))) <= 2 * (MOST_FRAMES + 2)


def test_a_film_changes_no_random_number_of_the_training(here, environments):
    before = random.getstate(), np.random.get_state()[1].tolist()
    with Film("x.gif", "paths:Picky-v0", {}, 1000) as film:  # its constructor draws one
        film_run(film, [0, 1000], lambda observation: int(np.random.random() < 0.9))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_what_was_filmed_is_written_when_training_fails(here, environments):
    with (
        pytest.raises(ZeroDivisionError),
        Film("x.gif", "paths:Path-v0", {}, 1000) as film,
    ):
        film_run(film, [0], right)
        raise ZeroDivisionError
    assert len(list(frames_of("x.gif"))) == 7


def test_a_film_without_a_scene_is_no_file(here, environments):
    with Film("x.gif", "paths:Path-v0", {}, 1000):
        pass
    assert names(here) == []


@pytest.mark.parametrize("place", ["frame", "end"])
def test_a_disk_error_is_one_warning_and_training_goes_on(
    here, environments, monkeypatch, capsys, place
):
    def fails(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Film("x.gif", "paths:Path-v0", {}, 1000) as film:
        film_run(film, [0], right)
        target = film_module.GifWriter if place == "frame" else film_module
        monkeypatch.setattr(target, "add" if place == "frame" else "write_file", fails)
        filmed = film_run(film, [500, 1000], right)
    assert filmed == ([500] if place == "frame" else [500, 1000])
    warning = "warning: --film: can't write x.gif: no space left on device; training goes on\n"
    assert capsys.readouterr().out == warning
    assert names(here) == []


class Fading(gym.Env):
    """Draws nothing any more after its second episode has begun."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode, self.resets = render_mode, 0

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, True, False, {}

    def render(self):
        if self.resets == 3:
            raise RuntimeError("out of paint")
        return np.zeros((50, 50, 3), np.uint8)


gym.register("Fading-v0", entry_point=Fading)


def test_an_environment_that_stops_drawing_ends_the_film_and_not_the_training(here, capsys):
    with Film("x.gif", "Fading-v0", {}, 1000) as film:
        assert film_run(film, [0, 500, 1000], right) == [0, 500]
    assert capsys.readouterr().out.splitlines() == [
        "warning: --film ends here: the environment Fading-v0 failed in its own code, in render: "
        "out of paint; training goes on",
        "Saved x.gif",
    ]
    assert len(list(frames_of("x.gif"))) == 2  # of the scene before


@pytest.mark.parametrize(
    ("path", "env", "reason"),
    [
        ("x.mp4", "MountainCar-v0", r"--film: expected a file name that ends in \.gif, not 'x"),
        ("missing/x.gif", "MountainCar-v0", "--film: can't write missing/x.gif: no such file"),
        ("there.gif", "MountainCar-v0", r"--film: there\.gif exists already"),
        ("x.gif", "paths:Silent-v0", "this environment can't be drawn: its render returns None"),
        ("x.gif", "paths:Texts-v0", "its metadata has no render mode rgb_array"),
        ("x.gif", "Corridor-v0", "this environment can't be drawn"),
    ],
)
def test_what_cannot_be_filmed_is_refused_before_training(here, environments, path, env, reason):
    (here / "there.gif").write_text("mine")
    with pytest.raises(UsageError, match=reason):
        Film(path, env, {}, 1000)
    assert names(here) == ["there.gif"]
    assert (here / "there.gif").read_text() == "mine"


def test_a_film_leaves_the_display_as_it_was(here, monkeypatch):
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    with Film("x.gif", "MountainCar-v0", {"max_episode_steps": 3}, 1000) as film:
        film_run(film, [0])
        film.finish()
    assert "SDL_VIDEODRIVER" not in os.environ
