"""The experience replay: a ring buffer of transitions."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class ReplayBuffer:
    """The last `size` transitions, drawn uniformly with replacement.

    A transition is one float32 row, so that a batch is one gather and one array to hand to
    TensorFlow. Its columns, in this order, are views of the same memory:

    - `observations` (size, observation_size)
    - `actions` (size,): the action's number
    - `rewards` (size,): the sum of up to `n_step` discounted rewards, r + γr' + γ²r'' + …
    - `next_observations` (size, observation_size): what followed the last of those rewards
    - `discounts` (size,): what the next observation's value counts for: γ to the number of
      rewards summed, or 0 after a terminated transition

    With `n_step` 1 that is the tutorial's buffer. With more (Sutton 1988; Hessel et al. 2017,
    "Rainbow", section "Multi-step learning"), a transition is stored once its n rewards are known,
    or its episode has ended: it never reaches into another episode, and one cut short by a
    truncation bootstraps from the episode's last observation. With `one_step`, the last three
    columns follow a second time, for the transition's own reward alone; `returns` lists both sets.

    `gamma` may change at any time; stored transitions keep theirs.
    """

    def __init__(
        self,
        size: int,
        observation_size: int,
        gamma: float,
        n_step: int = 1,
        rng: np.random.Generator | None = None,
        one_step: bool = False,
    ) -> None:
        self.rows: Array = np.zeros((size, row_width(observation_size, one_step)), np.float32)
        self.observations, self.actions, self.returns = split_columns(self.rows, observation_size)
        self.rewards, self.next_observations, self.discounts = self.returns[0]
        self.gamma, self.n_step, self.one_step = gamma, n_step, one_step
        # Of the running episode's last steps, whose rewards to come aren't known yet.
        self.pending: deque[tuple[Array, int, Array]] = deque()
        self.pending_rewards: deque[float] = deque()
        self.rng = rng or np.random.default_rng()
        self.next_row = 0
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def add(
        self,
        observation: Array,
        action: int,
        reward: float,
        next_observation: Array,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Take in one step; what it completes replaces the oldest transitions, O(n_step).

        The observations, (observation_size,), must not be changed later: they are kept until the
        transition is complete.
        """
        self.pending.append((observation, action, next_observation))
        self.pending_rewards.append(reward)
        while self.pending and (terminated or truncated or len(self.pending) == self.n_step):
            self._store_first(terminated)

    def _store_first(self, terminated: bool) -> None:
        """Store the first of the pending steps; the last of them may have terminated."""
        row, steps = self.next_row, len(self.pending)
        *_, last_observation = self.pending[-1]
        total = 0.0
        for reward in reversed(self.pending_rewards):
            total = reward + self.gamma * total
        self.observations[row], self.actions[row], next_observation = self.pending.popleft()
        self.rewards[row], self.next_observations[row] = total, last_observation
        self.discounts[row] = 0.0 if terminated else self.gamma**steps
        reward = self.pending_rewards.popleft()
        if self.one_step:
            rewards, next_observations, discounts = self.returns[1]
            rewards[row], next_observations[row] = reward, next_observation
            discounts[row] = 0.0 if terminated and steps == 1 else self.gamma
        self.next_row = (row + 1) % len(self.rows)
        self.length = max(self.length, row + 1)

    def sample(self, batch_size: int) -> Array:
        """Draw transitions uniformly with replacement, O(batch_size).

        Returns:
            float32 (batch_size, row_width), a copy; `split_columns` names its columns.

        Raises:
            ValueError: if the buffer is empty.
        """
        if not self.length:
            raise ValueError("can't sample from an empty replay buffer: add a transition first")
        # Scaled uniform numbers cost half of what rng.integers does.
        rows = (self.rng.random(batch_size) * self.length).astype(np.intp)
        return self.rows.take(rows, axis=0)

    def draw_observations(self, count: int, rng: np.random.Generator) -> Array:
        """Draw observations with another generator, so that `sample` isn't disturbed.

        Returns:
            float32 (count, observation_size), a copy.
        """
        return self.observations[rng.integers(self.length, size=count)]

    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """All that `set_state` needs to continue just as this buffer would.

        Raises:
            ValueError: in the middle of an episode, whose last steps aren't complete yet.
        """
        if self.pending:
            raise ValueError("the buffer has a state at the end of an episode only")
        return {"rows": self.rows[: self.length], "next_row": np.array(self.next_row)}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `get_state` returned; ValueError if a buffer like this one never did."""
        rows, next_row = state["rows"], int(state["next_row"])
        fits = (
            rows.shape[1:] == self.rows.shape[1:]
            and next_row in range(len(self.rows))
            and (next_row == len(rows) or len(rows) == len(self.rows))
        )
        if not fits:
            raise ValueError("that isn't the state of a replay buffer like this one")
        self.length, self.next_row = len(rows), next_row
        self.rows[: self.length] = rows


def row_width(observation_size: int, one_step: bool = False) -> int:
    """How many float32 numbers a transition takes."""
    return observation_size + 1 + (1 + one_step) * (observation_size + 2)


def split_columns(rows: Any, observation_size: int) -> tuple[Any, Any, list[tuple[Any, Any, Any]]]:
    """Views of the columns of `rows`, (n, row_width), in NumPy or TensorFlow: see ReplayBuffer.

    Returns:
        observations, actions, and for each of the one or two returns of a transition its rewards,
        next observations and discounts.
    """
    n = observation_size
    starts = range(n + 1, rows.shape[1], n + 2)
    returns = [(rows[:, i], rows[:, i + 1 : i + 1 + n], rows[:, i + 1 + n]) for i in starts]
    return rows[:, :n], rows[:, n], returns
