"""The experience replay: a ring buffer of transitions."""

import numpy as np


class ReplayBuffer:
    """The last `size` transitions, drawn uniformly with replacement.

    A transition is one float32 row, so that a batch is one gather and one array to hand to
    TensorFlow. Its columns, in this order, are views of the same memory:

    - `observations` (size, *observation_shape)
    - `actions` (size,): the action's number
    - `rewards` (size,): the sum of up to `n_step` discounted rewards, r + γr' + γ²r'' + …
    - `next_observations` (size, *observation_shape): what followed the last of those rewards
    - `discounts` (size,): what the next observation's value counts for: γ to the number of
      rewards summed, or 0 behind a terminated transition

    With `n_step` 1 that is the tutorial's buffer. With more, a row's return grows while its
    episode goes on (Sutton 1988; used by Rainbow, Hessel et al. 2017, section "Multi-step
    learning"): it never reaches into another episode, and bootstraps from the last observation
    of an episode that was truncated.
    """

    def __init__(self, size, observation_shape, gamma, n_step=1, seed=None):
        self.observation_shape = tuple(observation_shape)
        self.rows = np.zeros((size, row_width(self.observation_shape)), np.float32)
        columns = split_columns(self.rows, self.observation_shape)
        self.observations, self.actions, self.rewards, self.next_observations, self.discounts = (
            columns
        )
        self.gamma = gamma
        self.n_step = n_step
        self.rng = np.random.default_rng(seed)
        self.next_row = 0
        self.length = 0
        self.growing = 0  # how many of the newest rows the next reward still belongs to

    def __len__(self):
        return self.length

    def add(self, observation, action, reward, next_observation, terminated, truncated):
        """Store a transition in place of the oldest one; O(1) for `n_step` 1, else O(n_step)."""
        discount = 0.0 if terminated else self.gamma
        if self.growing:
            rows = np.arange(self.next_row - self.growing, self.next_row) % len(self.rows)
            self.rewards[rows] += self.discounts[rows] * np.float32(reward)
            self.discounts[rows] *= np.float32(discount)
            self.next_observations[rows] = next_observation
        row = self.next_row
        self.observations[row] = observation
        self.actions[row] = action
        self.rewards[row] = reward
        self.next_observations[row] = next_observation
        self.discounts[row] = discount
        self.next_row = (row + 1) % len(self.rows)
        self.length = max(self.length, row + 1)
        episode_ended = terminated or truncated
        self.growing = (
            0 if episode_ended else min(self.growing + 1, self.n_step - 1, len(self.rows) - 1)
        )

    def sample(self, batch_size):
        """Draw transitions uniformly with replacement, O(batch_size).

        Returns:
            float32 array (batch_size, row_width), a copy; `split_columns` names its columns.

        Raises:
            ValueError: if the buffer is empty.
        """
        if not self.length:
            raise ValueError("can't sample from an empty replay buffer: add a transition first")
        # Scaled uniform numbers cost half of what rng.integers does.
        rows = (self.rng.random(batch_size) * self.length).astype(np.intp)
        return self.rows.take(rows, axis=0)

    def draw_observations(self, count, seed):
        """Draw observations with a generator of their own, so that `sample` isn't disturbed.

        Returns:
            float32 array (count, *observation_shape), a copy.
        """
        return self.observations[np.random.default_rng(seed).integers(self.length, size=count)]

    def get_state(self):
        """All that `set_state` needs to go on just as this buffer would, as a dict of arrays."""
        counters = np.array([self.length, self.next_row, self.growing])
        return {"rows": self.rows[: self.length], "counters": counters}

    def set_state(self, state):
        """Take over what `get_state` of a buffer of the same size returned."""
        self.length, self.next_row, self.growing = map(int, state["counters"])
        self.rows[: self.length] = state["rows"]


def row_width(observation_shape):
    """How many float32 numbers a transition takes."""
    return 2 * int(np.prod(observation_shape)) + 3


def split_columns(rows, observation_shape):
    """Views of the columns of `rows`, a NumPy array (n, row_width): see ReplayBuffer."""
    n = int(np.prod(observation_shape))
    return (
        _shaped(rows[:, :n], observation_shape),
        rows[:, n],
        rows[:, n + 1],
        _shaped(rows[:, n + 2 : 2 * n + 2], observation_shape),
        rows[:, 2 * n + 2],
    )


def _shaped(columns, observation_shape):
    return columns.reshape(-1, *observation_shape) if len(observation_shape) != 1 else columns
