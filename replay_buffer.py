"""The experience replay: a ring buffer of transitions."""

from collections import deque
from collections.abc import Mapping
from operator import mul
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
    truncation bootstraps from the episode's last observation. With `one_step`, each transition is
    stored with its own reward alone, too, before that (Hester et al. 2018, "Deep Q-learning from
    Demonstrations", equation 4).
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
        self.rows: Array = np.zeros((size, row_width(observation_size)), np.float32)
        (
            self.observations,
            self.actions,
            self.rewards,
            self.next_observations,
            self.discounts,
        ) = split_columns(self.rows, observation_size)
        self.n_step, self.one_step = n_step, one_step and n_step > 1
        self.powers = [gamma**k for k in range(n_step + 1)]
        # Of the running episode's last steps, whose rewards to come aren't known yet.
        self.pending: deque[tuple[Array, int]] = deque()
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
        if self.one_step:
            discount = 0.0 if terminated else self.powers[1]
            self._store(observation, action, reward, next_observation, discount)
        self.pending.append((observation, action))
        self.pending_rewards.append(reward)
        while self.pending and (terminated or truncated or len(self.pending) == self.n_step):
            first, its_action = self.pending.popleft()
            returns = sum(map(mul, self.powers, self.pending_rewards))
            discount = 0.0 if terminated else self.powers[len(self.pending_rewards)]
            self.pending_rewards.popleft()
            self._store(first, its_action, returns, next_observation, discount)

    def _store(
        self,
        observation: Array,
        action: int,
        reward: float,
        next_observation: Array,
        discount: float,
    ) -> None:
        row = self.next_row
        self.observations[row], self.actions[row] = observation, action
        self.rewards[row], self.discounts[row] = reward, discount
        self.next_observations[row] = next_observation
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


def row_width(observation_size: int) -> int:
    """How many float32 numbers a transition takes."""
    return 2 * observation_size + 3


def split_columns(rows: Any, observation_size: int) -> tuple[Any, Any, Any, Any, Any]:
    """Views of the columns of `rows`, (n, row_width), in NumPy or TensorFlow: see ReplayBuffer."""
    n = observation_size
    return rows[:, :n], rows[:, n], rows[:, n + 1], rows[:, n + 2 : -1], rows[:, -1]
