"""How a program begins and ends: its packages, its signal handlers, its status."""

import ast
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import venv

import pytest
from conftest import ROOT

from harness import program
from harness.program import MODULES, check_requirements, prepare, required_packages

PROGRAMS = ("run.py", "see.py", "sweep.py", "bench.py")
ACTIVATE = ".venv/bin/activate"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of this project that was never set up: no `.venv` lies beside its run.py."""
    folder = tmp_path_factory.mktemp("a project")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("requirements*.txt")]:
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "harness", folder / "harness")
    return folder


def refusal(python, project, name, *words, cwd):
    """The one line that a program outside its environment prints."""
    command = [python, project / name, *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    line = re.fullmatch(rf"{name}: error: no package [\w, ]*numpy[\w, ]*; (.+)\n", result.stderr)
    assert line, result.stderr
    return line[1]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_without_its_packages_is_one_line(bare_python, project, tmp_path, name):
    for words in ([], ["--help"]):
        cure = refusal(bare_python, project, name, *words, cwd=tmp_path)
        start, _, command = cure.partition(": ")
        assert start == "to install"
        python, *install, path = shlex.split(command)
        assert (python, install) == (str(bare_python), ["-m", "pip", "install", "-r"])
        assert (tmp_path / path).resolve() == project / "requirements.txt"


def test_a_program_outside_the_environment_beside_it_says_to_activate_that(
    bare_python, project, tmp_path
):
    (project / ".venv/bin").mkdir(parents=True)
    (project / ACTIVATE).touch()
    try:
        cure = refusal(bare_python, project, "run.py", cwd=tmp_path)
        here = refusal(bare_python, project, "see.py", cwd=project)
    finally:
        shutil.rmtree(project / ".venv")
    start, _, command = cure.partition(": ")
    assert start == "activate the environment that has them"
    source, path = shlex.split(command)
    assert source == "source"
    assert (tmp_path / path).resolve() == project / ACTIVATE
    assert here.endswith(f": source {ACTIVATE}")


def test_inside_the_environment_a_missing_package_is_to_be_installed(monkeypatch, tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ACTIVATE).touch()
    monkeypatch.setattr(program, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert program.cure("requirements-sweep.txt").startswith("to install: ")


def without(monkeypatch, package):
    """Let one of the packages not be installed."""
    found = {MODULES.get(name, name) for name in required_packages() if name != package}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in found else None)


@pytest.mark.parametrize("package", ["psutil", "rich", "pygame", "matplotlib", "pillow"])
def test_a_single_missing_package_is_named(monkeypatch, capsys, package):
    without(monkeypatch, package)
    with pytest.raises(SystemExit) as stop:
        prepare("run.py")
    assert stop.value.code == 2
    assert f"run.py: error: no package {package}; " in capsys.readouterr().err


def test_an_old_python_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    with pytest.raises(SystemExit) as stop:
        prepare("run.py")
    assert stop.value.code == 2
    assert "run.py: error: Python 3.11 or newer is needed; this is 3." in capsys.readouterr().err


def test_the_packages_are_those_that_are_pinned():
    names = required_packages()
    assert {"tensorflow", "numpy", "pillow"} <= set(names)
    assert len(names) == len(set(names)) >= 11


def test_see_asks_for_every_package_that_it_imports():
    code = "import sys, see; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    pinned = {MODULES.get(package, package): package for package in required_packages()}
    imported = {pinned[name] for name in result.stdout.split() if name in pinned}
    asked = re.search(r'prepare\("see.py", (\(.*?\))\)', (ROOT / "see.py").read_text())
    assert "numpy" in imported
    assert imported <= set(ast.literal_eval(asked[1]))


def test_where_all_is_installed_the_check_takes_no_time():
    check_requirements("run.py", (), "requirements.txt")
    start = time.process_time()
    for _ in range(10):
        check_requirements("run.py", (), "requirements.txt")
    assert time.process_time() - start < 0.5


# A notebook's `%run`


@pytest.fixture
def handler():
    """A notebook's own handler of Ctrl-C, put back afterwards."""

    def own(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, own)
    yield own
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("name", "words", "status"),
    [
        ("run.py", ["--model", str(ROOT / "assets/mountain.h5"), "--eval", "--episodes=1"], 0),
        ("run.py", ["--help"], 0),
        ("run.py", ["--modle", "x"], 2),
        ("run.py", ["--seed", "x"], 2),
        ("run.py", ["--resume", "x"], 2),
        ("see.py", ["--gif", "x.mp4"], 2),
        ("see.py", ["--help"], 0),
        ("bench.py", ["--turns", "x"], 2),
    ],
    ids=lambda value: " ".join(value)[-20:] if isinstance(value, list) else "",
)
def test_run_in_a_notebook_gives_back_the_handler_of_ctrl_c(
    here, handler, monkeypatch, name, words, status
):
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    assert stop.value.code == status
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_program_that_is_refused_gives_back_the_handler_too(handler, monkeypatch):
    without(monkeypatch, "rich")
    with pytest.raises(SystemExit):
        prepare("run.py")
    assert signal.getsignal(signal.SIGINT) is handler
