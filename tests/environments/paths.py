"""A path, registered with gymnasium and drawn: as nearly everyone's environment is today."""

from typing import ClassVar

import gym
import gymnasium
import numpy as np


class Path(gymnasium.Env):
    """Walk to its end; action 1 goes there. The observation is the part that lies behind."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None, length=6):
        self.render_mode = render_mode
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.walked = 0
        return self.observe(), {}

    def step(self, action):
        self.walked = max(self.walked + 2 * int(action) - 1, 0)
        return self.observe(), -1.0, self.walked == self.length, False, {}

    def observe(self):
        return np.array([self.walked / self.length], np.float32)

    def render(self):
        picture = np.full((16, 16 * (self.length + 1), 3), (0, 90, 0), np.uint8)
        picture[:, 16 * self.walked :][:, :16] = 240, 200, 40
        return picture


class Derived(Path):
    """Keeps its argument under another name, and counts the places."""

    def __init__(self, render_mode=None, end=6, wide=False):
        super().__init__(render_mode, end)
        self.places = self.length + 1
        self.observation_space = gymnasium.spaces.Box(0, 1, (2 if wide else 1,), np.float32)

    def observe(self):
        return np.repeat(super().observe(), self.observation_space.shape)


class Limited(Path):
    """Truncates its episodes itself."""

    def __init__(self, max_episode_steps=20):
        super().__init__()
        self.most = max_episode_steps

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.steps += 1
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, self.steps == self.most, info


class Picky(Path):
    """Has numbers of several types, one drawn at random; its constructor takes few of them."""

    def __init__(self, render_mode=None, length=6):
        super().__init__(render_mode, length)
        self.cells, self.start = np.int64(6), np.random.random()
        if self.cells > 10:
            raise ValueError


class Growing(Path):
    """Its pictures grow."""

    def render(self):
        return super().render().repeat(1 + self.walked, axis=0)


class Silent(Path):
    """Draws nothing."""

    def render(self):
        return None


class Films(Path):
    def render(self):
        return [super().render()]


class Texts(Path):
    metadata: ClassVar = {"render_modes": ["ansi"]}


class Floats(Path):
    def render(self):
        return super().render() / 255


class Timeless(Path):
    """Its metadata has no frame rate."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}


class Fast(Path):
    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 60}


for kind in Path, Derived, Picky, Growing, Silent, Films, Texts, Floats, Timeless, Fast:
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=50)
gymnasium.register("Limited-v0", Limited)
gym.register("GymnasiumsPath-v0", Path, max_episode_steps=50)
