"""Environments of gym, of gymnasium and of the user, made and checked, all with one interface."""

import contextlib
import math
import operator
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.arrays import Array
from harness.errors import EnvironmentCrash, EnvironmentFault, UsageError
from harness.registries import (
    OWN_FAILURES,
    PACKAGES,
    TIME_LIMIT,
    Value,
    construct,
    find,
    held,
    is_of_its_owner,
    missing_package,
    new_limit,
    numbers_of,
    sort_changes,
    undisturbed,
)

MOST_WRAPPERS = 100
MOST_OBSERVED, MOST_ACTIONS = 10_000, 100_000
PATIENCE = 10_000  # steps after which an episode is given up, where nothing limits it
MOST_CHECKED = 100  # actions that are tried before a training
CHECK_STEPS, CHECK_SECONDS = 30, 0.03  # of random actions that follow those
MOST_BOUND = 1e6  # of an observed number; one that can be larger, or infinite, has no real bound
# Wrappers of gym and gymnasium that reset the environment themselves when an episode has ended.
AUTORESET = ("AutoResetWrapper", "Autoreset")
FINAL = ("final_observation", "final_obs")  # where such wrappers keep an episode's last one
RUNNING = ("NormalizeObservation", "NormalizeReward")  # normalise by what they have seen so far
FLOAT32 = np.dtype(np.float32)
# NumPy 2 writes np.float64(0.5), where 0.5 says as much in a message.
PLAIN_NUMBERS: dict[str, Any] = {"legacy": "1.25"} if np.__version__ >= "2" else {}
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
        spaces: the module of that name of the package that its observation space belongs to.
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
        env = _without_autoreset(env)
        self.spec, self.unwrapped = env.unwrapped.spec, env.unwrapped
        self.metadata = _metadata(env)
        threshold = self.spec.reward_threshold
        self.reward_threshold = threshold if isinstance(threshold, (int, float)) else None
        self.time_limit = min([*filter(None, [time_limit]), *_inner_limits(env)], default=None)
        self._env, self._env_step, self._steps = env, env.step, 0
        self._errors = np.geterr()
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
        self.n_actions, first = int(space.n), int(space.start)
        if self.n_actions > MOST_ACTIONS:
            raise UsageError(
                f"--env {self.id}: it has {self.n_actions:,} actions; at most {MOST_ACTIONS:,} are "
                "supported"
            )
        self.action_space = spaces.Discrete(self.n_actions) if first else space
        # As the space's own `sample` gives them; the packages' own code is faster with Python's.
        self._actions: list[Any] = list(range(first, first + self.n_actions))
        if not all(_is_of_a_package(type(wrapper)) for wrapper in self.wrappers()):
            self._actions = list(np.array(self._actions, dtype=space.dtype))

    def _use_observations(self, space: Any) -> None:
        spaces = _spaces_of(space)
        expected = f"--env {self.id}: its observation_space is {_cut(str(space))}"
        if spaces is None:
            raise UsageError(f"{expected}; expected a space of gym or gymnasium")
        kinds = spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary
        self._parts = list(_parts(spaces, space))
        for _, part in self._parts:
            if not isinstance(part, kinds):
                raise UsageError(
                    f"--env {self.id}: its observation has a {type(part).__name__} space, which "
                    "can't be made a list of numbers; leave it out with a wrapper of your own"
                )
        self.observation_size = int(spaces.flatdim(space))
        if not self.observation_size:
            raise UsageError(f"{expected}, without any number; expected at least one")
        if self.observation_size > MOST_OBSERVED:
            raise UsageError(
                f"--env {self.id}: its observation has {self.observation_size:,} numbers; at most "
                f"{MOST_OBSERVED:,} are supported, since dense layers can't handle pictures"
            )
        is_box = isinstance(space, spaces.Box)
        is_flat = is_box and len(space.shape) == 1
        self.observation_space = space if is_flat else spaces.flatten_space(space)
        self._shape = space.shape if is_box else (self.observation_size,)
        self.spaces, self._composite = spaces, None if is_box else space

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
            np.seterr(**self._errors)  # some code makes NumPy strict for the whole process
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
            result = self._env_step(self._actions[action])
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
            observation = _last_observation(observation, info)
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
        _close(self._env)
        np.seterr(**self._errors)

    def wrappers(self) -> Iterator[Any]:
        """The environment's own wrappers, from the outermost on, and what they wrap."""
        return _chain(self._env)

    def parts(self) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """The spaces that its own observation space is made of, each with its keys in there."""
        return iter(self._parts)

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[list[npt.NDArray[Any]]]]:
        """Inside the `with`, keep each observation as the environment itself gives it.

        Yields:
            the observations so far; each is a list of arrays, one for each of `parts`.
        """
        recorded: list[list[npt.NDArray[Any]]] = []

        def received(observation: Any) -> Array:
            array = Environment._received(self, observation)  # it may be at fault
            parts = [reduce(operator.getitem, keys, observation) for keys, _ in self._parts]
            recorded.append([np.array(part) for part in parts])
            return array

        self._received = received  # type: ignore[method-assign]  # for now: it costs nothing later
        try:
            yield recorded
        finally:
            del self._received

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
            with np.errstate(all="ignore"):  # too large: infinite, and refused below
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
            member = _member(self.spaces, self._composite, observation, "its observation")
        except ValueError as misfit:
            raise self._fault(str(misfit)) from None
        with np.errstate(all="ignore"):
            return self.spaces.flatten(self._composite, member)

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


