"""What a terminal of 80 columns and a pipe get to see."""

import contextlib
import re
import time
from types import SimpleNamespace

import numpy as np
from conftest import SHORT, terminal
from test_viewer import play

import run
from harness.environments import make_environment


@contextlib.contextmanager
def screen():
    """Standard output and error go to a terminal; yields what it shows."""
    with (
        terminal() as (descriptor, shown),
        open(descriptor, "w", closefd=False) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield shown


def test_a_terminal_shows_a_bar_below_the_log_lines(here):
    with screen() as shown:
        assert run.main([*SHORT, "--name", "bar"]) == 0
    text = shown.decode()
    last = [part for part in re.split(r"[\r\n]", text) if "2.50k/2.50k" in part][-1]
    pattern = r".*\| 2.50k/2.50k, +[\d.]+k? steps/s, 00:00 left, return -200, evaluation -200 *"
    assert re.fullmatch(pattern, last)
    assert len(last.rstrip()) <= 77  # with ^C after it, the line isn't full yet
    for line in ("Created bar-log", "Saved bar-log/bar-2500.h5"):
        assert re.search(rf"[\r\n]{line}\r?\n", text)


def test_a_long_evaluation_has_a_bar_of_its_own():
    weights = [np.zeros(shape, np.float32) for shape in ((2, 8), 8, (8, 3), 3)]
    settings = SimpleNamespace(seed=1, eval_steps=100_000, eval_epsilon=0.0)
    with screen() as shown:
        run.evaluate(make_environment("MountainCar-v0"), weights, settings, step=1)
    assert re.search(r"evaluation .*\| [\d.]+k/100k, ", shown.decode())


def test_a_long_series_of_episodes_has_a_bar_unless_it_is_piped(capsys):
    def long(observation):
        time.sleep(0.002)
        return 1

    with screen() as shown:
        play(policy=long, episodes=4, eval=True)
    assert re.search(r"\| [34]/4, ", shown.decode())
    assert re.search(r"[\r\n]episode_return_avg ", shown.decode())  # the bar leaves its line
    play(episodes=1, eval=True)
    assert "\r" not in "".join(capsys.readouterr())
