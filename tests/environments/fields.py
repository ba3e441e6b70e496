"""Small environments of gym's kind, each with one habit or one fault of those that people write.

A field of 4 × 4 places is crossed from one corner to the opposite one: at best in six steps of
reward -1 each.
"""

import os
import signal
import sys
from typing import ClassVar

import gym
import gymnasium
import numpy as np

SIZE = 4
STEPS = {0: (1, 0), 1: (-1, 0), 2: (0, 1), 3: (0, -1)}


class Field(gym.Env):
    """Keeps the contract. The observation is the row and the column."""

    observation_space = gym.spaces.Box(0, SIZE - 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(4)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.place = np.zeros(2, np.float32)
        return self.observe(), {}

    def step(self, action):
        moved = self.place + STEPS[int(action)]
        self.place[:] = moved.clip(0, SIZE - 1)
        terminated = bool(self.place.min() == SIZE - 1)
        return self.observe(), -1.0, terminated, False, {}

    def observe(self):
        return self.place.copy()


class Reusing(Field):
    """Hands out the array that it goes on to change."""

    def observe(self):
        return self.place


class ReadOnlyView(Field):
    """Hands out every other number of a larger array, not to be written to."""

    def observe(self):
        view = np.repeat(self.place, 2)[::2]
        view.flags.writeable = False
        return view


class Listing(Field):
    def observe(self):
        return self.place.tolist()


class Tupling(Field):
    def observe(self):
        return tuple(self.place.astype(int))


class Doubles(Field):
    def observe(self):
        return self.place.astype(np.float64)


class Bytes(Field):
    observation_space = gym.spaces.Box(0, 255, (2,), np.uint8)

    def observe(self):
        return self.place.astype(np.uint8)


class NumpyValues(Field):
    """Its reward and its booleans are NumPy's, as arrays without a dimension."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, np.array(reward), np.array(terminated), np.bool_(truncated), info


class Board(Field):
    """A picture of the field, one where we are."""

    observation_space = gym.spaces.Box(0, 1, (SIZE, SIZE), np.float32)

    def observe(self):
        board = np.zeros((SIZE, SIZE), np.float32)
        board[tuple(self.place.astype(int))] = 1
        return board


class Numbered(Field):
    """The number of the place, from 1 on."""

    observation_space = gym.spaces.Discrete(SIZE * SIZE, start=1)

    def observe(self):
        return int(SIZE * self.place[0] + self.place[1]) + 1


class Pair(Field):
    observation_space = gym.spaces.Tuple([gym.spaces.Discrete(SIZE), gym.spaces.Discrete(SIZE)])

    def observe(self):
        return tuple(self.place.astype(int))


class Named(Field):
    observation_space = gym.spaces.Dict(
        row=gym.spaces.Box(0, SIZE - 1, (), np.float32), column=gym.spaces.MultiDiscrete([SIZE])
    )

    def observe(self):
        return {"row": self.place[0], "column": self.place[1:].astype(int)}


class ListedPair(Field):
    """Its place, as a list where an array is usual."""

    observation_space = gym.spaces.MultiDiscrete([SIZE, SIZE])

    def observe(self):
        return self.place.astype(int).tolist()


class ActionsFromFive(Field):
    """Its actions are 5 to 8."""

    action_space = gym.spaces.Discrete(4, start=5)

    def step(self, action):
        return super().step(action - 5)


class WithoutRenderMode(Field):
    def __init__(self):
        self.render_mode = None


class DrawnWithoutRenderMode(WithoutRenderMode):
    metadata: ClassVar = {"render_modes": ["rgb_array"]}


class DrawnWithoutConstructor(gym.Env):
    """Has the constructor of `object`, which takes no arguments."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    observation_space, action_space = Field.observation_space, Field.action_space
    reset, step, observe = Field.reset, Field.step, Field.observe


class Unlimited(Field):
    """Registered without a time limit."""


class Sticking(Field):
    """Its first 13 episodes end at once, the later ones never."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, self.episodes <= 13, False, {}


class OldStep(Field):
    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class OldReset(Field):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class Unseeded(Field):
    def reset(self):
        return super().reset()


class Longer(Field):
    def observe(self):
        return np.append(self.place, 0)


class Column(Field):
    def observe(self):
        return self.place[:, None]


class Ragged(Field):
    def observe(self):
        return [1, [2, 3]]


class Words(Field):
    def observe(self):
        return ["1", "2"]


class Complex(Field):
    def observe(self):
        return self.place.astype(np.float64) + 1j


class Nothing(Field):
    def observe(self):
        return None


class OutsideItsSpace(Numbered):
    def observe(self):
        return super().observe() - 1


class WrongPart(Named):
    def observe(self):
        return super().observe() | {"column": [SIZE]}


class MissingPart(Named):
    def observe(self):
        return {"row": self.place[0]}


class WithKeys(Pair):
    def observe(self):
        return dict(enumerate(super().observe()))


class Overflowing(Field):
    observation_space = gym.spaces.Dict(x=gym.spaces.Box(0, 255, (1,), np.uint8))

    def observe(self):
        return {"x": [300]}


class Fractional(Overflowing):
    def observe(self):
        return {"x": np.array([0.7])}


class Numeral(Overflowing):
    def observe(self):
        return {"x": ["3"]}


class Unspeakable(Field):
    class Secret:
        def __repr__(self):
            raise RuntimeError("it can't be told")

    def observe(self):
        return self.Secret()


class DictOfValues(Field):
    def step(self, action):
        names = "observation", "reward", "terminated", "truncated", "info"
        return dict(zip(names, super().step(action), strict=True))


class ComplexReward(Field):
    def step(self, action):
        observation, _, *others = super().step(action)
        return observation, np.complex128(-1 + 1j), *others


class OwnSignature(Field):
    def reset(self, seed, options):
        return super().reset(seed=seed)


class HelperFails(Field):
    """Its reset takes a seed; what it calls doesn't."""

    def reset(self, *, seed=None, options=None):
        def helper():
            pass

        helper(seed=seed)


class FloatPair(Field):
    """Whole numbers, written as others."""

    observation_space = gym.spaces.MultiDiscrete([SIZE, SIZE])

    def observe(self):
        return [float(number) for number in self.place]


class UnsignedNumber(Field):
    observation_space = gym.spaces.Discrete(SIZE)

    def observe(self):
        return np.uint64(self.place[0])


class Untidy(Field):
    """Fails where it cleans up, says nothing useful of itself, changes what belongs to others."""

    metadata: ClassVar = ["rgb_array"]

    def __init__(self, render_mode=None):
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def reset(self, *, seed=None, options=None):
        os.chdir("/")
        return super().reset(seed=seed)

    def step(self, action):
        os.chdir("/")
        return super().step(action)

    def close(self):
        raise RuntimeError("it was closed before")


class Growing(Field):
    """Has one more number each time it is made."""

    size = 2

    def __init__(self, render_mode=None):
        Growing.size += 1
        self.observation_space = gym.spaces.Box(-1, 1, (Growing.size,), np.float32)

    def observe(self):
        return np.resize(self.place, self.observation_space.shape)


class LateExit(Field):
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps > 700:
            sys.exit(0)
        return super().step(action)


class NaNReward(Field):
    def step(self, action):
        observation, _, *others = super().step(action)
        return observation, float("nan"), *others


class NoReward(NaNReward):
    def step(self, action):
        observation, _, *others = super().step(action)
        return observation, None, *others


class InfoForTruncated(Field):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, info, truncated


class Infinite(Field):
    def observe(self):
        return self.place + np.inf


class OneActionFails(Field):
    """Action 3 was forgotten."""

    def step(self, action):
        return super().step({0: 0, 1: 1, 2: 2}[int(action)])


class LateNaN(Field):
    """From its 700th step on, it observes NaN."""

    steps = 0

    def observe(self):
        self.steps += 1
        return self.place * np.float32(1 if self.steps < 700 else np.nan)


class LateCrash(LateNaN):
    def observe(self):
        self.steps += 1
        return self.place.copy() if self.steps < 700 else {}["forgotten"]


class Absent(Field):
    def __init__(self, render_mode=None):
        raise RuntimeError("its owner forgot something")


class Picture(Field):
    observation_space = gym.spaces.Box(0, 255, (60, 60, 3), np.uint8)


class Sentence(Field):
    observation_space = gym.spaces.Dict(words=gym.spaces.Text(8))


class Steering(Field):
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)


class Spaceless(gym.Env):
    action_space = gym.spaces.Discrete(2)


class Orphan:
    """No environment at all."""


def registered():
    for kind in list(globals().values()):
        if isinstance(kind, type) and issubclass(kind, gym.Env) and kind is not gym.Env:
            yield kind


for kind in registered():
    limit = None if kind in (Unlimited, Sticking) else 50
    gym.register(f"{kind.__name__}-v0", kind, max_episode_steps=limit)
gym.register("Orphan-v0", Orphan)
gym.register("WrongLimit-v0", Field, max_episode_steps="50")
gym.register("Nowhere-v0", "fields:Forgotten")
gym.register("Hurried-v0", lambda: gym.wrappers.TimeLimit(Field(), 5))
# The same name as one of gym's own.
gymnasium.register("Acrobot-v1", Field, max_episode_steps=50)
gymnasium.register("GymsField-v0", Field, max_episode_steps=50)