def check_environment(env: Environment) -> list[str]:
    """Play a few steps, each action among them, to see that an environment keeps gym's contract.

    Returns:
        what is allowed but hardly meant, a line each.

    Raises:
        UsageError: names the fault.
        EnvironmentCrash: if the environment's own code fails.
    """
    actions = [
        *range(min(env.n_actions, MOST_CHECKED)),
        *np.random.default_rng(0).integers(env.n_actions, size=CHECK_STEPS).tolist(),
    ]
    began = time.perf_counter()
    try:
        with undisturbed(), env.recording() as observations:
            env.reset(seed=0)
            for number, action in enumerate(actions):
                late = time.perf_counter() - began > CHECK_SECONDS
                if late and number >= min(env.n_actions, MOST_CHECKED):  # it is slow
                    break
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
    running = running_normalisation(env)
    outside, merged = observation_warnings(env, observations)
    if running:  # gym's leaves the bounds as they were
        outside = None
    return [f"--env {env.id}: {line}" for line in (running, outside, merged) if line]


def running_normalisation(env: Environment) -> str | None:
    """A line about a wrapper that normalises by what it has seen so far, if there is one."""
    for wrapper in env.wrappers():
        for kind in type(wrapper).__mro__:
            # gymnasium can hold the statistics fixed.
            if _is_of_a_package(kind, RUNNING) and getattr(wrapper, "update_running_mean", True):
                return (
                    f"its {kind.__name__} normalises by what it has seen so far, in training and "
                    "in each evaluation by other statistics: evaluations are of another world; "
                    "normalise by fixed numbers instead"
                )
    return None


def observation_warnings(
    env: Environment, observations: Sequence[list[npt.NDArray[Any]]]
) -> tuple[str | None, str | None]:
    """Lines about numbers outside their space's bounds, and about those that float32 merges.

    Args:
        observations: what `recording` has kept.
    """
    outside = merged = None
    for number, (keys, part) in enumerate(env.parts()):
        if not isinstance(part, env.spaces.Box):
            continue  # a member of its space, one-hot
        name = "its observation" + "".join(f"[{key!r}]" for key in keys)
        given = [observation[number].ravel() for observation in observations]
        with np.errstate(all="ignore"):
            values = np.stack([one.astype(np.longdouble) for one in given])
            low, high = (bound.ravel().astype(np.longdouble) for bound in (part.low, part.high))
            outside = outside or _outside(name, values, low, high)
            merged = merged or _merged(name, values, low, high)
    return outside, merged


