"""The files that set the tool up agree with each other, and with what they say."""

import ast
import graphlib
import re
import stat
import sys

import pytest
from conftest import ROOT, run_command

import run
from harness.arguments import flag

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


def imports_of(path):
    """The modules that a file imports, by their full names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_requirement_is_used_and_every_import_required():
    paths = [path for part in ("*.py", "harness/**/*.py", "tests/*.py") for path in ROOT.glob(part)]
    imported = {name.split(".")[0] for path in paths for name in imports_of(path)}
    lazy = re.findall(r'LazyModule\("(\w+)"\)', (ROOT / "harness/backend.py").read_text())
    own = {path.stem for path in paths} | {"harness"}
    pinned = {
        re.split(r"[=\[]", line)[0].replace("-", "_")
        for path in ROOT.glob("requirements*.txt")
        for line in pins(path.name)
    }
    # ruff is a program, and pytest-xdist is pytest's.
    needed = {NAMES.get(name, name) for name in pinned} - {"ruff", "pytest_xdist"}
    assert needed == (imported | set(lazy)) - own - set(sys.stdlib_module_names)


def test_imports_point_one_way_and_form_no_circle():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in [*ROOT.glob("*.py"), *ROOT.glob("harness/**/*.py")]
    }
    graph = {name: set(imports_of(path)) & modules.keys() for name, path in modules.items()}
    for name, imported in graph.items():
        if name.startswith("harness"):
            assert all(other.startswith("harness") for other in imported), name
        else:
            assert name in ("sweep", "bench") or not imported & {"sweep", "bench", "see"}, name
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


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
    assert "rm -rf .venv" not in text and "mktemp -d" in text  # a developer's own is kept
    assert "ruff check" in text and "ruff format --check" in text and "README.md" in text


def test_the_readme_names_files_and_flags_that_exist():
    for name in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", README):
        assert (ROOT / name).exists(), name
    known = (ROOT / "harness/arguments.py").read_text() + "".join(map(flag, run.HYPERPARAMETERS))
    for path in ("sweep.py", "bench.py"):
        known += (ROOT / path).read_text() if (ROOT / path).exists() else ""
    for command in re.findall(r"python (?:run|see|sweep|bench)\.py[^\n`]*", README):
        for name in re.findall(r"(?<= )--[a-z][a-z-]*", command):
            assert name in known, command


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200


def test_the_readmes_lines_for_plain_keras_reach_the_flag():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert run_command("-c", code, cwd=ROOT).stdout == "reached the flag\n"


def test_the_included_policy_solves_the_mountain(capsys):
    path = ROOT / "assets" / "mountain.h5"
    assert path.stat().st_size < 100_000
    assert run.main(["--model", str(path), "--eval", "--seed", "1"]) == 0
    assert float(capsys.readouterr().out.split()[-1]) > -110
