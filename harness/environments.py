"""Environments of gym, of gymnasium and of the user, made and checked, all with one interface."""

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.arrays import Array
from harness.changes import TIME_LIMIT, change_numbers, new_limit, sort_changes
from harness.errors import EnvironmentCrash, EnvironmentFault, UsageError
from harness.registries import (
    OWN_FAILURES,
    construct,
    find,
    is_of_its_owner,
    missing_package,
)

MOST_FLATTENED = 10_000  # observed numbers, of an observation that isn't flat by itself
PATIENCE = 10_000  # steps after which an episode is given up, where nothing limits it
MOST_CHECKED = 100  # actions that are tried before a training
MOST_BOUND = 1e6  # of an observed number; one that can be larger, or infinite, has no real bound
FLOAT32 = np.dtype(np.float32)
LARGEST = float(np.finfo(FLOAT32).max)
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
        self.metadata = _metadata(env)
        threshold = self.spec.reward_threshold
        self.reward_threshold = threshold if isinstance(threshold, (int, float)) else None
        self.time_limit = min([*filter(None, [time_limit]), *_inner_limits(env)], default=None)
        self._env, self._env_step, self._steps = env, env.step, 0
        self._folder = os.getcwd()
        self._use_actions(self._space("action_space"))
        self._use_observations(self._space("observation_space"))

    def _space(self, name: str) -> Any:
        try:
            return getattr(self._env, name, None)
        except OWN_FAILURES as error:
            raise EnvironmentCrash(self.id, name) from error

    def _use_actions(self, space: Any) -> None:
        spaces = _spaces_of(space)
        if spaces is None or not isinstance(space, spaces.Discrete):
            raise UsageError(
                f"--env {self.id}: its action space is {_cut(str(space))}; expected a Discrete one"
            )
        self.n_actions, self._first_action = int(space.n), int(space.start)
        self.action_space = spaces.Discrete(self.n_actions) if self._first_action else space

    def _use_observations(self, space: Any) -> None:
        spaces = _spaces_of(space)
        expected = f"--env {self.id}: its observation_space is {_cut(str(space))}"
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
                f"{MOST_FLATTENED:,} are flattened, since dense layers can't handle pictures"
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
        except OWN_FAILURES as error:
            raise self._failure("reset", "(self, seed=None, options=None)", error) from error
        finally:
            self.come_back()
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
        except OWN_FAILURES as error:
            raise self._failure("step", "(self, action)", error) from error
        self._steps += 1
        if not isinstance(result, (tuple, list)) or len(result) != 5:
            count = f"{len(result)} values" if isinstance(result, (tuple, list)) else _shown(result)
            raise self._fault(f"its step returns {count}; expected {STEP_VALUES}")
        observation, reward, terminated, truncated, info = result
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
        if terminated or truncated:
            self.come_back()
        return self._received(observation), reward, terminated, truncated, info

    def render(self) -> Any:
        """What the environment's own `render` returns: a picture, if `render_mode` says so."""
        try:
            return self._env.render()
        except OWN_FAILURES as error:
            if missing := missing_package(error):
                raise UsageError(f"--env {self.id}: {missing}") from None
            raise self._failure("render", "(self)", error) from error

    def close(self) -> None:
        """Close what the environment holds open, such as a window; it may fail at that."""
        with contextlib.suppress(*OWN_FAILURES):  # what was trained or seen stays good
            self._env.close()
        self.come_back()

    def come_back(self) -> None:
        """Return to the folder in which the user stands, if the environment has left it."""
        with contextlib.suppress(OSError):  # it was removed
            os.chdir(self._folder)

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
        if array.dtype == FLOAT32:
            received: Array = array.copy()
        else:
            with np.errstate(over="ignore"):  # too large: infinite, and refused below
                received = array.astype(np.float32)
        if received.ndim != 1:
            received = received.ravel()
        # A square is finite much faster than isfinite tells; but it may overflow.
        if not math.isfinite(received.dot(received)) and not np.isfinite(received).all():
            shown = np.array2string(received, threshold=6, edgeitems=2, separator=", ")
            place = self._place()
            raise self._fault(f"its observation is {shown} in {place}; expected finite numbers")
        return received

    def _flattened(self, observation: Any) -> Any:
        """What the package's FlattenObservation makes of an observation.

        It trusts the observation: a cell that doesn't exist would be taken for another one.
        """
        try:
            member = _member(self._spaces, self._composite, observation, "its observation")
        except ValueError as misfit:
            raise self._fault(str(misfit)) from None
        return self._spaces.flatten(self._composite, member)

    def _number(self, reward: Any) -> float:
        if isinstance(reward, np.ndarray) and reward.size == 1:
            reward = reward.item()
        try:
            if isinstance(reward, (str, bytes, complex, np.complexfloating)):
                raise TypeError
            return float(reward)
        except Exception:  # of any kind: it may be any object
            raise self._fault(f"its reward is {_shown(reward)}; expected a number") from None

    def _truth(self, name: str, value: Any) -> bool:
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if not isinstance(value, (bool, int, np.bool_, np.integer)) or value not in (0, 1):
            raise self._fault(f"its {name} is {_shown(value)}; expected True or False")
        return bool(value)

    def _place(self) -> str:
        return f"step {self._steps} of an episode"

    def _fault(self, fault: str) -> EnvironmentFault:
        return EnvironmentFault(self.id, fault)

    def _failure(self, method: str, signature: str, error: BaseException) -> EnvironmentFault:
        """The fault that an error means which came out of a method of the environment."""
        if missing := missing_package(error):
            return self._fault(missing)
        if isinstance(error, TypeError) and not is_of_its_owner(error):
            return self._fault(
                f"its {method} can't be called: {error}; expected {method}{signature}"
            )
        return EnvironmentCrash(self.id, method)


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
    limit_changed = TIME_LIMIT in changes
    package, spec = find(env_id)
    limit = _registered_limit(env_id, spec.max_episode_steps)
    env = construct(env_id, package, spec)
    arguments: dict[str, Any] = {}
    if changes:
        limit = new_limit(changes.get(TIME_LIMIT, limit))
        arguments, changes = sort_changes(env.unwrapped, spec, changes)
    if render_mode:
        render_mode = _supported_mode(env_id, _metadata(env), render_mode)
        arguments["render_mode"] = render_mode
    if arguments:
        with contextlib.suppress(*OWN_FAILURES):
            env.close()
        try:
            env = construct(env_id, package, spec, **arguments)
        except EnvironmentCrash as error:
            if arguments.keys() == {"render_mode"}:
                raise
            raise _unfit(env_id, error) from None
    if changes:
        change_numbers(env.unwrapped, changes)
    env.unwrapped.spec.max_episode_steps = limit  # some environments look it up
    made = Environment(env_id, package.__name__, env, limit, render_mode)
    if limit_changed and made.time_limit != limit:
        raise UsageError(
            f"--set {TIME_LIMIT}: {env_id} ends its episodes after {made.time_limit} steps by a "
            f"TimeLimit of its own; expected at most that, not {limit}"
        )
    if changes or arguments.keys() - {"render_mode"}:
        try:
            made.reset()
            made.step(0)
            if render_mode:
                made.render()
        except EnvironmentFault as error:
            raise _unfit(env_id, error) from None
    return made