def _outside(name: str, values: Any, low: Any, high: Any) -> str | None:
    """A line about values (observations, numbers) outside their bounds (numbers,)."""
    # Bounds and values may have been rounded differently.
    least, most = low - 1e-5 * abs(low), high + 1e-5 * abs(high)
    places = np.argwhere((values < least) | (values > most))
    if not len(places):
        return None
    row, column = places[0]
    return (
        f"{name} is {values[row, column]:g} for number {column}, outside of its space's bounds, "
        f"{low[column]:g} to {high[column]:g}: correct them, inputs are scaled by them"
    )


def _merged(name: str, values: Any, low: Any, high: Any) -> str | None:
    """A line about values (observations, numbers) that differ, but not as float32.

    Where a number's whole range is many times larger than what float32 tells apart, it is harmless.
    """
    cure = "; networks compute in float32: subtract a base from it in the environment"
    rounded = values.astype(np.float32)
    spread = np.ptp(values, axis=0)
    resolution = np.spacing(abs(rounded).max(axis=0)).astype(np.longdouble)
    merges = (values[1:] != values[:-1]) & (rounded[1:] == rounded[:-1])
    merges &= (spread < 100 * resolution) & (spread > 1e-7 * resolution)
    for row, column in np.argwhere(merges)[:1]:
        one, other = (f"{values[row + step, column]:.17g}" for step in (0, 1))
        return f"{name} goes from {one} to {other} (number {column}), the same as float32{cure}"
    resolution = np.spacing(np.maximum(abs(low), abs(high)).astype(np.float32))
    narrow = np.isfinite(resolution) & (low < high) & (high - low <= 2 * resolution)
    for column in np.flatnonzero(narrow)[:1]:
        return (
            f"{name} has bounds, {low[column]:.17g} to {high[column]:.17g} (number {column}), that "
            f"float32 hardly tells apart{cure}"
        )
    return None


def make_environment(
    env_id: str, changes: Mapping[str, Value] | None = None, render_mode: str | None = None
) -> Environment:
    """Make an environment of gym or, if gym doesn't know it, of gymnasium.

    Only one exists at a time: one that is made to look at it is closed before the next.

    Args:
        env_id: its name there, such as "MountainCar-v0"; "MODULE:ID" imports a module first, and
            "gym:ID" or "gymnasium:ID" means that package.
        changes: arguments of its entry point, and numbers of the environment to replace, such as
            {"gravity": 0.002}.
        render_mode: None, "human" (a window) or "rgb_array" (frames).

    Raises:
        UsageError: if it can't be made, changed or drawn, or isn't of a supported kind.
        EnvironmentCrash: if the environment's own code fails.
    """
    package, spec = find(env_id)
    changes = dict(changes or {})
    limit = _registered_limit(env_id, spec.max_episode_steps)
    if TIME_LIMIT in changes:
        limit = new_limit(changes[TIME_LIMIT])
    try:
        env, render_mode, numbers = _construct(env_id, package, spec, changes, render_mode)
    except EnvironmentCrash as error:
        if not changes:
            raise
        raise _unfit(env_id, error) from None
    with contextlib.ExitStack() as stack:
        stack.callback(_close, env)
        env.unwrapped.spec.max_episode_steps = limit  # some environments look it up
        made = Environment(env_id, package.__name__, env, limit, render_mode)
        if TIME_LIMIT in changes and made.time_limit != limit:
            raise UsageError(
                f"--set {TIME_LIMIT}: {env_id} ends its episodes after {made.time_limit} steps by "
                f"a TimeLimit of its own; expected at most that, not {limit}"
            )
        if changes.keys() - {TIME_LIMIT}:
            _try(made, numbers)
        stack.pop_all()
    return made


