"""`--env MODULE:ID --test`: whether an environment can be trained, point by point, with cures."""

import contextlib
import itertools
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.arrays import Array
from harness.environments import (
    Environment,
    check_environment,
    check_same_size,
    make_environment,
    observation_warnings,
    running_normalisation,
)
from harness.errors import EnvironmentCrash, EnvironmentFault, UsageError
from harness.registries import Value

STEPS, SECONDS = 2000, 5.0  # of random actions, at most
MOST_RECORDED = 10**6  # observed numbers
EPISODE_STEPS = 200  # of an episode that is compared with another one
LARGE, LARGE_REWARD = 10, 100  # numbers that networks learn badly
SLOW = 200  # steps per second

Step = tuple[list[float], float, bool, bool]  # observation, reward, terminated, truncated


class Untrainable(Exception):  # noqa: N818, it is the finding
    """What keeps an environment from being trained."""


@dataclass
class Play:
    """Random actions, and what came of them."""

    observations: list[Array] = field(default_factory=list)
    given: list[list[npt.NDArray[Any]]] = field(
        default_factory=list
    )  # as the environment made them
    rewards: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # of the completed episodes
    terminated: int = 0  # of those
    seconds: float = 0.0


class Examination:
    """Prints a line for each point: ✓, a warning (!) or what is wrong (✗), and the cure."""

    def __init__(
        self, env_id: str, changes: Mapping[str, Value], log: Callable[[str], None]
    ) -> None:
        self.env_id, self.changes, self.log = env_id, changes, log

    def note(self, point: str, good: str, warning: str | None = None) -> None:
        """Print a point: what is good, or a warning in its place."""
        self.log(f"! {point}: {warning}" if warning else f"✓ {point}: {good}")

    @contextlib.contextmanager
    def point(self, name: str) -> Iterator[None]:
        """What fails inside can't be trained."""
        try:
            yield
        except (UsageError, EnvironmentFault) as error:
            raise Untrainable(f"✗ {name}: {self.told(error)}") from None

    def told(self, error: Exception) -> str:
        """An error without what is known here: whose it is."""
        text = error.fault if isinstance(error, EnvironmentFault) else str(error)
        cause = error.__cause__
        if isinstance(error, EnvironmentCrash) and cause is not None:
            frame = traceback.extract_tb(cause.__traceback__)[-1:]
            place = f" ({os.path.basename(frame[0].filename)}, line {frame[0].lineno})"
            text = f"{text} failed: {type(cause).__name__}: {cause}{place if frame else ''}"
        return " ".join(text.removeprefix(f"--env {self.env_id}: ").split())

    def examine(self) -> None:
        """Print all points; Untrainable ends it."""
        with self.point("spaces"):
            env = make_environment(self.env_id, self.changes)
        with contextlib.closing(env):
            numbers = "1 number" if env.observation_size == 1 else f"{env.observation_size} numbers"
            self.note("spaces", f"{numbers} observed, {env.n_actions} actions ({env.package})")
            with self.point("reset and step"):
                check_environment(env)
                play = play_randomly(env)
            self.note("reset and step", "as since gym 0.26")
            outside, merged = observation_warnings(env, play.given)
            self.note("bounds", "observations are within their space's", outside)
            self.note("float32", "it can tell the observations apart", merged)
            running = running_normalisation(env)
            self.note("wrappers", "none normalises by what it has seen so far", running)
            with self.point("seed"):
                first = self.repeat_an_episode(env, running)
            with self.point("two at a time"):
                self.make_another(env, first)
            self.describe(env, play)
        self.draw(env)
        rate = len(play.rewards) / max(play.seconds, 1e-9)
        slow = f"{rate:.0f} steps per second: 100,000 take {1e5 / max(rate, 1e-9) / 60:.0f} minutes"
        self.note("speed", f"{rate:,.0f} steps per second", slow if rate < SLOW else None)

    def repeat_an_episode(self, env: Environment, running: str | None) -> list[Step] | None:
        """Whether a seed decides an episode; returns that episode, None if it doesn't."""
        first, again = (list(episode(env)) for _ in range(2))
        if first == again:
            self.note("seed", "the same seed gives the same episode")
            return first
        pairs = enumerate(zip(first, again, strict=False))
        step = next((step for step, (one, other) in pairs if one != other), len(first))
        cure = "call super().reset(seed=seed) and draw from self.np_random"
        self.note(
            "seed",
            "",
            f"two episodes of one seed and the same actions differ from step {step} on, so that "
            f"no run can be repeated: {'its wrapper remembers' if running else cure}",
        )
        return None

    def make_another(self, env: Environment, first: list[Step] | None) -> None:
        """Whether there can be a second environment, which doesn't disturb the first."""
        try:
            other = make_environment(self.env_id, self.changes)
        except (UsageError, EnvironmentFault) as error:
            self.note(
                "two at a time",
                "",
                f"a second one can't be made beside the first: {self.told(error)}; evaluations "
                "need one: train with --eval-every 0",
            )
            return
        with contextlib.closing(other):
            check_same_size(env, other)
            turns = itertools.zip_longest(*(episode(one) for one in (env, other)))
            disturbed = first and list(turns) != [(step, step) for step in first]
        self.note(
            "two at a time",
            "one to train in doesn't disturb one to evaluate in" if first else "both can be made",
            "they disturb each other: something belongs to both, such as an attribute of the class "
            "or a global random generator; keep it in self"
            if disturbed
            else None,
        )

    def describe(self, env: Environment, play: Play) -> None:
        """The scale of observations and rewards, and the episodes."""
        observations = np.stack(play.observations)
        least, most = float(observations.min()), float(observations.max())
        largest, warning = max(-least, most), None
        if (observations == observations[0]).all():
            warning = f"none of {len(observations)} differs from the first: they tell nothing"
        elif largest > LARGE:
            warning = (
                f"from {least:g} to {most:g}; networks learn numbers near 0 best: --scale-inputs 1 "
                "(--preset tuned has it) scales them"
            )
        self.note("observations", between(least, most), warning)

        count, least, most = len(play.rewards), min(play.rewards) + 0.0, max(play.rewards) + 0.0
        warning = None
        if least == most and not (play.terminated and least):
            warning = (
                f"each of {count} random actions got {least:g}, and {play.terminated} of "
                f"{len(play.lengths)} episodes terminated: learning begins when a goal is found by "
                "luck; --preset tuned explores further (--max-repeat); else reward the way there"
            )
        elif max(-least, most) > LARGE_REWARD:
            warning = (
                f"from {least:g} to {most:g}; divide them in the environment: values so large are "
                "learned slowly"
            )
        self.note("rewards", f"{between(least, most)} for a random action", warning)

        warning = None
        if play.lengths:
            good = f"length {between(min(play.lengths), max(play.lengths))}; {play.terminated} of "
            good += f"{len(play.lengths)} terminated, by random actions"
        else:
            good = f"none ended within {count} random actions"
            if env.time_limit is None:
                warning = f"{good}, and there is no time limit: add --set max_episode_steps=1000"
            good += f"; the time limit is {env.time_limit} steps"
        self.note("episodes", good, warning)

    def draw(self, env: Environment) -> None:
        """Whether it can be drawn; it need not be."""
        found, cure = "", "; it can be trained, but not watched"
        try:
            with (
                hidden_display(),
                contextlib.closing(
                    make_environment(self.env_id, self.changes, "rgb_array")
                ) as drawn,
            ):
                drawn.reset(seed=1)
                picture = drawn.render()
        except (UsageError, EnvironmentFault) as error:
            self.note("drawing", "", self.told(error) + cure)
            return
        is_picture = isinstance(picture, np.ndarray) and picture.dtype == np.uint8
        if is_picture and picture.ndim == 3 and picture.shape[2] in (3, 4) and picture.size:
            self.note("drawing", f"pictures of {picture.shape[1]} × {picture.shape[0]}")
            return
        found = f"a {type(picture).__name__}"
        if isinstance(picture, np.ndarray):
            found = f"an array {picture.shape} of {picture.dtype}"
        expected = "expected an array (height, width, 3) of uint8"
        self.note("drawing", "", f"its render returns {found}; {expected}{cure}")


