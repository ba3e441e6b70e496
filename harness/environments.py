"""Environments of gym, of gymnasium and of the user: made quietly, checked, changed by --set."""

import contextlib
import copy
import importlib
import inspect
import io
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.arrays import Array
from harness.errors import EnvironmentCrash, EnvironmentFault, UsageError

ENVIRONMENT = "MountainCar-v0"
TIME_LIMIT = "max_episode_steps"  # the name that --set and both packages give it
MOST_FLATTENED = 10_000  # observed numbers, of an observation that isn't flat by itself
MOST_CHECKED = 100  # actions that are tried before a training
MOST_BOUND = 1e6  # of an observed number; one that can be larger, or infinite, has no real bound
LARGEST = float(np.finfo(np.float32).max)
STEP_VALUES = "(observation, reward, terminated, truncated, info), as since gym 0.26"
RESET_VALUES = "(observation, info), info being a dict, as since gym 0.26"
# What the observed numbers and the actions are, where gym's documentation names them.
NAMES = {"MountainCar": (("position", "velocity"), ("push left", "no push", "push right"))}


class Environment:
    """Everything that a user brings, behind one door: gym's, gymnasium's, or one of their own.

    Observations are flat and belong to the caller: the environment's own arrays, which it may
    change later, stay outside. Action 0 is the first of the environment's actions, whatever
    number it gives it.

    Attributes:
        id: what `--env` names.
        package: "gym" or "gymnasium", whichever knows the ID.
        observation_space: a flat Box.
        action_space: a Discrete that starts at 0.
        observation_size, n_actions: their sizes.
        reward_threshold: the mean return that solves it, or None.
        time_limit: the steps after which an episode is truncated, or None.
        spec, metadata, unwrapped: the environment's own.
        render_mode: "human", "rgb_array" or None. It isn't always the one that was asked for: one
            that opens no window by itself has "rgb_array", for a window of ours.

    Raises:
        UsageError: if its actions or its observations are of a kind that isn't supported.
    """

    def __init__(
        self,
        env_id: str,
        package: str,
        env: Any,
        time_limit: int | None,
        render_mode: str | None = None,
    ) -> None:
        self.id, self.package, self.render_mode = env_id, package, render_mode
        self.spec, self.unwrapped = env.unwrapped.spec, env.unwrapped
        self.metadata: dict[str, Any] = env.metadata or {}
        self.reward_threshold: float | None = self.spec.reward_threshold
        limits = [time_limit or 0, *_inner_limits(env)]
        self.time_limit = min((limit for limit in limits if limit > 0), default=None)
        self._env, self._env_step, self._steps = env, env.step, 0
        self._use_actions(getattr(env, "action_space", None))
        self._use_observations(getattr(env, "observation_space", None))

    def _use_actions(self, space: Any) -> None:
        spaces = _spaces_of(space)
        if spaces is None or not isinstance(space, spaces.Discrete):
            raise UsageError(f"--env {self.id}: its actions are {space}; expected a Discrete space")
        self.n_actions, self._first_action = int(space.n), int(space.start)
        self.action_space = spaces.Discrete(self.n_actions) if self._first_action else space

    def _use_observations(self, space: Any) -> None:
        spaces, expected = _spaces_of(space), f"--env {self.id}: its observation is {space}"
        if spaces is None:
            raise UsageError(f"{expected}; expected a space of gym or gymnasium")
        kinds = spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary
        for part in _parts(spaces, space):
            if not isinstance(part, kinds):
                raise UsageError(
                    f"--env {self.id}: its observation has a {type(part).__name__} space, which "
                    "can't be made a list of numbers; leave it out with a wrapper of your own"
                )
        self.observation_size = int(spaces.flatdim(space))
        if not self.observation_size:
            raise UsageError(f"{expected}, without any number; expected at least one")
        is_box = isinstance(space, spaces.Box)
        if is_box and len(space.shape) == 1:
            self.observation_space = space
        elif self.observation_size > MOST_FLATTENED:
            raise UsageError(
                f"--env {self.id}: its observation has {self.observation_size:,} numbers; at most "
                f"{MOST_FLATTENED:,} are flattened, since networks of dense layers see no pictures"
            )
        else:
            self.observation_space = spaces.flatten_space(space)
        self._shape = space.shape if is_box else (self.observation_size,)
        self._spaces, self._composite = spaces, None if is_box else space

    def reset(self, seed: int | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode.

        Returns:
            the observation, float32 (observation_size,), and the environment's dict.

        Raises:
            EnvironmentFault: if it doesn't return these, or fails.
        """
        self._steps = 0
        try:
            result = self._env.reset(seed=seed)
        except Exception as error:
            if re.search(r"unexpected keyword argument '?seed", str(error)):
                raise self._fault(
                    "its reset takes no seed; expected reset(self, seed=None, options=None)"
                ) from None
            raise self._failure("reset", error) from error
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise self._fault(f"its reset returns {_shown(result)}; expected {RESET_VALUES}")
        observation, info = result
        if not isinstance(info, dict):
            raise self._fault(f"its reset returns {_shown(info)} for info; expected {RESET_VALUES}")
        return self._received(observation), info

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Take one step.

        Args:
            action: 0 to n_actions - 1.

        Returns:
            the observation, float32 (observation_size,); the reward; whether the episode
            terminated; whether it was truncated; the environment's dict.

        Raises:
            EnvironmentFault: if it doesn't return these, or fails.
        """
        try:
            result = self._env_step(action + self._first_action)
        except Exception as error:
            raise self._failure("step", error) from error
        self._steps += 1
        try:
            observation, reward, terminated, truncated, info = result
        except (TypeError, ValueError):
            count = f"{len(result)} values" if isinstance(result, (tuple, list)) else _shown(result)
            raise self._fault(f"its step returns {count}; expected {STEP_VALUES}") from None
        if type(reward) is not float:
            reward = self._number(reward)
        if not -LARGEST <= reward <= LARGEST:  # nor is NaN
            raise self._fault(
                f"its reward is {reward} in {self._place()}; expected a finite number"
            )
        if terminated is not False:
            terminated = self._truth("terminated", terminated)
        if truncated is not False:
            truncated = self._truth("truncated", truncated)
        if self._steps == self.time_limit:
            truncated = True
        return self._received(observation), reward, terminated, truncated, info

    def render(self) -> Any:
        """What the environment's own `render` returns: a picture, if `render_mode` says so."""
        try:
            return self._env.render()
        except Exception as error:
            raise self._failure("render", error) from error

    def close(self) -> None:
        """Close the environment's window, if there is one."""
        self._env.close()

    def blame(self, observation: Array, step: int | None = None) -> None:
        """Raise EnvironmentFault if an observation has a number that isn't finite."""
        if not np.isfinite(observation).all():
            place = self._place() if step is None else f"step {step}"
            shown = np.array2string(observation, threshold=6, edgeitems=2, separator=", ")
            raise self._fault(f"its observation is {shown} in {place}; expected finite numbers")

    def _received(self, observation: Any) -> Array:
        """A copy of an observation, flat float32, if it is one."""
        if self._composite is not None:
            observation = self._flattened(observation)
        try:
            array = np.asarray(observation)
        except Exception:
            raise self._fault(f"its observation is {_shown(observation)}") from None
        if array.dtype.kind not in "fiub":
            raise self._fault(
                f"its observation is {_shown(observation)}, made of {array.dtype}; expected real "
                "numbers"
            )
        if array.shape != self._shape:
            raise self._fault(
                f"its observation has shape {array.shape}; its space says {self._shape}"
            )
        received: Array = array.astype(np.float32)
        if received.ndim != 1:
            received = received.ravel()
        # Much faster than isfinite; the square may overflow, so `blame` has the last word.
        if not math.isfinite(received.dot(received)):
            self.blame(received)
        return received

    def _flattened(self, observation: Any) -> Any:
        """What the package's FlattenObservation makes of an observation.

        It trusts the observation: a cell that doesn't exist would be taken for another one.
        """
        with contextlib.suppress(Exception):
            if _fits(self._spaces, self._composite, observation):
                return self._spaces.flatten(self._composite, observation)
        raise self._fault(
            f"its observation is {_shown(observation)}; its space says {self._composite}"
        )

    def _number(self, reward: Any) -> float:
        if isinstance(reward, np.ndarray) and reward.size == 1:
            reward = reward.item()
        try:
            if isinstance(reward, (str, bytes)):
                raise TypeError
            return float(reward)
        except (TypeError, ValueError, OverflowError):
            raise self._fault(f"its reward is {_shown(reward)}; expected a number") from None

    def _truth(self, name: str, value: Any) -> bool:
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if not isinstance(value, (bool, int, np.bool_, np.integer)):
            raise self._fault(f"its {name} is {_shown(value)}; expected True or False")
        return bool(value)

    def _place(self) -> str:
        return f"step {self._steps} of an episode"

    def _fault(self, fault: str) -> EnvironmentFault:
        return EnvironmentFault(self.id, fault)

    def _failure(self, where: str, error: Exception) -> Exception:
        if missing := _missing_package(error):
            return UsageError(f"--env {self.id}: {missing}")
        return EnvironmentCrash(self.id, where)


def check_environment(env: Environment) -> None:
    """Play a few steps with each action, to see that an environment keeps gym's contract.

    Raises:
        UsageError: names the fault.
        EnvironmentCrash: if the environment's own code fails.
    """
    try:
        env.reset(seed=0)
        for action in range(min(env.n_actions, MOST_CHECKED)):
            *_, terminated, truncated, info = env.step(action)
            if not isinstance(info, dict):
                raise EnvironmentFault(
                    env.id, f"its step returns {_shown(info)} for info; expected {STEP_VALUES}"
                )
            if terminated or truncated:
                env.reset()
    except EnvironmentCrash:
        raise
    except EnvironmentFault as error:
        raise UsageError(f"--env {env.id}: {error.fault}") from None


def make_environment(
    env_id: str, changes: Mapping[str, float] | None = None, render_mode: str | None = None
) -> Environment:
    """Make an environment of gym or, if gym doesn't know it, of gymnasium.

    Args:
        env_id: its name there, such as "MountainCar-v0"; "MODULE:ID" imports a module first.
        changes: numbers of the environment to replace, such as {"gravity": 0.002}.
        render_mode: None, "human" (a window) or "rgb_array" (frames).

    Raises:
        UsageError: if it can't be made, changed or drawn, or isn't of a supported kind.
        EnvironmentCrash: if the environment's own code fails.
    """
    changes = dict(changes or {})
    package, spec = _find(env_id)
    limit: int | None = spec.max_episode_steps
    env = _construct(env_id, package, spec)
    arguments: dict[str, Any] = {}
    if changes:
        limit = _new_limit(changes.get(TIME_LIMIT, limit))
        arguments, changes = _sort_changes(env.unwrapped, spec, changes)
    if render_mode:
        render_mode = _supported_mode(env_id, env.metadata or {}, render_mode)
        arguments["render_mode"] = render_mode
    if arguments:
        with contextlib.suppress(Exception):
            env.close()
        try:
            env = _construct(env_id, package, spec, **arguments)
        except EnvironmentCrash as error:
            if arguments.keys() == {"render_mode"}:
                raise
            raise _unfit(env_id, error) from None
    if changes:
        change_numbers(env.unwrapped, changes)
    env.unwrapped.spec.max_episode_steps = limit  # some environments look it up
    made = Environment(env_id, package.__name__, env, limit, render_mode)
    if changes or arguments.keys() - {"render_mode"}:
        try:
            made.reset()
            made.step(0)
            if render_mode:
                made.render()
        except EnvironmentFault as error:
            raise _unfit(env_id, error) from None
    return made


def import_gym() -> Any:
    """Import gym, without its notice that it is unmaintained: no user can act on that."""
    with _quiet():
        import gym
    gym.logger.min_level = gym.logger.ERROR
    # gym's Acrobot asks for the name that NumPy 2 has dropped.
    vars(np).setdefault("float_", np.float64)
    return gym


def import_gymnasium() -> Any:
    """Import gymnasium as quietly; None if it isn't installed."""
    try:
        with _quiet():
            import gymnasium
    except ModuleNotFoundError:
        return None
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    return gymnasium


def change_numbers(env: Any, changes: Mapping[str, float]) -> None:
    """Replace numbers of the environment itself, and recompute what its constructor derives.

    Raises:
        UsageError: if one follows from others; names those.
    """
    known = _numbers(env)
    try:
        for name in changes:
            sources = []
            for other in known.keys() - {name}:
                construct_again(env, {other: 2 * known[other] + 1})
                if getattr(env, name) != known[name]:
                    sources.append(other)
            if sources:
                listed = " and ".join(sorted(sources))
                raise UsageError(f"--set {name}: it follows from {listed}; set those instead")
        construct_again(env, changes)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"--set: {env.spec.id} can't be constructed with other numbers: {error}"
        ) from None


