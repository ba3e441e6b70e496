"""What lets a run be stopped at any step and go on as if it hadn't: its state, and the signals."""

import contextlib
import io
import json
import math
import os
import signal
import time
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from arguments import UsageError
from files import write_sealed
from snapshot_reader import CHECKSUM

STATE_FILE = "state.npz"
VERSION = 1


class StopSignal:
    """Ctrl-C, SIGTERM and a closed terminal: the first sets `number`, and the step is finished.

    A second Ctrl-C or SIGTERM ends the process at once.
    """

    def __init__(self):
        self.number = 0
        signal.signal(signal.SIGINT, self._receive)
        signal.signal(signal.SIGTERM, self._receive)
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup and signal.getsignal(hangup) != signal.SIG_IGN:  # as `nohup` wants it
            signal.signal(hangup, self._receive)

    def _receive(self, number, _frame):
        # The shell and the system may both tell of one closed terminal.
        if self.number and number in (signal.SIGINT, signal.SIGTERM):
            os._exit(128 + number)
        self.number = self.number or number

    @property
    def exit_status(self):
        """130 after Ctrl-C, 143 after SIGTERM, as a shell reports them; 0 without either."""
        return 128 + self.number if self.number else 0


class TrainingError(Exception):
    """Training can't go on: shown as one line, exit status 1."""


def finite(array, step):
    """`array` itself if all its numbers are finite; else TrainingError with the likely cause."""
    if not math.isfinite(array.sum()):
        raise TrainingError(
            f"at step {step} the loss or the weights stopped being finite numbers: the values "
            "diverged; a lower --learning-rate, or a --gamma further below 1, is the likely cure"
        )
    return array


@dataclass
class Episode:
    """The running episode, with all that it takes to play it again up to where it is."""

    number: int
    seed: int
    actions: list = field(default_factory=list)
    episode_return: float = 0.0
    seconds: float = 0.0

    def __post_init__(self):
        self.started = time.perf_counter() - self.seconds

    def add(self, action, reward):
        """Count one step."""
        self.actions.append(action)
        self.episode_return += float(reward)

    @contextlib.contextmanager
    def paused(self):
        """What happens inside, an evaluation or saving, doesn't count as the episode's time."""
        self.stop_clock()
        yield
        self.started = time.perf_counter() - self.seconds

    def stop_clock(self):
        """Set `seconds` to the time that the episode took up to now."""
        self.seconds = time.perf_counter() - self.started

    def replay(self, env):
        """Bring `env` to where the episode is; return the observation there, float32."""
        observation, _ = env.reset(seed=self.seed)
        for action in self.actions:
            observation, *_ = env.step(action)
        return np.asarray(observation, np.float32)


@dataclass
class Progress:
    """Where a run is."""

    episode: Episode
    step: int = 0
    first_step: int = 0  # where this process took over
    log_due: bool = False  # the running episode gets a log line when it ends
    best_average: float = -math.inf
    best_step: int = 0
    evaluation_due: bool = False  # of this step: a stop cut it short


def save_state(path, settings, progress, parts, arrays):
    """Save all that a run goes on from, as a sealed `.npz` of plain arrays and one JSON text.

    Args:
        settings: dict that JSON can hold.
        progress: Progress.
        parts: dict of numpy Generators, and of objects whose `get_state()` is a dict of arrays.
        arrays: dict of further arrays.
    """
    generators = {}
    for name, part in parts.items():
        if isinstance(part, np.random.Generator):
            generators[name] = part.bit_generator.state
        else:
            arrays.update({f"{name}.{key}": value for key, value in part.get_state().items()})
    document = {
        "version": VERSION,
        "settings": settings,
        "progress": asdict(progress),
        "generators": generators,
    }
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, json=text, **arrays)
    write_sealed(path, content.getbuffer())


def load_state(path):
    """Read what `save_state` wrote.

    Returns:
        dict of `settings`, `progress`, `generators` (their states) and `arrays`.

    Raises:
        UsageError: if there is no state, or it is damaged, or another version's.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"--resume: {path} isn't a file")
    try:
        content = CHECKSUM.open(path.read_bytes())
        if content is None:
            raise ValueError("the file isn't whole")
    except FileNotFoundError:
        reason = "a run that ended before it was saved starts anew"
        if not path.parent.is_dir():
            reason = "there is no such folder"
        raise UsageError(f"--resume: {path}: no such file; {reason}") from None
    except OSError as error:
        raise UsageError(f"--resume: {path}: {error.strerror.lower()}") from None
    except ValueError as error:
        raise UsageError(f"--resume: {path}: {error}") from None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            if any(item.compress_type for item in file.zip.infolist()):
                raise ValueError("compressed: it could grow beyond any memory")
            arrays = dict(file)
        state = json.loads(arrays.pop("json").tobytes())
        if state["version"] != VERSION:
            raise UsageError(f"--resume: {path} is the state of another version of this program")
        episode = _typed(Episode, state["progress"].pop("episode"))
        progress = _typed(Progress, {**state["progress"], "episode": episode})
        if not isinstance(state["settings"], dict):
            raise TypeError("the settings must have names")
    except UsageError:
        raise
    except Exception:  # whole, but a stranger made it: anything can be wrong
        raise UsageError(f"--resume: {path} isn't a state of this program") from None
    progress.first_step = progress.step
    return {**state, "progress": progress, "arrays": arrays}


def _typed(kind, values):
    """A dataclass made of `values`; TypeError if one isn't of its field's type."""
    made = kind(**values)
    for item in fields(kind):
        if type(getattr(made, item.name)) is not item.type:  # True is no whole number here
            raise TypeError(f"{item.name} must be of type {item.type}")
    return made


def restore(state, parts, env):
    """Give `parts`, as in `save_state`, back what `state` (of `load_state`) holds of them.

    Returns:
        its Progress; the observation there, up to which the episode is played again in `env`;
        the arrays `fitted` and `q_validation_observations`.

    Raises:
        UsageError: if it doesn't fit the parts or the environment.
    """
    progress, arrays = state["progress"], state["arrays"].items()
    try:
        fitted = state["arrays"]["fitted"].astype(np.float32)
        observations = state["arrays"]["q_validation_observations"].astype(np.float32)
        if (*fitted.shape, *observations.shape[1:]) != (
            1 + env.action_space.n,
            *env.observation_space.shape,
        ):
            raise ValueError("arrays of other shapes")
        for name, part in parts.items():
            if isinstance(part, np.random.Generator):
                part.bit_generator.state = state["generators"][name]
            else:
                dot = len(name) + 1
                part.set_state({k[dot:]: v for k, v in arrays if k.startswith(f"{name}.")})
        return progress, progress.episode.replay(env), fitted, observations
    except Exception:  # TensorFlow's and NumPy's own kinds among them
        raise UsageError("--resume: the state doesn't fit its own settings") from None