def examine(env_id: str, changes: Mapping[str, Value], log: Callable[[str], None]) -> bool:
    """Examine an environment; print a line for each point.

    Args:
        changes: what `--set` gives.
        log: prints a line.

    Returns:
        whether it can be trained.
    """
    try:
        Examination(env_id, changes, log).examine()
    except Untrainable as finding:
        log(str(finding))
        log(f"{env_id} can't be trained as it is")
        return False
    log(f"{env_id} can be trained")
    return True


def play_randomly(env: Environment) -> Play:
    """Take random actions; EnvironmentFault if the environment breaks its contract at that."""
    rng, play = np.random.default_rng(2), Play()
    steps = max(min(STEPS, MOST_RECORDED // env.observation_size), 1)
    with env.recording() as play.given:
        play.observations.append(env.reset(seed=2)[0])
        began, length = time.perf_counter(), 0
        while len(play.rewards) < steps and play.seconds < SECONDS:
            observation, reward, terminated, truncated, _ = env.step(
                int(rng.integers(env.n_actions))
            )
            play.observations.append(observation)
            play.rewards.append(reward)
            length += 1
            if terminated or truncated:
                play.lengths.append(length)
                play.terminated += terminated
                play.observations.append(env.reset()[0])
                length = 0
            play.seconds = time.perf_counter() - began
    return play


def episode(env: Environment) -> Iterator[Step]:
    """The steps of an episode, always the same; the first stands for the reset."""
    actions = np.random.default_rng(1).integers(env.n_actions, size=EPISODE_STEPS)
    yield env.reset(seed=5)[0].tolist(), 0.0, False, False
    for action in actions.tolist():
        observation, reward, terminated, truncated, _ = env.step(action)
        yield observation.tolist(), reward, terminated, truncated
        if terminated or truncated:
            return


def between(least: float, most: float) -> str:
    """Two numbers in words."""
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


@contextlib.contextmanager
def hidden_display() -> Iterator[None]:
    """Let pygame draw without a display, and without a word."""
    former = dict(os.environ)
    os.environ.update(SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy")
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    try:
        yield
    finally:
        for name in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER", "PYGAME_HIDE_SUPPORT_PROMPT"):
            if name in former:
                os.environ[name] = former[name]
            else:
                del os.environ[name]