def construct_again(env: Any, changes: Mapping[str, float]) -> None:
    """Run the environment's own constructor once more, with numbers that it can't overwrite."""
    kind = type(env)
    fixed = {name: _unchangeable(value) for name, value in changes.items()}
    env.__dict__ = {"spec": env.spec}
    env.__class__ = type(kind.__name__, (kind,), fixed)
    env.__init__(**env.spec.kwargs)
    env.__class__ = kind
    vars(env).update(changes)


def _unchangeable(value: float) -> property:
    return property(lambda _: value, lambda _, ignored: None)


def observation_bounds(env: Environment) -> Array:
    """The largest absolute value of each observed number, float32 (n,); 1 where there is none."""
    space = env.observation_space
    bounds = np.maximum(abs(np.float64(space.low)), abs(np.float64(space.high)))
    real: npt.NDArray[np.bool_] = (bounds > 0) & (bounds < MOST_BOUND)
    return np.where(real, bounds, 1).astype(np.float32)


def names(env: Environment) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the observed numbers and the actions are called."""
    sizes = env.observation_space.shape[0], int(env.action_space.n)
    known = NAMES.get(env.spec.name, ((), ()))
    if sizes == (len(known[0]), len(known[1])):
        return known
    return (
        tuple(f"observation {number}" for number in range(sizes[0])),
        tuple(f"action {number}" for number in range(sizes[1])),
    )


def _find(env_id: str) -> tuple[Any, Any]:
    """The package, gym or gymnasium, that knows an ID, and its EnvSpec there."""
    module, colon, name = env_id.partition(":")
    if colon:
        import_gym()  # both quietly, before the module does
        import_gymnasium()
        _import_module(env_id, module)
    reasons = []
    for load in (import_gym, import_gymnasium):
        package = load()
        if package is None:
            continue
        try:
            return package, _spec(package, name if colon else env_id)
        except package.error.Error as error:
            reasons.append(" ".join(str(error).split()))
    asked = "neither gym nor gymnasium knows it" if len(reasons) > 1 else "gym doesn't know it"
    cure = "" if len(reasons) > 1 else "; if it is gymnasium's, pip install gymnasium"
    # The longer reason names a similar ID, or the versions that there are; else today's package.
    reason = max(reversed(reasons), key=len).rstrip(". ")
    raise UsageError(f"--env {env_id}: {asked}: {reason}{cure}")


def _spec(package: Any, env_id: str) -> Any:
    """The EnvSpec of an ID; of its highest version, if it names none."""
    registration = package.envs.registration
    namespace, name, version = registration.parse_env_id(env_id)
    if version is None:
        version = registration.find_highest_version(namespace, name)
    return package.spec(registration.get_env_id(namespace, name, version))


def _import_module(env_id: str, module: str) -> None:
    """Import the module that registers the environment, from the current folder if need be."""
    if not all(part.isidentifier() for part in module.split(".")) or module.endswith(".py"):
        raise UsageError(
            f"--env {env_id}: expected MODULE:ID with the name of a module, such as "
            f"my_environments:{env_id.partition(':')[2]}, not {module!r}"
        )
    if "" not in sys.path:
        sys.path.append("")  # last: no file in the current folder hides a package
    importlib.invalidate_caches()
    try:
        importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise UsageError(
                f"--env {env_id}: there is no module {module!r}, neither among the installed "
                f"packages nor in {os.getcwd()}"
            ) from None
        raise EnvironmentCrash(env_id, f"the import of {module}") from error


def _construct(env_id: str, package: Any, spec: Any, **arguments: Any) -> Any:
    """Make the bare environment: its time limit and its order of calls are kept by our own."""
    spec = copy.copy(spec)
    spec.max_episode_steps, spec.order_enforce = None, False
    spec.kwargs = {**spec.kwargs, **arguments}  # `make` would keep a max_episode_steps to itself
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The checker breaks on NumPy 2 and costs time in every step.
            return package.make(spec, disable_env_checker=True)
    except Exception as error:
        if isinstance(error, TypeError) and "gymnasium.Env" in str(error):
            # Registered with gymnasium, but of gym's class: gym makes it, and asks no questions.
            gym = import_gym()
            other = gym.envs.registration.EnvSpec(spec.id, spec.entry_point, kwargs=spec.kwargs)
            other.reward_threshold = spec.reward_threshold
            return _construct(env_id, gym, other)
        if "unexpected keyword argument 'render_mode'" in str(error):
            raise UsageError(
                f"--env {env_id}: this environment can't be drawn: its constructor takes no "
                "render_mode"
            ) from None
        if "has no attribute 'unwrapped'" in str(error):
            raise UsageError(
                f"--env {env_id}: its class is no environment; expected one that inherits from "
                "gymnasium.Env or gym.Env"
            ) from None
        if missing := _missing_package(error):
            raise UsageError(f"--env {env_id}: {missing}") from None
        if isinstance(error, package.error.Error):
            reason = " ".join(str(error).split())
            raise UsageError(
                f"--env {env_id}: {package.__name__} can't make it: {reason}"
            ) from None
        raise EnvironmentCrash(env_id, "its constructor") from error


def _missing_package(error: Exception) -> str | None:
    """A line about the package that an environment needs, if that is what an error is about."""
    if isinstance(error, ModuleNotFoundError):
        return f"it needs a package that isn't installed: {error}"
    if type(error).__name__ != "DependencyNotInstalled":  # gym has one, gymnasium another
        return None
    # What both advise brings no wheels for today's Python.
    text = re.sub(r'"?gym(nasium)?\[box2d\]"?', "box2d", " ".join(str(error).split()))
    text = text.replace("`pip install swig` followed by ", "")
    return re.sub(r'"?gym(nasium)?\[(classic[-_]control|toy[-_]text)\]"?', "pygame", text)


def _supported_mode(env_id: str, metadata: Mapping[str, Any], render_mode: str) -> str:
    """The render mode that an environment offers for a window, or for pictures."""
    modes = metadata.get("render_modes") or ()
    for mode in (render_mode, "rgb_array"):
        if mode in modes:
            return mode
    raise UsageError(
        f"--env {env_id}: this environment can't be drawn: its metadata has no render mode "
        "rgb_array"
    )


def _unfit(env_id: str, error: EnvironmentFault) -> UsageError:
    reason = error.__cause__ or error.fault
    return UsageError(f"--set: {env_id} doesn't work with these numbers: {reason}")


def _new_limit(limit: float | None) -> int | None:
    if limit is not None and (limit < 1 or int(limit) != limit):
        raise UsageError(f"--set {TIME_LIMIT}: expected a whole number from 1 on, not {limit}")
    return None if limit is None else int(limit)


def _sort_changes(
    env: Any, spec: Any, changes: Mapping[str, float]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Which changes are arguments of the constructor, and which of the environment's numbers."""
    numbers, parameters = _numbers(env), _parameters(spec)
    known = sorted({TIME_LIMIT, *numbers, *parameters})
    arguments: dict[str, Any] = {}
    others: dict[str, float] = {}
    for name, value in changes.items():
        if name in parameters:
            arguments[name] = bool(value) if isinstance(parameters[name], bool) else value
        elif name in numbers:
            others[name] = value
        elif name != TIME_LIMIT:
            raise UsageError(
                f"--set {name}: the environment has no such number, only {', '.join(known)}"
            )
    return arguments, others


