"""Whether what a program needs is installed; imports nothing but Python's own library.

Each program asks before it imports anything else: a missing package is one line, no traceback.
"""

import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from harness import PROJECT

REQUIREMENTS = "requirements.txt"
MODULES = {"pillow": "PIL"}  # packages that are imported by another name


def check_requirements(
    program: str, packages: Sequence[str] = (), file: str = REQUIREMENTS
) -> None:
    """Exit with status 2 and one line if Python is too old or a package isn't installed.

    Args:
        program: such as run.py, named in the line.
        packages: those that it needs; by default all of the file.
        file: the requirements file that installs them.
    """
    if sys.version_info < (3, 11):  # noqa: UP036, it is an older Python that must be told
        _refuse(program, f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}")
    missing = [
        package
        for package in packages or required_packages(file)
        if not importlib.util.find_spec(MODULES.get(package, package))
    ]
    if missing:
        _refuse(program, f"no package {', '.join(missing)}; to install: {installation(file)}")


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
    print(f"{program}: error: {why}", file=sys.stderr)
    sys.exit(2)
