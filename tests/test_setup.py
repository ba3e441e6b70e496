"""The files that set the tool up agree with each other, and with what they say."""

import ast
import re
import stat
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
QUICK_START = re.findall(r"^python3 -m venv .+$", README, re.MULTILINE)
NAMES = {"pillow": "PIL"}


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", "-r"))]


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda p: p.name)
def test_every_requirement_is_pinned(path):
    for line in pins(path.name):
        assert re.match(r"^[A-Za-z0-9_.\[\]-]+==[0-9.]+(; .+)?$", line), line


def test_every_requirement_is_used_and_every_import_required():
    imported = set()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    lazy = set(re.findall(r'LazyModule\("(\w+)"\)', (ROOT / "backend.py").read_text()))
    own = {path.stem for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")]}
    pinned = {
        re.split(r"[=\[]", line)[0].replace("-", "_")
        for path in ROOT.glob("requirements*.txt")
        for line in pins(path.name)
    }
    needed = {NAMES.get(name, name) for name in pinned} - {
        "ruff",
        "pyarrow",
    }  # a program, and what Ray Tune imports
    assert needed == (imported | lazy) - own - set(sys.stdlib_module_names)


def test_the_conda_environment_refers_to_the_same_pins():
    text = (ROOT / "environment.yml").read_text()
    assert re.search(r"^name: tutorial$", text, re.MULTILINE)
    assert re.search(r"^ +- -r requirements\.txt$", text, re.MULTILINE)
    assert "==" not in text


def test_the_quick_start_has_two_commands_each_complete_in_itself():
    assert QUICK_START == [
        "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt "
        "&& .venv/bin/python run.py",
        "python3 -m venv .venv && .venv/bin/pip install -r requirements-dev.txt "
        "&& .venv/bin/python -m pytest",
    ]


def test_ci_runs_the_readmes_test_command():
    path = ROOT / ".ci" / "run"
    assert path.stat().st_mode & stat.S_IXUSR
    text = path.read_text()
    assert "ruff check" in text and "ruff format --check" in text and "README.md" in text


def test_the_readme_names_files_and_flags_that_exist():
    import run
    from arguments import flag

    for name in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", README):
        assert (ROOT / name).exists(), name
    known = (ROOT / "arguments.py").read_text() + "".join(map(flag, run.HYPERPARAMETERS))
    for path in ("sweep.py", "bench.py"):
        known += (ROOT / path).read_text() if (ROOT / path).exists() else ""
    for command in re.findall(r"python (?:run|see|sweep|bench)\.py[^\n`]*", README):
        for name in re.findall(r"(?<= )--[a-z][a-z-]*", command):
            assert name in known, command


def test_the_readme_is_short():
    assert len(README.splitlines()) < 250
