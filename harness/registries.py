"""Where environments come from: gym, gymnasium, the user's modules; and what `--set` gives them."""

import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import numbers
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from harness import PROJECT
from harness.errors import EnvironmentCrash, UsageError

PACKAGES = ("gym", "gymnasium")
TIME_LIMIT = "max_episode_steps"  # the name that --set and both packages give it
Value = float | str | bool  # what --set gives; whole numbers are floats in Python's eyes
# What Python says of a constructor without that argument, or without any.
NO_RENDER_MODE = r"unexpected keyword argument 'render_mode'|takes no arguments"
# What may come out of the environment's code. KeyboardInterrupt is the user's.
OWN_FAILURES = (Exception, SystemExit, GeneratorExit)
# What importing a module has registered: pairs of a package's name and an ID, by the module.
registered: dict[str, set[tuple[str, str]]] = {}
# What failed when gym and gymnasium were imported, a package or a plug-in, and why.
broken: dict[str, str] = {}
module_folders: set[str] = set()  # that hold the modules which --env has named
theirs: dict[str, ModuleType] = {}  # modules of the user's that have names of ours


def import_gym() -> Any:
    """Import gym, without its notice that it is unmaintained: no user can act on that."""
    with _quiet(), _harmless_plugins():
        import gym
    gym.logger.min_level = gym.logger.ERROR
    # gym's Acrobot and its checker ask for names that NumPy 2 has dropped.
    with _quiet():
        for name, kind in (("float_", np.float64), ("bool8", np.bool_)):
            vars(np).setdefault(name, kind)
    return gym


def import_gymnasium() -> Any:
    """Import gymnasium as quietly; None if it isn't installed, or broken."""
    try:
        with _quiet(), _harmless_plugins():
            import gymnasium
    except ModuleNotFoundError:
        return None
    except Exception as error:  # of any kind: it comes from packages of the user's
        broken["gymnasium"] = _first_line(error)
        return None
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    return gymnasium


def find(env_id: str) -> tuple[Any, Any]:
    """The package, gym or gymnasium, that knows an ID, and its EnvSpec there."""
    module, colon, name = env_id.partition(":")
    # Both are imported quietly before the module does it.
    packages = [package for package in (import_gym(), import_gymnasium()) if package]
    imported = None
    if colon and module in PACKAGES:
        packages = [package for package in packages if package.__name__ == module]
    elif colon:
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
    asked = [package.__name__ for package in packages]
    raise UsageError(f"--env {env_id}: {_why_unknown(env_id, asked, reasons, imported)}")


def _why_unknown(env_id: str, asked: list[str], reasons: list[str], imported: Any) -> str:
    """Why nobody knows an ID, and what may be meant."""
    module, colon, _ = env_id.partition(":")
    if not asked:
        return f"{module} " + broken.get(module, f"isn't installed: pip install {module}")
    known = f"{asked[0]} doesn't know it"
    if len(asked) > 1:
        known = "neither gym nor gymnasium knows it"
    if not colon and (meant := _meant_here(env_id)):
        return f"{known}; did you mean --env {meant}?"
    # The longer reason names a similar ID, or the versions that there are; else today's package.
    text = f"{known}: {max(reversed(reasons), key=len).rstrip('. ')}"
    if imported:
        path = getattr(imported, "__file__", None) or "built in"
        text += f", and importing {module} ({path}) registered nothing of that name"
        local = f"{module.partition('.')[0]}.py"
        if os.path.exists(local) and not (path == local or os.path.samefile(path, local)):
            text += f"; it hides {local} here, which needs another name"
    if len(asked) == 1 and module not in PACKAGES:
        cure = broken.get("gymnasium", "isn't installed: pip install gymnasium")
        text += f"; if it is gymnasium's, that {cure}"
    failed = [name for name in broken if name not in PACKAGES]
    return text + "".join(f"; the plug-in {name} {broken[name]}" for name in failed)


def _meant_here(word: str) -> str | None:
    """MODULE:ID of a file in the current folder that a word means: its name, or what it registers.

    The file is read, not imported: nobody has asked for that.
    """
    wanted = word.lower().removesuffix(".py")
    with contextlib.suppress(OSError):
        for path in sorted(Path().glob("*.py")):
            source = path.read_text(encoding="utf-8", errors="replace")
            for known in re.findall(r"""register\(\s*(?:id\s*=\s*)?["']([^"']+)""", source):
                if wanted in (path.stem.lower(), known.lower(), known.lower().rpartition("-v")[0]):
                    return f"{path.stem}:{known}"
    return None


