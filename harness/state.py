"""What `--resume` goes on from: where a run is, saved at any step and restored exactly."""

import io
import json
import math
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from harness.errors import UsageError, usage_error
from harness.whole_files import unseal, write_sealed

STATE_FILE = "state.npz"
VERSION = 2


@dataclass
class Episode:
    """The running episode, with all that it takes to play it again up to where it is."""

    number: int
    seed: int
    actions: list = field(default_factory=list)
    episode_return: float = 0.0
    seconds: float = 0.0

    def replay(self, env):
        """Bring `env` to where the episode is; return the observation there, float32."""
        observation, _ = env.reset(seed=self.seed)
        for action in self.actions:
            observation, *_ = env.step(action)
        return np.asarray(observation, np.float32)


@dataclass
class Progress:
    """Where a run is: every number of it that its networks, buffer and generators don't hold.

    Whatever is added here is saved and restored: arrays as arrays, the rest as JSON.
    """

    episode: Episode
    q_values: np.ndarray  # float32 (n_actions,), of the observation that comes next
    q_validation_observations: np.ndarray  # float32 (n, *observation_shape)
    step: int = 0
    loss: float = math.nan
    repeated_action: int = 0  # a random one, for so many steps to come
    repeats_left: int = 0
    best_return: float = -math.inf  # of the completed training episodes
    worst_return: float = math.inf
    best_average: float = -math.inf
    best_step: int = 0
    evaluations: list = field(default_factory=list)  # rows of evaluations.csv
    seconds: float = 0.0  # trained so far

    def finished(self, settings):
        """Whether the run has taken all its steps, or an evaluation reached `until`."""
        reached = settings.until is not None and self.best_average >= settings.until
        return reached or self.step >= settings.max_steps


def save_state(path, settings, progress, parts):
    """Save all that a run goes on from, as a sealed `.npz` of plain arrays and one JSON text.

    Args:
        settings: dict that JSON can hold.
        progress: Progress.
        parts: dict of numpy Generators, and of objects whose `get_state()` is a dict of arrays.
    """
    document = {"version": VERSION, "settings": settings, "progress": {}, "generators": {}}
    arrays = {}
    for name, value in asdict(progress).items():
        (arrays if isinstance(value, np.ndarray) else document["progress"])[name] = value
    for name, part in parts.items():
        if isinstance(part, np.random.Generator):
            document["generators"][name] = part.bit_generator.state
        else:
            arrays |= {f"{name}.{key}": value for key, value in part.get_state().items()}
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, json=text, **arrays)
    write_sealed(path, content.getbuffer())


def load_state(path):
    """Read what `save_state` wrote.

    Returns:
        dict of `settings`, `progress` (Progress), `generators` (their states) and `arrays`.

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
        state = json.loads(arrays.pop("json").tobytes())
        if state["version"] != VERSION:
            raise UsageError(f"--resume: {path} is the state of another version of this program")
        values, names = state["progress"], {item.name for item in fields(Progress)}
        values |= {name: arrays.pop(name).astype(np.float32) for name in names & arrays.keys()}
        values["episode"] = _typed(Episode, values["episode"])
        values["evaluations"] = [
            [int(step), int(episode), *map(float, results)]
            for step, episode, *results in values["evaluations"]
        ]
        if not isinstance(state["settings"], dict):
            raise TypeError("the settings must have names")
        return {**state, "progress": _typed(Progress, values), "arrays": arrays}
    except UsageError:
        raise
    except Exception:  # whole, but a stranger made it: anything can be wrong
        raise UsageError(f"--resume: {path} isn't a state of this program") from None


def _typed(kind, values):
    """A dataclass made of `values`; TypeError if one isn't of its field's type."""
    made = kind(**values)
    for item in fields(kind):
        if type(getattr(made, item.name)) is not item.type:  # True is no whole number here
            raise TypeError(f"{item.name} must be of type {item.type}")
    return made


def restore(state, new, parts, env):
    """Give `parts`, as in `save_state`, back what `state` (of `load_state`) holds of them.

    Args:
        new: Progress of a run that has just begun, whose arrays' shapes the state must have.

    Returns:
        the state's Progress, and the observation there: the episode is played again in `env`.

    Raises:
        UsageError: if it doesn't fit the parts or the environment.
    """
    progress, arrays = state["progress"], state["arrays"].items()
    try:
        if (
            progress.q_values.shape != new.q_values.shape
            or progress.q_validation_observations.shape[1:]
            != new.q_validation_observations.shape[1:]
        ):
            raise ValueError("arrays of other shapes")
        for name, part in parts.items():
            if isinstance(part, np.random.Generator):
                part.bit_generator.state = state["generators"][name]
            else:
                dot = len(name) + 1
                part.set_state({k[dot:]: v for k, v in arrays if k.startswith(f"{name}.")})
        return progress, progress.episode.replay(env)
    except Exception:  # TensorFlow's and NumPy's own kinds among them
        raise UsageError("--resume: the state doesn't fit its own settings") from None
