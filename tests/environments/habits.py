"""Small environments with habits of real ones: wrappers, functions as entry points, odd numbers."""

from functools import partial
from typing import ClassVar

import gym
import gymnasium
import numpy as np
from gym.envs.classic_control import MountainCarEnv

LENGTH = 10


class Line(gymnasium.Env):
    """Walk to the end of a line, counted from a base on; each step costs 1."""

    observation_space = gymnasium.spaces.Box(0, LENGTH, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self.observe(), {}

    def step(self, action):
        self.at = max(0, self.at + (1 if action == 1 else -1))
        return self.observe(), -1.0, self.at == LENGTH, False, {}

    def observe(self):
        return np.array([self.at], np.float32)


class Loop(gym.Env):
    """Gym's: ends after each third step, one place further."""

    observation_space = gym.spaces.Box(0, 3, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.array([0], np.float32), {}

    def step(self, action):
        self.at += 1
        return np.array([self.at], np.float32), 1.0, False, self.at == 3, {}


# Entry points that give numbers


class Weaker(gym.Wrapper):
    """Sets numbers of what it wraps."""

    def __init__(self, env):
        super().__init__(env)
        env.unwrapped.force = 0.0005
        env.unwrapped.gravity *= 2


def fast_goal(render_mode=None):
    return MountainCarEnv(render_mode=render_mode, goal_velocity=0.06)


def fast_goal_given(goal_velocity=0.06, slow=False):
    return MountainCarEnv(goal_velocity=goal_velocity / 2 if slow else goal_velocity)


def weaker():
    return Weaker(MountainCarEnv())


def made_inside(**arguments):
    return gym.make("MountainCar-v0", goal_velocity=0.06, **arguments)


class Optional(Line):
    """Takes texts, truth values, a number without a default, and a tuple."""

    def __init__(self, size, name="small", fast: bool | None = None, lengths=(3, 4), sticky=False):
        self.given = size, name, fast, sticky


class Inheriting(Optional):
    """Hands on what it doesn't know."""

    def __init__(self, colour="red", **others):
        super().__init__(7, **others)
        self.colour = colour


class Drifting(Line):
    """Its reset decides its wind anew."""

    def __init__(self):
        self.wind = 3

    def reset(self, *, seed=None, options=None):
        self.wind = 3
        return super().reset(seed=seed)


class Single(Line):
    """One of it can exist at a time."""

    opened = 0
    made = 0

    def __init__(self, render_mode=None, pace=1):
        if Single.opened:
            raise OSError("Address already in use")
        Single.opened += 1
        Single.made += 1
        self.pace, self.weight = pace, 2

    def close(self):
        Single.opened -= 1


# Numbers that mislead


class Far(Line):
    """Counted from a large number on."""

    base = 1_700_000_000
    dtype = np.float64

    def __init__(self):
        if "observation_space" not in vars(type(self)):
            end = self.base + LENGTH
            self.observation_space = gymnasium.spaces.Box(self.base, end, (1,), self.dtype)

    def observe(self):
        return np.array([self.base + self.at], self.dtype)


class FarWhole(Far):
    dtype = np.int64


class FarUnbounded(Far):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)


class FarPart(Far):
    observation_space = gymnasium.spaces.Dict(
        clock=gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64),
        cell=gymnasium.spaces.Discrete(LENGTH + 1),
    )

    def observe(self):
        return {"clock": super().observe(), "cell": self.at}


class FarPair(Far):
    observation_space = gymnasium.spaces.Tuple(
        [gymnasium.spaces.Discrete(2), gymnasium.spaces.Box(0, 2e9, (1,), np.float32)]
    )

    def observe(self):
        return 0, super().observe()


class NarrowBounds(Far):
    """Its bounds say what its observations don't show yet."""

    def observe(self):
        return np.array([float(self.base)])


class NotSoFar(Far):
    base = 10_000_000