def _numbers(env: Any) -> dict[str, float]:
    """The numbers among an environment's own attributes."""
    return {
        name: value
        for name, value in inspect.getmembers_static(env)
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and not name.startswith(("_", "screen_"))
    }


def _parameters(spec: Any) -> dict[str, float]:
    """The numbers and the truth values that an environment's constructor takes, by name."""
    creator = spec.entry_point
    if isinstance(creator, str):
        module, _, attribute = creator.partition(":")
        creator = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(creator).parameters.values()
    values = {parameter.name: parameter.default for parameter in parameters} | spec.kwargs
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


def _inner_limits(env: Any) -> Iterator[int]:
    """The limits of the TimeLimit wrappers that an environment brings along."""
    while env is not env.unwrapped:
        if type(env).__name__ == "TimeLimit":
            yield env._max_episode_steps
        env = env.env


def _spaces_of(space: Any) -> Any:
    """The module `spaces` of the package that a space belongs to, gym or gymnasium, or None."""
    for kind in type(space).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in ("gym", "gymnasium"):
            return sys.modules[package].spaces
    return None


def _parts(spaces: ModuleType, space: Any) -> Iterator[Any]:
    """The spaces that a Tuple or a Dict is made of, and those that these are made of."""
    if isinstance(space, spaces.Dict):
        for part in space.spaces.values():
            yield from _parts(spaces, part)
    elif isinstance(space, spaces.Tuple):
        for part in space.spaces:
            yield from _parts(spaces, part)
    else:
        yield space


def _fits(spaces: ModuleType, space: Any, value: Any) -> bool:
    """Whether an observation is of its space; numbers in a Box may be of any size and dtype."""
    if isinstance(space, spaces.Dict):
        return all(_fits(spaces, part, value[name]) for name, part in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return len(value) == len(space.spaces) and all(
            _fits(spaces, part, one) for part, one in zip(space.spaces, value, strict=True)
        )
    if isinstance(space, spaces.Box):
        return bool(np.shape(value) == space.shape)
    return bool(space.contains(value))


def _shown(value: Any) -> str:
    """A value in a message: its text if that is short, else its type."""
    text = " ".join(repr(value).split())
    kind = type(value).__name__
    return text if len(text) <= 60 else f"a {kind} {text[:50]}…"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