def _construct(
    env_id: str, package: Any, spec: Any, changes: Mapping[str, Value], render_mode: str | None
) -> tuple[Any, str | None, dict[str, Value]]:
    """Make the bare environment; say how it is drawn and which of its numbers were changed."""
    arguments, others, known, takes_any = sort_changes(spec, changes)
    if not others and not render_mode:
        return construct(env_id, package, spec, **arguments), None, {}
    kind, present, metadata = _look_at(env_id, package, spec, arguments)
    numbers: dict[str, Value] = {}
    for name, value in others.items():
        if name in present:
            if isinstance(value, (str, bool)):
                raise UsageError(f"--set {name}: expected a number, not {value}")
            if sources := _sources(env_id, package, spec, arguments, kind, present, name):
                listed = " and ".join(sorted(sources))
                raise UsageError(f"--set {name}: it follows from {listed}; set those instead")
            numbers[name] = value
        elif takes_any:
            arguments[name] = value
        else:
            names = ", ".join(sorted({TIME_LIMIT, *present, *known}))
            raise UsageError(f"--set {name}: the environment has no such number, only {names}")
    if render_mode:
        render_mode = _supported_mode(env_id, metadata, render_mode)
        arguments["render_mode"] = render_mode
    with held(kind, numbers):
        env = construct(env_id, package, spec, **arguments)
    for name, value in numbers.items():
        setattr(env.unwrapped, name, value)
    return env, render_mode, numbers


def _sources(
    env_id: str,
    package: Any,
    spec: Any,
    arguments: Mapping[str, Any],
    kind: type,
    present: Mapping[str, Any],
    name: str,
) -> list[str]:
    """The numbers of an environment that one of its numbers follows from."""

    def follows_from(*others: str) -> bool:
        try:
            with held(kind, {other: 2 * present[other] + 1 for other in others}):
                _, numbers, _ = _look_at(env_id, package, spec, arguments)
        except (UsageError, EnvironmentCrash):  # it refuses what is only tried here
            return False
        return bool(numbers.get(name) != present[name])

    others = [other for other in present if other != name]
    if not follows_from(*others) or follows_from():  # or it is drawn at random
        return []
    return [other for other in others if follows_from(other)]


def _look_at(
    env_id: str, package: Any, spec: Any, arguments: Mapping[str, Any]
) -> tuple[type, dict[str, Any], dict[str, Any]]:
    """The class, the numbers and the metadata of an environment that is closed again."""
    env = construct(env_id, package, spec, **arguments)
    found = type(env.unwrapped), numbers_of(env.unwrapped), _metadata(env)
    _close(env)
    return found


def _close(env: Any) -> None:
    with contextlib.suppress(*OWN_FAILURES):  # what was made, trained or seen stays good
        env.close()


def _try(env: Environment, numbers: Mapping[str, Value]) -> None:
    """Take a step in a changed environment; UsageError if it doesn't work with its numbers."""
    try:
        env.reset()
        for name, value in numbers.items():
            if (now := getattr(env.unwrapped, name, None)) != value:
                raise UsageError(
                    f"--set {name}: the environment's reset makes it {_shown(now)} again; it "
                    "can't be changed from outside"
                )
        env.step(0)
        if env.render_mode:
            env.render()
    except EnvironmentFault as error:
        raise _unfit(env.id, error) from None