def make_pair(env_id: str, changes: Mapping[str, float]) -> tuple[Environment, Environment]:
    """Make two of the same environment: one to train in, one to evaluate in.

    Raises:
        EnvironmentFault: if it is of another size each time; else as `make_environment`.
    """
    one, other = (make_environment(env_id, changes) for _ in range(2))
    for what, size, other_size in (
        ("its observations have {} numbers", one.observation_size, other.observation_size),
        ("it has {} actions", one.n_actions, other.n_actions),
    ):
        if size != other_size:
            raise EnvironmentFault(
                env_id,
                f"{what.format(size)} when it is made, and {other_size} when it is made again; "
                "expected the same number each time",
            )
    return one, other


def observation_bounds(env: Environment) -> Array:
    """The largest absolute value of each observed number, float32 (n,); 1 where there is none."""
    space = env.observation_space
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounds = np.maximum(abs(low), abs(high))
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


def _supported_mode(env_id: str, metadata: Mapping[str, Any], render_mode: str) -> str:
    """The render mode that an environment offers for a window, or for pictures."""
    for mode in (render_mode, "rgb_array"):
        if mode in metadata["render_modes"]:
            return mode
    raise UsageError(
        f"--env {env_id}: this environment can't be drawn: its metadata has no render mode "
        "rgb_array"
    )


