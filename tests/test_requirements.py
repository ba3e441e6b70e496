"""A program outside its environment says in one line what is missing and how to install it."""

import ast
import re
import shlex
import subprocess
import sys
import time
import venv

import pytest
from conftest import ROOT

from harness.requirements import MODULES, check_requirements, required_packages

PROGRAMS = ("run.py", "see.py", "sweep.py", "bench.py")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_without_its_packages_is_one_line(bare_python, tmp_path, program):
    for words in ([], ["--help"]):
        command = [bare_python, ROOT / program, *words]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (result.returncode, result.stdout) == (2, "")
        line = re.fullmatch(
            rf"{program}: error: no package [\w, ]*numpy[\w, ]*; to install: (.+)\n", result.stderr
        )
        assert line, result.stderr
        python, *install, path = shlex.split(line[1])
        assert (python, install) == (str(bare_python), ["-m", "pip", "install", "-r"])
        assert (tmp_path / path).resolve() == ROOT / "requirements.txt"


@pytest.mark.parametrize("package", ["psutil", "tqdm", "pygame", "matplotlib", "pillow"])
def test_a_single_missing_package_is_named(monkeypatch, capsys, package):
    find_spec = {name: name for name in required_packages() if name != package}
    find_spec |= {"PIL": "PIL"} if package != "pillow" else {}
    monkeypatch.setattr("importlib.util.find_spec", find_spec.get)
    with pytest.raises(SystemExit) as stop:
        check_requirements("run.py")
    assert stop.value.code == 2
    assert f"run.py: error: no package {package}; to install: " in capsys.readouterr().err


def test_an_old_python_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    with pytest.raises(SystemExit) as stop:
        check_requirements("run.py")
    assert stop.value.code == 2
    assert "run.py: error: Python 3.11 or newer is needed; this is 3." in capsys.readouterr().err


def test_the_packages_are_those_that_are_pinned():
    assert len(required_packages()) == 11
    assert {"tensorflow", "numpy", "pillow"} <= set(required_packages())


def test_see_asks_for_every_package_that_it_imports():
    code = "import sys, see; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    pinned = {MODULES.get(package, package): package for package in required_packages()}
    imported = {pinned[name] for name in result.stdout.split() if name in pinned}
    asked = re.search(r'check_requirements\("see.py", (\(.*?\))\)', (ROOT / "see.py").read_text())
    assert "numpy" in imported
    assert imported <= set(ast.literal_eval(asked[1]))


def test_where_all_is_installed_the_check_takes_no_time():
    check_requirements("run.py")
    start = time.process_time()
    for _ in range(10):
        check_requirements("run.py")
    assert time.process_time() - start < 0.5
