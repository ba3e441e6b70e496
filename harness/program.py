"""How every program begins and ends: its packages, Ctrl-C, one line for an error, its status.

`prepare` imports nothing but Python's own library, so that a missing package is one line too.
"""

import contextlib
import importlib.util
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from harness import PROJECT

REQUIREMENTS = "requirements.txt"
MODULES = {"pillow": "PIL"}  # packages that are imported by another name
# The signal handler that was there before `prepare`: a notebook's, say.
former_handler: Any = None


def prepare(program: str, packages: Sequence[str] = (), file: str = REQUIREMENTS) -> None:
    """Called before a program imports anything else.

    From here on until its `main` begins, Ctrl-C ends it at once, without a traceback.

    Args:
        program: such as run.py, named in the error.
        packages: those that it needs; by default all of the file.
        file: the requirements file that installs them.
    """
    global former_handler  # noqa: PLW0603
    former_handler = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    check_requirements(program, packages, file)


def restore_handler() -> None:
    """Let Ctrl-C do what it did before `prepare`."""
    global former_handler  # noqa: PLW0603
    if former_handler is not None:
        signal.signal(signal.SIGINT, former_handler)
        former_handler = None


def check_requirements(program: str, packages: Sequence[str], file: str) -> None:
    """Exit with status 2 and one line if Python is too old or a package isn't installed."""
    if sys.version_info < (3, 11):  # noqa: UP036, it is an older Python that must be told
        _refuse(program, f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}")
    missing = [
        package
        for package in packages or required_packages(file)
        if not importlib.util.find_spec(MODULES.get(package, package))
    ]
    if missing:
        _refuse(program, f"no package {', '.join(missing)}; {cure(file)}")


def cure(file: str) -> str:
    """The command that makes the packages of a requirements file available."""
    here = Path(os.path.relpath(PROJECT))
    environment = here / ".venv"
    activate = environment / ("Scripts" if os.name == "nt" else "bin") / "activate"
    if activate.exists() and Path(sys.prefix).resolve() != environment.resolve():
        return f"activate the environment that has them: source {shlex.quote(str(activate))}"
    return f"to install: {installation(file)}"


def installation(file: str) -> str:
    """The command that installs a requirements file for the Python that runs."""
    path = os.path.relpath(PROJECT / file)
    return shlex.join([sys.executable, "-m", "pip", "install", "-r", path])


def required_packages(file: str = REQUIREMENTS) -> list[str]:
    """The names of the packages that a requirements file pins."""
    lines = (PROJECT / file).read_text(encoding="utf-8").splitlines()
    names = [re.match(r"[\w-]+(?===)", line) for line in lines]
    return list(dict.fromkeys(name[0] for name in names if name))


def _refuse(program: str, why: str) -> NoReturn:
    restore_handler()
    print(f"{program}: error: {why}", file=sys.stderr)
    sys.exit(2)


class Program:
    """A program from its `main` on: in the `with`, an error of the user's ends it with one line.

    Attributes:
        stop: tells that Ctrl-C or another signal has come.
        status: the exit status, once the `with` has ended: 0, or 2 for a mistake of the user's, 1
            for a training that failed, 130 and 143 after Ctrl-C and SIGTERM.
    """

    def __init__(self, name: str, stop: Any = None) -> None:
        """Begin one.

        Args:
            name: such as run.py, named in errors.
            stop: a StopSignal, or what stands in for one; by default, signals are caught.
        """
        # What they import is needed only after `prepare` has seen that it is there.
        from harness.terminal import StopSignal, start_program

        start_program()
        self.name, self.status = name, 0
        self._stack = contextlib.ExitStack()
        self._catches = stop is None
        self.stop: StopSignal = StopSignal() if stop is None else stop

    def __enter__(self) -> "Program":
        restore_handler()
        if self._catches:
            self._stack.enter_context(self.stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        from harness.errors import EnvironmentFault, TrainingError, UsageError, report_crash

        self._stack.close()
        if error is None:
            self.status = self.status or self.stop.exit_status
        elif isinstance(error, SystemExit):  # of --help
            self.status = error.code if isinstance(error.code, int) else 0
        elif isinstance(error, EnvironmentFault):
            report_crash(self.name, error)
            self.status = 1
        elif isinstance(error, (UsageError, TrainingError)):
            print(f"{self.name}: error: {error}", file=sys.stderr)
            self.status = 2 if isinstance(error, UsageError) else 1
        else:
            return False
        return True