def _unfit(env_id: str, error: EnvironmentFault) -> UsageError:
    reason = error.__cause__ or error.fault
    return UsageError(f"--set: {env_id} doesn't work with these numbers: {reason}")


def _registered_limit(env_id: str, limit: Any) -> int | None:
    if limit is None:
        return None
    if isinstance(limit, (int, np.integer)) and limit > 0:
        return int(limit)
    raise UsageError(
        f"--env {env_id}: it was registered with a max_episode_steps of {_shown(limit)}; expected "
        "a whole number from 1 on, or None"
    )


def _metadata(env: Any) -> dict[str, Any]:
    """What an environment says of itself, with `render_modes` as a list."""
    metadata = getattr(env, "metadata", None)
    metadata = dict(metadata) if isinstance(metadata, Mapping) else {}
    modes = metadata.get("render_modes")
    return metadata | {"render_modes": list(modes) if isinstance(modes, (list, tuple, set)) else []}


def _inner_limits(env: Any) -> Iterator[int]:
    """The limits of the TimeLimit wrappers that an environment brings along."""
    while env is not None and env is not env.unwrapped:
        limit = getattr(env, "_max_episode_steps", None)
        if type(env).__name__ == "TimeLimit" and isinstance(limit, int):
            yield limit
        env = getattr(env, "env", None)


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


def _member(spaces: ModuleType, space: Any, value: Any, name: str) -> Any:
    """An observation as its space wants it: lists become arrays, of any size and dtype in a Box.

    Args:
        name: what messages call the observation, or its part that belongs to this space.

    Raises:
        ValueError: says which part isn't of its space.
    """
    is_dict = isinstance(space, spaces.Dict)
    try:
        if is_dict:
            parts = [(key, part, value[key]) for key, part in space.spaces.items()]
        elif isinstance(space, spaces.Tuple):
            if not isinstance(value, (tuple, list, np.ndarray)):
                raise TypeError
            pairs = zip(space.spaces, value, strict=True)
            parts = [(number, part, one) for number, (part, one) in enumerate(pairs)]
        else:
            return _numbers(spaces, space, value)
    except Exception:  # of any kind: the value may be anything
        raise ValueError(f"{name} is {_shown(value)}; its space says {_cut(str(space))}") from None
    members = {key: _member(spaces, part, one, f"{name}[{key!r}]") for key, part, one in parts}
    return members if is_dict else tuple(members.values())


def _numbers(spaces: ModuleType, space: Any, value: Any) -> Any:
    """The member of a space without parts that a value means; an error if there is none.

    The package would cast it: 300 to 44 for uint8, 0.7 to 0 for whole numbers.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError
    is_box = isinstance(space, spaces.Box)
    if not is_box or space.dtype.kind in "iub":
        with np.errstate(invalid="ignore"):  # of NaN
            whole = array.astype(space.dtype)
        if not np.array_equal(whole, array):
            raise ValueError
        array = whole
    if array.shape != space.shape or not (is_box or space.contains(array)):
        raise ValueError
    return int(array) if isinstance(space, spaces.Discrete) else array


def _shown(value: Any) -> str:
    """A value in a message: its text if that is short, else its type."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of any kind: it is code of the environment's
        return f"a {type(value).__name__}"
    return text if text == _cut(text) else f"a {type(value).__name__} {_cut(text)}"


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:50]}…"
