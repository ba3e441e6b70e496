"""gym and gymnasium, which know environments by their IDs: imported quietly, asked for one."""

import contextlib
import copy
import importlib
import io
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from harness.errors import EnvironmentCrash, UsageError

# What Python says of a constructor without that argument, or without any.
NO_RENDER_MODE = r"unexpected keyword argument 'render_mode'|takes no arguments"
# What may come out of the environment's code. KeyboardInterrupt is the user's.
OWN_FAILURES = (Exception, SystemExit, GeneratorExit)
# What importing a module has registered: pairs of a package's name and an ID, by the module.
registered: dict[str, set[tuple[str, str]]] = {}


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


def find(env_id: str) -> tuple[Any, Any]:
    """The package, gym or gymnasium, that knows an ID, and its EnvSpec there."""
    module, colon, name = env_id.partition(":")
    # Both are imported quietly before the module does it.
    packages = [package for package in (import_gym(), import_gymnasium()) if package]
    if colon:
        before = {package: dict(package.envs.registry) for package in packages}
        imported = import_module(env_id, module)
        # What the module has registered itself is meant, whatever else has that name.
        registered.setdefault(module, set()).update(
            (package.__name__, known)
            for package in packages
            for known, spec in package.envs.registry.items()
            if before[package].get(known) is not spec
        )
        own = {
            package
            for package, known in registered[module]
            if name in (known, known.rpartition("-v")[0])
        }
        packages.sort(key=lambda package: package.__name__ not in own)
    reasons = []
    for package in packages:
        try:
            return package, _spec(package, name if colon else env_id)
        except package.error.Error as error:
            reasons.append(" ".join(str(error).split()))
    asked = "neither gym nor gymnasium knows it" if len(reasons) > 1 else "gym doesn't know it"
    cure = "" if len(reasons) > 1 else "; if it is gymnasium's, pip install gymnasium"
    # The longer reason names a similar ID, or the versions that there are; else today's package.
    reason = max(reversed(reasons), key=len).rstrip(". ")
    if colon:
        path = getattr(imported, "__file__", None) or "built in"
        reason += f", and importing {module} ({path}) registered nothing of that name"
        local = f"{module.partition('.')[0]}.py"
        if os.path.exists(local) and not (path == local or os.path.samefile(path, local)):
            reason += f"; it hides {local} here, which needs another name"
    raise UsageError(f"--env {env_id}: {asked}: {reason}{cure}")


def construct(env_id: str, package: Any, spec: Any, **arguments: Any) -> Any:
    """Make the bare environment: its time limit and its order of calls are kept by our own."""
    spec = copy.copy(spec)
    spec.max_episode_steps, spec.order_enforce = None, False
    spec.kwargs = {**spec.kwargs, **arguments}  # `make` would keep a max_episode_steps to itself
    try:
        with warnings.catch_warnings(), undisturbed():
            warnings.simplefilter("ignore")
            # The checker breaks on NumPy 2 and costs time in every step.
            return package.make(spec, disable_env_checker=True)
    except OWN_FAILURES as error:
        if isinstance(error, TypeError) and "gymnasium.Env" in str(error):
            # Registered with gymnasium, but of gym's class: gym makes it, and asks no questions.
            gym = import_gym()
            other = gym.envs.registration.EnvSpec(spec.id, spec.entry_point, kwargs=spec.kwargs)
            other.reward_threshold = spec.reward_threshold
            return construct(env_id, gym, other)
        if "render_mode" in arguments and re.search(NO_RENDER_MODE, str(error)):
            raise UsageError(
                f"--env {env_id}: this environment can't be drawn: its constructor takes no "
                "render_mode"
            ) from None
        if isinstance(error, AttributeError) and not is_of_its_owner(error):
            if str(error).startswith("module "):
                raise UsageError(f"--env {env_id}: its entry point is missing: {error}") from None
            raise UsageError(
                f"--env {env_id}: its class is no environment; expected one that inherits from "
                "gymnasium.Env or gym.Env"
            ) from None
        if missing := missing_package(error):
            raise UsageError(f"--env {env_id}: {missing}") from None
        if isinstance(error, package.error.Error):
            reason = " ".join(str(error).split())
            raise UsageError(
                f"--env {env_id}: {package.__name__} can't make it: {reason}"
            ) from None
        raise EnvironmentCrash(env_id, "its constructor") from error


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the current folder and what signals do, whatever the environment's code changes."""
    folder = os.getcwd()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        os.chdir(folder)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


def is_of_its_owner(error: BaseException) -> bool:
    """Whether other code than ours, gym's and gymnasium's took part in an error.

    It did not where our call, or theirs, doesn't fit the arguments of what it calls.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = {frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames}
    return not packages <= {"harness", "gym", "gymnasium"}


def missing_package(error: BaseException) -> str | None:
    """A line about the package that an environment needs, if that is what an error is about."""
    if isinstance(error, ModuleNotFoundError):
        return f"it needs a package that isn't installed: {error}"
    if type(error).__name__ != "DependencyNotInstalled":  # gym has one, gymnasium another
        return None
    # What both advise brings no wheels for today's Python.
    text = re.sub(r'"?gym(nasium)?\[box2d\]"?', "box2d", " ".join(str(error).split()))
    text = text.replace("`pip install swig` followed by ", "")
    return re.sub(r'"?gym(nasium)?\[(classic[-_]control|toy[-_]text)\]"?', "pygame", text)


def _spec(package: Any, env_id: str) -> Any:
    """The EnvSpec of an ID; of its highest version, if it names none."""
    registration = package.envs.registration
    namespace, name, version = registration.parse_env_id(env_id)
    if version is None:
        version = registration.find_highest_version(namespace, name)
    return package.spec(registration.get_env_id(namespace, name, version))


def import_module(env_id: str, module: str) -> ModuleType:
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
        with undisturbed():
            return importlib.import_module(module)
    except OWN_FAILURES as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise UsageError(
                f"--env {env_id}: there is no module {module!r}, neither among the installed "
                f"packages nor in {os.getcwd()}"
            ) from None
        raise EnvironmentCrash(env_id, f"the import of {module}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