def parse_value(text: str) -> Value:
    """What VALUE means in `--set NAME=VALUE`: a finite number, True or False, else a text."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            number = kind(text)
            if math.isfinite(number):
                return int(number) if number == int(number) else number
    return text


def check_same_size(env: Environment, eval_env: Environment) -> None:
    """Raise EnvironmentFault unless an environment has the same sizes when it is made again."""
    for what, size, other_size in (
        ("its observations have {} numbers", env.observation_size, eval_env.observation_size),
        ("it has {} actions", env.n_actions, eval_env.n_actions),
    ):
        if size != other_size:
            raise EnvironmentFault(
                env.id,
                f"{what.format(size)} when it is made, and {other_size} when it is made again; "
                "expected the same number each time",
            )


def observation_centres_and_scales(
    env: Environment,
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """What to subtract from each observed number and to divide it by, so that it is at most 1.

    Returns:
        the centres, float32 (n,): 0 where that is within the bounds, else their middle; the
        scales, float32 (n,), none of them 0; whether the space has real bounds, (n,). Where it has
        none, the centre is 0 and the scale 1.
    """
    space = env.observation_space
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    around_0 = (low <= 0) & (high >= 0)
    with np.errstate(all="ignore"):  # of infinite bounds
        centres = np.where(around_0, 0, low / 2 + high / 2)
        scales = np.where(around_0, np.maximum(-low, high), high / 2 - low / 2)
        known = (scales < MOST_BOUND) & (low <= high) & ((scales > 0) | (centres != 0))
    centres = np.where(known, centres, 0)
    scales = np.where(known & (scales > 0), scales, 1)
    return centres.astype(np.float32), scales.astype(np.float32), known


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
    return UsageError(f"--set: {env_id} doesn't work with these values: {reason}")


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


def _inner(env: Any) -> Any:
    """What a wrapper wraps; None for what is no wrapper."""
    # Not by its __dict__: Python reads the attributes of an object more slowly, once that is asked.
    try:
        return getattr(env, "env", None)
    except OWN_FAILURES:
        return None


def _chain(env: Any) -> Iterator[Any]:
    """An environment's wrappers, from the outermost on, and what they wrap."""
    for _ in range(MOST_WRAPPERS):  # one may wrap itself
        if env is None:
            return
        yield env
        env = _inner(env)


def _inner_limits(env: Any) -> Iterator[int]:
    """The limits of the TimeLimit wrappers that an environment brings along."""
    for wrapper in _chain(env):
        limit = getattr(wrapper, "_max_episode_steps", None)
        if type(wrapper).__name__ == "TimeLimit" and isinstance(limit, int):
            yield limit


def _is_of_a_package(kind: type, names: Sequence[str] = ()) -> bool:
    """Whether a class is gym's or gymnasium's own, and has one of these names, if any are given."""
    own = kind.__module__.partition(".")[0] in PACKAGES
    return own and (not names or kind.__name__ in names)


def _without_autoreset(env: Any) -> Any:
    """The environment without the packages' wrappers that begin the next episode by themselves.

    A step that ends an episode would return the first observation of the next one.
    """
    while _is_of_a_package(type(env), AUTORESET):
        env = env.env
    for wrapper in _chain(env):
        while _is_of_a_package(type(_inner(wrapper)), AUTORESET):
            wrapper.env = wrapper.env.env
    return env


def _last_observation(observation: Any, info: Any) -> Any:
    """An episode's last observation, where the environment has begun the next one by itself."""
    if isinstance(info, dict):
        for name in FINAL:
            if info.get(name) is not None:
                return info[name]
    return observation


def _spaces_of(space: Any) -> Any:
    """The module `spaces` of the package that a space belongs to, gym or gymnasium, or None."""
    for kind in type(space).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in ("gym", "gymnasium"):
            return sys.modules[package].spaces
    return None


def _parts(
    spaces: ModuleType, space: Any, keys: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The spaces without parts that a space is made of, each with the keys that lead to it."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _parts(spaces, part, (*keys, key))
    elif isinstance(space, spaces.Tuple):
        for number, part in enumerate(space.spaces):
            yield from _parts(spaces, part, (*keys, number))
    else:
        yield keys, space


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
        with np.errstate(all="ignore"):  # of NaN
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
        with np.printoptions(**PLAIN_NUMBERS):
            text = " ".join(repr(value).split())
    except Exception:  # of any kind: it is code of the environment's
        return f"a {type(value).__name__}"
    return text if text == _cut(text) else f"a {type(value).__name__} {_cut(text)}"


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:50]}…"
