"""A run's state: what was saved is read, and nothing else."""

import numpy as np
import pytest
from conftest import damaged

from harness.errors import UsageError
from harness.state import Progress, load_state, save_state


def test_200_damaged_states_are_refused(tmp_path):
    path = tmp_path / "state.npz"
    observations = np.arange(700, dtype=np.float32).reshape(350, 2)
    progress = Progress("python run.py", step=40, q_validation_observations=observations)
    progress.episode_steps, progress.episode_returns = [20, 40], [-20.0, -19.5]
    progress.evaluations = [[30, 2, 10, -20.0, -21.0, -19.0, -1.5, 0.25]]
    save_state(path, {"gamma": 0.99}, progress, {"rng": np.random.default_rng(1)})
    loaded = load_state(path).progress
    assert np.array_equal(loaded.q_validation_observations, observations)
    loaded.q_validation_observations = progress.q_validation_observations
    assert repr(loaded) == repr(progress)
    data = path.read_bytes()
    for content in damaged(data, 200, seed=3):
        path.write_bytes(content)
        with pytest.raises(UsageError) as error:
            load_state(path)
        assert "\n" not in str(error.value)
