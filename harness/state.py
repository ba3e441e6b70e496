"""What `--resume` goes on from: where a run is, saved at any step and restored exactly."""

import io
import json
import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.arrays import Array, Arrays
from harness.environments import Environment
from harness.errors import UsageError, usage_error
from harness.flags import LAST_SEED
from harness.whole_files import unseal, write_sealed

VERSION = 3


class Part(Protocol):
    """An object whose state is a dict of arrays."""

    def get_state(self) -> Arrays:
        """All that `set_state` needs."""

    def set_state(self, state: Arrays) -> None:
        """Take over what `get_state` returned."""


Parts = Mapping[str, Part | np.random.Generator]


@dataclass
class Episode:
    """The running episode, with all that it takes to play it again up to where it is."""

    number: int
    seed: int
    actions: list = field(default_factory=list)
    episode_return: float = 0.0
    seconds: float = 0.0

    def add(self, action: int, reward: float) -> None:
        """Count a step."""
        self.actions.append(action)
        self.episode_return += reward


@dataclass
class Progress:
    """Where a run is: all of it that its networks, buffer and generators don't hold.

    Whatever is added here is saved and restored: arrays as arrays, the rest as JSON.
    """

    episode: Episode
    observation: np.ndarray  # float32 (observation_size,), the latest
    q_values: np.ndarray  # float32 (n_actions,), those of the observation
    q_validation_observations: np.ndarray  # float32 (n, observation_size), n = 0 until drawn
    command: str  # that started the run
    step: int = 0
    loss: float = math.nan
    best_return: float = -math.inf  # of the completed training episodes
    worst_return: float = math.inf
    best_average: float = -math.inf
    best_step: int = 0
    confirmed_average: float = -math.inf  # the best that 100 fresh episodes have confirmed
    evaluations: list = field(default_factory=list)  # rows of evaluations.csv
    seconds: float = 0.0  # trained so far

    def finished(self, settings: Namespace) -> bool:
        """Whether the run has taken all its steps, or reached `until`."""
        reached = settings.until is not None and self.confirmed_average >= settings.until
        return reached or self.step >= settings.max_steps


@dataclass
class State:
    """A run's state as it was read: nothing of it is checked against the run's networks yet."""

    settings: dict[str, Any]
    progress: Progress
    generators: dict[str, Any]  # the states of the numpy Generators
    arrays: dict[str, npt.NDArray[Any]]  # those of the other parts


def save_state(path: Path, settings: Mapping[str, Any], progress: Progress, parts: Parts) -> None:
    """Save all that a run goes on from, as a sealed `.npz` of plain arrays and one JSON text.

    Args:
        settings: values that JSON can hold.
        parts: whatever else the run consists of, by names of the caller's choice.
    """
    values: dict[str, Any] = {}
    generators: dict[str, Any] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, value in asdict(progress).items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            values[name] = value
    for name, part in parts.items():
        if isinstance(part, np.random.Generator):
            generators[name] = part.bit_generator.state
        else:
            arrays |= {f"{name}.{key}": value for key, value in part.get_state().items()}
    document = {
        "version": VERSION,
        "settings": dict(settings),
        "progress": values,
        "generators": generators,
    }
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    content = io.BytesIO()
    # The types of NumPy 2.4 take the values for `allow_pickle`.
    np.savez(content, json=text, **arrays)  # type: ignore[arg-type, unused-ignore]
    write_sealed(path, content.getbuffer())


def load_state(path: Path) -> State:
    """Read what `save_state` wrote.

    Raises:
        UsageError: if there is no state, or it is damaged, or another version's.
    """
    with usage_error(f"--resume: {path}"):
        if not path.parent.is_dir():
            raise ValueError("no such folder")
        if not path.exists():
            raise ValueError("no run was saved there; start it again")
        if not path.is_file():
            raise ValueError("it isn't a file")
        content = unseal(path.read_bytes())
        if content is None:
            raise ValueError("the file isn't whole")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            if any(item.compress_type for item in file.zip.infolist()):
                raise ValueError("compressed: it could grow beyond any memory")
            arrays = dict(file)
        document = json.loads(arrays.pop("json").tobytes())
        if document["version"] != VERSION:
            raise UsageError(f"--resume: {path} is the state of another version of this program")
        values = document["progress"]
        for item in fields(Progress):
            if item.type is np.ndarray:
                values[item.name] = arrays.pop(item.name).astype(np.float32)
        values["episode"] = _typed(Episode, values["episode"])
        values["evaluations"] = [
            [int(step), int(episode), int(episodes), *map(float, results)]
            for step, episode, episodes, *results in values["evaluations"]
        ]
        if not isinstance(document["settings"], dict):
            raise TypeError("the settings must have names")
        progress = _typed(Progress, values)
        return State(document["settings"], progress, document["generators"], arrays)
    except UsageError:
        raise
    except Exception:  # whole, but a stranger made it: anything can be wrong
        raise UsageError(f"--resume: {path} isn't a state of this program") from None


def _typed(kind: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass made of `values`; TypeError if one isn't of its field's type."""
    made = kind(**values)
    for item in fields(kind):
        if type(getattr(made, item.name)) is not item.type:  # True is no whole number here
            raise TypeError(f"{item.name} must be of type {item.type}")
    return made


def restore(state: State, parts: Parts, env: Environment) -> Progress:
    """Give `parts`, as in `save_state`, back what a state holds of them; return its Progress.

    Raises:
        UsageError: if it doesn't fit the parts or the environment.
    """
    progress = state.progress
    try:
        if (
            progress.observation.shape != (env.observation_size,)
            or progress.q_values.shape != (env.n_actions,)
            or progress.q_validation_observations.shape[1:] != (env.observation_size,)
            or not set(progress.episode.actions) <= set(range(env.n_actions))
            or not 0 <= progress.episode.seed <= LAST_SEED
        ):
            raise ValueError("values that don't fit the environment")
        for name, part in parts.items():
            if isinstance(part, np.random.Generator):
                part.bit_generator.state = state.generators[name]
            else:
                dot = len(name) + 1
                part.set_state(
                    {k[dot:]: v for k, v in state.arrays.items() if k.startswith(f"{name}.")}
                )
    except Exception:  # TensorFlow's and NumPy's own kinds among them
        raise UsageError("--resume: the state doesn't fit its own settings") from None
    return progress


def replayed(env: Environment, episode: Episode, observation: Array) -> bool:
    """Play an episode again; return whether `env` is now where it was, at that observation.

    It isn't where the environment draws from generators that its `reset` doesn't seed.
    """
    now, _ = env.reset(seed=episode.seed)
    ended = False
    for action in episode.actions:
        if ended:  # earlier than then
            return False
        now, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
    return not ended and np.array_equal(now, observation)