def construct(env_id: str, package: Any, spec: Any, **arguments: Any) -> Any:
    """Make the bare environment: its time limit and its order of calls are kept by our own."""
    spec = copy.copy(spec)
    spec.max_episode_steps, spec.order_enforce = None, False
    spec.kwargs = {**spec.kwargs, **arguments}  # `make` would keep a max_episode_steps to itself
    try:
        with warnings.catch_warnings(), undisturbed(), _its_own_modules():
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
        required = re.search(r"missing \d+ required .*", str(error))
        if isinstance(error, TypeError) and required and not is_of_its_owner(error):
            names = re.findall(r"'(\w+)'", required[0].partition(" was raised")[0])
            raise UsageError(
                f"--env {env_id}: its constructor needs {' and '.join(names)}: add --set "
                + " ".join(f"{name}=VALUE" for name in names)
            ) from None
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
    """Keep what the environment's code may change for all: the folder, signals, NumPy's errors."""
    folder, errors = current_folder(), np.geterr()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):  # it was removed
                os.chdir(folder)
        np.seterr(**errors)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


def current_folder() -> str | None:
    """The folder in which the user stands; None if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _names_of_ours(folder: str) -> set[str]:
    """The modules and packages in a folder, not our own, that have names of ours."""
    with contextlib.suppress(OSError):
        if os.path.samefile(folder, PROJECT):
            return set()
    names = {path.stem for path in PROJECT.iterdir() if path.suffix in ("", ".py")}
    return {
        name
        for name in names
        if os.path.exists(os.path.join(folder, name, "__init__.py"))
        or os.path.exists(os.path.join(folder, f"{name}.py"))
        or (name == "tests" and os.path.isdir(os.path.join(folder, name)))
    }


@contextlib.contextmanager
def _its_own_modules() -> Iterator[None]:
    """Let the environment import modules of its own that have names of ours: loggers, say."""
    folder = current_folder()
    folders = module_folders | ({folder} if folder else set())
    names = {name for one in folders for name in _names_of_ours(one)}
    if not names:
        yield
        return

    def take_out() -> dict[str, ModuleType]:
        found = [name for name in sys.modules if name.partition(".")[0] in names]
        return {name: sys.modules.pop(name) for name in found}

    ours, project = take_out(), str(PROJECT)
    sys.modules.update(theirs)
    former = sys.path.index(project) if project in sys.path else None
    sys.path[:] = [path for path in sys.path if path != project] + [project]
    try:
        yield
    finally:
        sys.path.remove(project)
        if former is not None:
            sys.path.insert(former, project)
        theirs.update(take_out())
        sys.modules.update(ours)


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
    top, folder = module.partition(".")[0], current_folder()
    if folder and top in _names_of_ours(folder):
        raise UsageError(
            f"--env {env_id}: this program has a module {top!r} of its own; the one in {folder} "
            "needs another name"
        )
    if "" not in sys.path:
        sys.path.append("")  # last: no file in the current folder hides a package
    importlib.invalidate_caches()
    module_folders.update(_folder_of(top))
    try:
        with undisturbed(), _its_own_modules():
            return importlib.import_module(module)
    except OWN_FAILURES as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise UsageError(
                f"--env {env_id}: there is no module {module!r}, neither among the installed "
                f"packages nor in {folder or 'the current folder, which was removed'}"
            ) from None
        raise EnvironmentCrash(env_id, f"the import of {module}") from error


def _folder_of(module: str) -> set[str]:
    """The folder in which a module lies, if it is found."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # of any kind: importing it says what is wrong
        return set()
    places = [*(spec.submodule_search_locations or []), spec.origin or ""] if spec else []
    return {str(Path(place).parent) for place in places[:1] if os.path.isabs(place)}


def sort_changes(
    spec: Any, changes: Mapping[str, Value]
) -> tuple[dict[str, Any], dict[str, Value], list[str], bool]:
    """Which changes are arguments of the entry point.

    Returns:
        those, as it takes them; the other changes, but for the time limit; the names of all
        arguments that can be set; whether the entry point takes arguments of any other name.

    Raises:
        UsageError: if a value isn't of its argument's kind.
    """
    parameters, takes_any = _parameters(spec)
    arguments: dict[str, Any] = {}
    others: dict[str, Value] = {}
    for name, value in changes.items():
        if name in parameters:
            arguments[name] = _argument(name, value, parameters[name])
        elif name != TIME_LIMIT:
            others[name] = value
    known = [name for name, kind in parameters.items() if kind is None or _can_be_set(kind)]
    return arguments, others, known, takes_any


def new_limit(limit: Value) -> int:
    """A time limit in steps; UsageError if there can't be such a one."""
    if isinstance(limit, (str, bool)) or limit < 1 or int(limit) != limit:
        raise UsageError(f"--set {TIME_LIMIT}: expected a whole number from 1 on, not {limit}")
    return int(limit)


