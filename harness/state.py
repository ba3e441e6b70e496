"""What `--resume` goes on from: the run at the end of an episode, saved and restored exactly."""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.arrays import Arrays
from harness.errors import UsageError, usage_error
from harness.log_folder import snapshot_of
from harness.whole_files import unseal, write_sealed

VERSION = 6
NO_OBSERVATIONS = np.zeros((0, 0), np.float32)


class Part(Protocol):
    """An object whose state is a dict of arrays."""

    def get_state(self) -> Arrays:
        """All that `set_state` needs."""

    def set_state(self, state: Arrays) -> None:
        """Take over what `get_state` returned."""


Parts = Mapping[str, Part | np.random.Generator]


@dataclass
class Progress:
    """Where a run is: all of it that its networks, buffer and generators don't hold.

    Whatever is added here is saved and restored: arrays as arrays, the rest as JSON.
    """

    command: str  # that started the run
    step: int = 0
    episode: int = 0  # the number of the last one that began
    loss: float = math.nan
    seconds: float = 0.0  # trained so far
    # float32 (n, observation_size), n = 0 until they are drawn
    q_validation_observations: np.ndarray = field(default_factory=NO_OBSERVATIONS.copy)
    evaluations: list = field(default_factory=list)  # rows of evaluations.csv
    best_average: float = -math.inf
    best_step: int = 0
    confirmed_average: float = -math.inf  # the best that 100 fresh episodes have confirmed
    # Of each completed training episode: the step at which it ended, and its return.
    episode_steps: list = field(default_factory=list)
    episode_returns: list = field(default_factory=list)
    least_reward: float = math.inf
    largest_reward: float = -math.inf
    diagnosis: list = field(default_factory=list)  # lines that were said about the run

    def reached(self, until: float | None) -> bool:
        """Whether fresh episodes have confirmed an average of `until`."""
        return until is not None and self.confirmed_average >= until


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
            raise ValueError(_nothing_saved(path.parent))
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
        progress = _progress(document["progress"], arrays)
        if not isinstance(document["settings"], dict):
            raise TypeError("the settings must have names")
        return State(document["settings"], progress, document["generators"], arrays)
    except UsageError:
        raise
    except Exception:  # whole, but a stranger made it: anything can be wrong
        raise UsageError(f"--resume: {path} isn't a state of this program") from None


def _nothing_saved(folder: Path) -> str:
    try:
        snapshot_of(folder)
    except UsageError:
        snapshots = sorted(folder.glob("[!.]*.h5"))
        if not snapshots:
            return "no run was saved there; start it again"
        folder = snapshots[-1]
    return f"no state was saved there; train its policy further: --model {folder} --train"


def _progress(values: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Progress:
    """A Progress of values and arrays from a file; an error of any kind if one is of a wrong type.

    The arrays that belong to it are removed from `arrays`.
    """
    for item in fields(Progress):
        if item.type is np.ndarray:
            values[item.name] = arrays.pop(item.name).astype(np.float32)
    values["evaluations"] = [
        [int(step), int(episode), int(episodes), *map(float, results)]
        for step, episode, episodes, *results in values["evaluations"]
    ]
    values["episode_steps"] = list(map(int, values["episode_steps"]))
    values["episode_returns"] = list(map(float, values["episode_returns"]))
    values["diagnosis"] = list(map(str, values["diagnosis"]))
    made = Progress(**values)
    for item in fields(Progress):
        if type(getattr(made, item.name)) is not item.type:  # True is no whole number here
            raise TypeError(f"{item.name} must be of type {item.type}")
    return made


def restore(state: State, parts: Parts, observation_size: int) -> Progress:
    """Give `parts`, as in `save_state`, back what a state holds of them; return its Progress.

    Raises:
        UsageError: if it doesn't fit the parts or the environment.
    """
    try:
        drawn = state.progress.q_validation_observations
        if len(drawn) and drawn.shape[1:] != (observation_size,):
            raise ValueError("observations of another environment")
        for name, part in parts.items():
            if isinstance(part, np.random.Generator):
                part.bit_generator.state = state.generators[name]
            else:
                dot = len(name) + 1
                part.set_state(
                    {k[dot:]: v for k, v in state.arrays.items() if k.startswith(f"{name}.")}
                )
    except UsageError:
        raise
    except Exception:  # TensorFlow's and NumPy's own kinds among them
        raise UsageError("--resume: the state doesn't fit its own settings") from None
    return state.progress
