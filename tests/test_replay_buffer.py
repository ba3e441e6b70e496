import shutil
import subprocess
import sys
from collections import deque

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_buffer import ReplayBuffer, row_width, split_columns

# A step: its reward, and how it ends the episode ("" where it doesn't).
STEPS = st.lists(
    st.tuples(
        st.integers(-8, 8).map(float), st.sampled_from(["", "", "", "end", "cut", "end, cut"])
    ),
    max_size=60,
)
GAMMA = 0.5  # exact in float32, so that sums can be compared for equality


def fill(buffer, steps):
    """Play `steps` into the buffer; observation i is the number i, the next one is i + 0.5."""
    for i, (reward, end) in enumerate(steps):
        next_observation = np.full(buffer.observations.shape[1], i + 0.5)
        observation = np.full(buffer.observations.shape[1], i)
        buffer.add(observation, i % 3, reward, next_observation, "end" in end, "cut" in end)


def slow_transition(steps, i, n_step):
    """The n-step transition that starts at step i, as its definition says."""
    total, discount = 0.0, 1.0
    for j in range(i, min(i + n_step, len(steps))):
        reward, end = steps[j]
        total += discount * reward
        discount *= 0.0 if "end" in end else GAMMA
        if end:
            break
    return i, i % 3, total, j + 0.5, discount


def contents(buffer):
    """The buffer's transitions from the oldest on, as tuples of numbers."""
    order = (np.arange(len(buffer)) - len(buffer) + buffer.next_row) % len(buffer.rows)
    observations, actions, [returns] = split_columns(
        buffer.rows[order], buffer.observations.shape[1]
    )
    columns = (observations, actions, *returns)
    return list(
        zip(*([float(np.ravel(row)[0]) for row in column] for column in columns), strict=True)
    )


@given(STEPS, st.integers(1, 25), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_it_holds_what_a_deque_of_that_length_holds(steps, size, n_step, observation_size):
    buffer, expected = ReplayBuffer(size, observation_size, GAMMA, n_step), deque(maxlen=size)
    fill(buffer, steps)
    ends = [i for i, (_, end) in enumerate(steps) if end]
    # Known are those of ended episodes, and those with n rewards in the running one.
    for i in range(max(len(steps) - n_step + 1, ends[-1] + 1 if ends else 0)):
        expected.append(slow_transition(steps, i, n_step))
    assert len(buffer) == len(expected)
    assert contents(buffer) == list(expected)


@given(STEPS.filter(len), st.integers(1, 20), st.integers(1, 100))
@settings(max_examples=50, deadline=None)
def test_samples_are_copies_of_stored_rows(steps, size, batch_size):
    buffer = ReplayBuffer(size, 2, GAMMA, rng=np.random.default_rng(1))
    fill(buffer, steps)
    batch = buffer.sample(batch_size)
    assert batch.shape == (batch_size, row_width(2)) and batch.dtype == np.float32
    stored = {row.tobytes() for row in buffer.rows[: len(buffer)]}
    assert {row.tobytes() for row in batch} <= stored
    batch[:] = -99
    assert not (buffer.rows == -99).any()


@given(STEPS, st.integers(1, 25), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_a_transitions_own_reward_stands_beside_the_sum(steps, size, n_step, observation_size):
    both = ReplayBuffer(size, observation_size, GAMMA, n_step, one_step=True)
    summed = ReplayBuffer(size, observation_size, GAMMA, n_step)
    fill(both, steps)
    fill(summed, steps)
    _, _, [the_sum, own] = split_columns(both.rows, observation_size)
    assert row_width(observation_size, True) == both.rows.shape[1]
    assert all(map(np.array_equal, the_sum, summed.returns[0]))
    assert len(both) == len(summed) and both.next_row == summed.next_row
    for i, row in enumerate(both.observations[: len(both), 0].astype(int)):
        _, _, reward, next_observation, discount = slow_transition(steps, row, 1)
        assert (own[0][i], own[2][i]) == (reward, discount)
        assert (own[1][i] == next_observation).all()


def test_gamma_may_change_and_what_is_stored_keeps_its_own():
    buffer = ReplayBuffer(9, 1, 0.5, n_step=2)
    fill(buffer, [(1.0, "")] * 3)
    buffer.gamma = 0.25
    fill(buffer, [(1.0, "cut")])
    assert buffer.rewards[:4].tolist() == [1.5, 1.5, 1.25, 1.0]
    assert buffer.discounts[:4].tolist() == [0.25, 0.25, 0.0625, 0.25]


def test_samples_are_uniform_over_the_whole_ring():
    buffer = ReplayBuffer(50, 1, GAMMA, rng=np.random.default_rng(3))
    fill(buffer, [(0.0, "")] * 120)
    drawn = split_columns(buffer.sample(100_000), 1)[0][:, 0].astype(int)
    counts = np.bincount(drawn)[70:]
    assert len(counts) == 50 and drawn.min() == 70
    # Binomial(100 000, 1/50): mean 2000, standard deviation 44.
    assert abs(counts - 2000).max() < 5 * 44


def test_the_seed_fixes_the_samples_and_another_gives_others():
    def draw(seed):
        buffer = ReplayBuffer(50, 1, GAMMA, rng=np.random.default_rng(seed))
        fill(buffer, [(0.0, "")] * 50)
        return buffer.sample(20)

    assert (draw(1) == draw(1)).all()
    assert (draw(1) != draw(2)).any()


def test_sampling_an_empty_buffer_says_what_to_do():
    with pytest.raises(ValueError, match="empty replay buffer: add a transition first"):
        ReplayBuffer(5, 2, GAMMA).sample(1)


def test_a_restored_buffer_goes_on_as_the_first_would():
    first = ReplayBuffer(7, 2, GAMMA, n_step=3, rng=np.random.default_rng(1))
    fill(first, [(1.0, "")] * 9 + [(1.0, "cut")])
    second = ReplayBuffer(7, 2, GAMMA, n_step=3, rng=np.random.default_rng(1))
    second.set_state({name: array.copy() for name, array in first.get_state().items()})
    for buffer in (first, second):
        fill(buffer, [(2.0, ""), (3.0, "end")])
    assert (first.rows == second.rows).all()
    assert contents(first) == contents(second)
    assert len(second) == 7


def test_there_is_no_state_in_the_middle_of_an_episode():
    buffer = ReplayBuffer(7, 2, GAMMA, n_step=3)
    fill(buffer, [(1.0, "")] * 5)
    with pytest.raises(ValueError, match="at the end of an episode only"):
        buffer.get_state()


@pytest.mark.parametrize("change", [{"size": 6}, {"observation_size": 3}])
def test_the_state_of_another_buffer_is_refused(change):
    buffer = ReplayBuffer(7, 2, GAMMA)
    fill(buffer, [(1.0, "")] * 9)
    with pytest.raises(ValueError, match="state of a replay buffer like this one"):
        ReplayBuffer(**{"size": 7, "observation_size": 2, "gamma": GAMMA, **change}).set_state(
            buffer.get_state()
        )


def test_it_works_alone_copied_into_another_project(tmp_path):
    shutil.copy(ROOT / "replay_buffer.py", tmp_path / "copied.py")
    lines = """
import sys
sys.path.insert(0, ".")
from copied import ReplayBuffer
buffer = ReplayBuffer(5, 1, 0.9)
buffer.add([1.0], 0, 2.0, [3.0], False, True)
print(buffer.sample(1).tolist())
"""
    command = [sys.executable, "-I", "-c", lines]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("[[1.0, 0.0, 2.0, 3.0, 0.8999999761581421]]\n", "")