def _can_be_set(kind: type) -> bool:
    return issubclass(kind, (str, bool, np.bool_, numbers.Real))


def _argument(name: str, value: Value, kind: type | None) -> Any:
    """A value of --set as an argument of a kind, None for an unknown one."""
    if kind is None:
        return value
    if issubclass(kind, (bool, np.bool_)):
        truth = {"true": True, "false": False, "1": True, "0": False}
        if str(value).lower() in truth:
            return truth[str(value).lower()]
        expected = "True or False"
    elif issubclass(kind, numbers.Real):
        if not isinstance(value, (str, bool)):
            return value
        expected = "a number"
    elif issubclass(kind, str):
        return str(value)
    else:
        raise UsageError(f"--set {name}: it is a {kind.__name__}, which --set can't give")
    raise UsageError(f"--set {name}: expected {expected}, not {value}")


def _parameters(spec: Any) -> tuple[dict[str, type | None], bool]:
    """The kinds of an entry point's arguments, by name; whether it takes any others.

    What a class takes by `**`, it hands on to the classes that it is made of.
    """
    creator = spec.entry_point
    kinds: dict[str, type | None] = {}
    takes_any = False
    try:
        if isinstance(creator, str):
            module, _, attribute = creator.partition(":")
            with undisturbed(), _its_own_modules():
                creator = getattr(importlib.import_module(module), attribute)
        own = [vars(kind).get("__init__") for kind in getattr(creator, "__mro__", ())[:-1]]
        for function in [function for function in own if function] or [creator]:
            parameters = list(inspect.signature(function).parameters.values())
            for parameter in parameters[1:] if function is not creator else parameters:
                if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                    kinds.setdefault(parameter.name, _kind_of(parameter))
            takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
            if not takes_any:
                break
    except OWN_FAILURES:  # making the environment says what is wrong
        return {}, False
    given = {name: type(value) for name, value in spec.kwargs.items() if value is not None}
    return {
        name: kind for name, kind in (kinds | given).items() if name != "render_mode"
    }, takes_any


def _kind_of(parameter: inspect.Parameter) -> type | None:
    """The type of a parameter's default or, where that says nothing, of its annotation."""
    if parameter.default is not None and parameter.default is not parameter.empty:
        return type(parameter.default)
    words = set(re.findall(r"\w+", str(parameter.annotation)))  # bool, "bool", bool | None
    kinds = [kind for kind in (bool, int, float, str) if kind.__name__ in words]
    return kinds[0] if len(kinds) == 1 else None


def numbers_of(env: Any) -> dict[str, Any]:
    """The numbers among an environment's own attributes."""
    return {
        name: value
        for name, value in inspect.getmembers_static(env)
        if isinstance(value, numbers.Real)
        and not isinstance(value, (bool, np.bool_))
        and not name.startswith(("_", "screen_"))
    }


@contextlib.contextmanager
def held(kind: type, values: Mapping[str, Value]) -> Iterator[None]:
    """Hold attributes of a class's objects while they are made.

    No constructor, function or wrapper changes them, and what these derive follows.
    """
    former = {name: vars(kind)[name] for name in values if name in vars(kind)}
    for name, value in values.items():
        setattr(kind, name, _unchangeable(name, value))
    try:
        yield
    finally:
        for name in values:
            delattr(kind, name)
        for name, value in former.items():
            setattr(kind, name, value)


def _unchangeable(name: str, value: Value) -> property:
    # What an object keeps of its own counts once the class no longer holds the attribute.
    return property(lambda _: value, lambda env, ignored: vars(env).update({name: value}))


@contextlib.contextmanager
def _harmless_plugins() -> Iterator[None]:
    """Let no other package's plug-in that fails keep gym or gymnasium from being imported."""
    entry_points = importlib.metadata.entry_points

    def harmless(plugin: Any) -> Any:
        def load() -> Any:
            try:
                plugin.load()()
            except OWN_FAILURES as error:
                broken[plugin.name] = _first_line(error)
            return lambda: None

        module, _, attribute = plugin.value.partition(":")
        return SimpleNamespace(
            name=plugin.name, value=plugin.value, module=module, attr=attribute or "none", load=load
        )

    def found(**which: Any) -> Any:
        plugins: Any = entry_points(**which)
        if which.get("group") not in ("gym.envs", "gymnasium.envs"):
            return plugins
        return [harmless(plugin) for plugin in plugins]

    importlib.metadata.entry_points = found
    try:
        yield
    finally:
        importlib.metadata.entry_points = entry_points


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"can't be imported: {type(error).__name__}: {lines[0]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
