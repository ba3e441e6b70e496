"""`--set`: other numbers for an environment, and what follows from them."""

import importlib
import inspect
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.errors import UsageError, reason

TIME_LIMIT = "max_episode_steps"  # the name that --set and both packages give it


def sort_changes(
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


def new_limit(limit: float | None) -> int | None:
    """A time limit in steps, None for none; UsageError if there can't be such a one."""
    if limit is not None and (limit < 1 or int(limit) != limit):
        raise UsageError(f"--set {TIME_LIMIT}: expected a whole number from 1 on, not {limit}")
    return None if limit is None else int(limit)


def change_numbers(env: Any, changes: Mapping[str, float]) -> None:
    """Replace numbers of the environment itself, and recompute what its constructor derives.

    Raises:
        UsageError: if one follows from others; names those.
    """
    known = _numbers(env)
    for name in changes:
        others = known.keys() - {name}
        sources = [other for other in others if _follows_from(env, known, name, other)]
        if sources and not _follows_from(env, known, name, None):
            listed = " and ".join(sorted(sources))
            raise UsageError(f"--set {name}: it follows from {listed}; set those instead")
    try:
        construct_again(env, changes)
    except Exception as error:  # of any kind: it is the environment's own code
        raise UsageError(
            f"--set: {env.spec.id} can't be constructed with other numbers: {reason(error)}"
        ) from None


def _follows_from(env: Any, known: Mapping[str, Any], name: str, other: str | None) -> bool:
    """Whether a number changes with another one; with None, by itself: it is drawn at random."""
    try:
        construct_again(env, {other: 2 * known[other] + 1} if other else {})
    except Exception:  # of any kind: the constructor refuses what is only tried here
        return False
    return bool(getattr(env, name, None) != known[name])


def construct_again(env: Any, changes: Mapping[str, float]) -> None:
    """Run the environment's own constructor once more, with numbers that it can't overwrite."""
    kind = type(env)
    fixed = {name: _unchangeable(value) for name, value in changes.items()}
    env.__dict__ = {"spec": env.spec}
    env.__class__ = type(kind.__name__, (kind,), fixed)
    try:
        env.__init__(**env.spec.kwargs)
    finally:
        env.__class__ = kind
    vars(env).update(changes)


def _unchangeable(value: float) -> property:
    return property(lambda _: value, lambda _, ignored: None)


def _numbers(env: Any) -> dict[str, Any]:
    """The numbers among an environment's own attributes."""
    return {
        name: value
        for name, value in inspect.getmembers_static(env)
        if isinstance(value, numbers.Real)
        and not isinstance(value, (bool, np.bool_))
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