class Physical(Line):
    """Float64, as simulators compute: now and then it hardly moves."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def observe(self):
        return np.array([[0.0, 1.0, 1.0 + 1e-12, 2.0][self.at % 4]])


class Outside(Line):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def observe(self):
        return np.array([7 if self.at == 0 else 0], np.float32)


class OutsideLater(Outside):
    def observe(self):
        return np.array([self.at], np.float32)


class OutsidePart(Outside):
    observation_space = gymnasium.spaces.Dict(place=gymnasium.spaces.Box(-1, 1, (1,), np.float32))

    def observe(self):
        return {"place": super().observe()}


class Rounded(Line):
    """Its bounds are float32, its numbers float64: the bound lies a rounding below."""

    observation_space = gymnasium.spaces.Box(-0.7, 0.7, (1,), np.float32)

    def observe(self):
        return np.array([0.7 if self.at % 2 else -0.7])


class NeedsItem(Line):
    def step(self, action):
        return super().step(action.item())


class Resetting(Line):
    """Begins the next episode by itself, as vector environments do."""

    name = "final_obs"

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(1)
        if terminated:
            first, info = self.reset()
            return first, reward, terminated, truncated, {**info, self.name: observation}
        return observation, reward, terminated, truncated, info


class StrictLater(Line):
    """Makes NumPy strict in an episode; its numbers are small."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        np.seterr(all="raise")
        return super().reset(seed=seed)

    def observe(self):
        return np.array([1e-300 * self.at])


class StrictPart(StrictLater):
    observation_space = gymnasium.spaces.Dict(x=gymnasium.spaces.Box(0, 1, (1,), np.float32))

    def observe(self):
        return {"x": super().observe()}


class Wide(Line):
    observation_space = gymnasium.spaces.Box(0, 1, (10_001,), np.float32)


class Sharing(Line):
    """All of it stand at one place, a fault."""

    places: ClassVar = [0]

    def reset(self, *, seed=None, options=None):
        self.places[0] = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.places[0] += 1
        return super().step(action)

    def observe(self):
        return np.array([min(self.places[0], LENGTH)], np.float32)


class Bandit(Line):
    """Truncated at once, with large rewards, the same all the time."""

    def step(self, action):
        return np.zeros(1, np.float32), -1000.0 * action, False, True, {}

    def observe(self):
        return np.zeros(1, np.float32)


class Endless(Line):
    """Never gets anywhere."""

    def step(self, action):
        return np.array([action], np.float32), float(action), False, False, {}


class Dice(Line):
    """Draws from NumPy's global generator."""

    def observe(self):
        return np.array([np.random.random()], np.float32)


def wrapped(inner, *wrappers):
    env = inner()
    for wrapper in wrappers:
        env = wrapper(env)
    return env


def fixed_statistics():
    env = gymnasium.wrappers.NormalizeObservation(Line())
    env.update_running_mean = False
    return env


kinds = [kind for kind in list(globals().values()) if isinstance(kind, type)]
for kind in kinds:
    if issubclass(kind, Line) and kind not in (Line, Endless):
        gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=50)
gymnasium.register("Line-v0", Line)
gymnasium.register("Endless-v0", Endless)
gym.register("FastGoal-v0", fast_goal, max_episode_steps=200)
gym.register("FastGoalGiven-v0", fast_goal_given, max_episode_steps=200)
gym.register("Weaker-v0", weaker, max_episode_steps=200)
gym.register("MadeInside-v0", made_inside)
own, modern = gym.wrappers, gymnasium.wrappers
for name, package, wrappers in [
    ("Normalised", gymnasium, (modern.NormalizeObservation,)),
    ("NormalisedRewards", gymnasium, (modern.NormalizeReward, modern.FlattenObservation)),
    (
        "NormalisedOfGym",
        gym,
        (own.NormalizeObservation, partial(own.TimeLimit, max_episode_steps=9)),
    ),
    ("NormalisedRewardsOfGym", gym, (own.NormalizeReward,)),
    ("AutoReset", gym, (own.AutoResetWrapper,)),
    ("AutoResetInside", gym, (own.AutoResetWrapper, own.FlattenObservation)),
    ("AutoResetOfGymnasium", gymnasium, (modern.Autoreset, modern.FlattenObservation)),
]:
    inner = Loop if package is gym else Line
    package.register(f"{name}-v0", partial(wrapped, inner, *wrappers))
gymnasium.register("FixedStatistics-v0", fixed_statistics)
