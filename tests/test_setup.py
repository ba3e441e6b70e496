"""The files that set the tool up agree with each other, and the documents with the program."""

import ast
import csv
import graphlib
import importlib
import os
import re
import stat
import sys

import pytest
from conftest import ROOT

import run
from harness.environments import check_environment, make_environment
from harness.program import MODULES

README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    *("README.md", "tests/README.md", ".github/CONTRIBUTING.md"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
PROGRAMS = ["run", "see", "sweep", "bench"]
PYTHONS = ["3.11", "3.12", "3.13"]
TRAINING, TESTING = (
    "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt "
    "&& .venv/bin/python run.py --preset tuned",
    "python3 -m venv .venv && .venv/bin/pip install -r requirements-dev.txt "
    "&& .venv/bin/python -m pytest",
)
# Programs, and a plugin of pytest's.
NEVER_IMPORTED = {"mypy", "pre_commit", "ruff", "pytest_xdist"}


def blocks(text, language=""):
    """The code blocks of a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def package(line):
    return re.split(r"[=\[]", line)[0]


# Requirements


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", "-r"))]


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda p: p.name)
def test_every_requirement_is_pinned_and_has_a_reason(path):
    above = ""
    for line in path.read_text().splitlines():
        if not line.startswith(("#", "-r")):
            assert re.match(r"^[A-Za-z0-9_.\[\]-]+==[0-9.]+(; .+)?$", line), line
            assert above.startswith("# ") or package(above) == package(line), line
        above = line


def imports_of(path):
    """The modules that a file imports when it runs, by their full names."""
    nodes = [ast.parse(path.read_text())]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes.extend(ast.iter_child_nodes(node))


def test_every_requirement_is_used_and_every_import_required():
    paths = [path for part in ("*.py", "harness/**/*.py", "tests/*.py") for path in ROOT.glob(part)]
    imported = {name.split(".")[0] for path in paths for name in imports_of(path)}
    lazy = re.findall(r'LazyModule\("(\w+)"\)', (ROOT / "harness/backend.py").read_text())
    own = {path.stem for path in paths} | {"harness"}
    pinned = {
        package(line).replace("-", "_")
        for path in ROOT.glob("requirements*.txt")
        for line in pins(path.name)
    }
    needed = {MODULES.get(name, name) for name in pinned - NEVER_IMPORTED}
    assert needed == (imported | set(lazy)) - own - set(sys.stdlib_module_names)


def test_the_conda_environment_refers_to_the_same_pins():
    text = (ROOT / "environment.yml").read_text()
    assert re.search(r"^name: tutorial$", text, re.MULTILINE)
    assert re.search(r"^ +- -r requirements\.txt$", text, re.MULTILINE)
    assert "==" not in text


# Modules


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


# The checks


def test_the_quick_start_has_two_commands_each_in_a_block_of_its_own():
    quick_start = README.partition("## Quick start")[2].partition("\n## ")[0]
    assert blocks(quick_start) == [TRAINING + "\n", TESTING + "\n"]


def test_the_checks_run_the_readmes_test_command_and_keep_a_developers_environment():
    path = ROOT / ".ci" / "run"
    assert path.stat().st_mode & stat.S_IXUSR
    text = path.read_text()
    assert "rm -rf .venv" not in text and "mktemp -d" in text
    assert all(part in text for part in ("ruff check", "ruff format --check", "mypy"))
    pattern = re.search(r"grep -m1 -E '(.+?)' README\.md", text)[1]
    lines = [line for line in README.splitlines() if re.search(pattern, line)]
    assert lines == [TESTING]


def test_the_workflow_runs_the_checks_on_every_python_that_the_readme_names():
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert re.findall(r'"(3\.\d+)"', text) == PYTHONS
    assert "run: .ci/run" in text
    assert "You need Python {}, {} or {}.".format(*PYTHONS) in README


def test_the_hooks_use_pinned_programs():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"entry: python -m (\w+)", text)
    assert set(entries) == {"ruff", "mypy"}
    assert set(entries) <= {package(line) for line in pins("requirements-dev.txt")}


# The documents


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file(name):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", (ROOT / name).read_text())
    assert links or name in ("docs/own-environment.md", "docs/sweeps.md", "docs/exercises.md")
    for link in links:
        assert ((ROOT / name).parent / link).exists(), link


@pytest.fixture
def flags_of(capsys):
    """The flags of each program, as its --help names them."""
    found = {}
    for program in PROGRAMS:
        assert importlib.import_module(program).main(["--help"]) == 0
        found[program] = set(re.findall(r"--[a-z][a-z-]*[a-z]", capsys.readouterr().out))
    return found


def test_every_flag_of_a_document_is_one_of_its_program(flags_of):
    ours = set.union(*flags_of.values()) | {"--help", "--logdir", "--head", "--generate"}
    for name in DOCUMENTS:
        text = re.sub(r"\s+", " ", (ROOT / name).read_text())
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text.replace("--check", "")):
            assert flag in ours, (name, flag)
        for program, words in re.findall(r"python (\w+)\.py([^`]*)`", text):
            for flag in re.findall(r" (--[a-z][a-z-]*[a-z])", words):
                assert flag in flags_of[program], (name, program, words)


def test_how_it_works_names_functions_of_run_py():
    names = re.findall(r"^\d\. `(\w+)`", README, re.MULTILINE)
    assert names and all(callable(getattr(run, name)) for name in names)


def test_the_map_of_the_house_shows_every_module():
    text = (ROOT / "docs/how-it-is-built.md").read_text()
    links = re.findall(r"\]\(\.\./harness/([\w/.]+)\)", text.partition("## What happens")[0])
    modules = {path.name for path in (ROOT / "harness").glob("*.py")} - {"__init__.py"}
    assert sorted(links) == sorted({*modules, "sweeps"})


def test_every_row_of_what_can_go_wrong_names_a_test_that_exists():
    text = (ROOT / "tests/README.md").read_text()
    names = re.findall(r"`(test_\w+)`", text)
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    defined = re.findall(r"^def (test_\w+)", sources, re.MULTILINE)
    assert names and set(names) <= set(defined), set(names) - set(defined)


def own_environment():
    """The code of the documents' own environment, and the commands that follow it."""
    text = (ROOT / "docs/own-environment.md").read_text()
    (code,) = blocks(text, "python")
    commands = re.findall(r"^python run\.py (.*)$", text, re.MULTILINE)
    return code, commands


def test_the_documents_own_environment_is_examined_learned_and_drawn(tensorflow, here):
    code, (examine, learn, draw) = own_environment()
    (here / "hallway.py").write_text(code)
    for words in examine, f"{learn} --seed 1", draw:
        assert run.main(words.split()) == 0
    with open(here / "out-log/evaluations.csv", newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["episode_return_avg"]) == -10
    assert (here / "out.gif").exists()


def test_the_documents_own_environment_may_be_gymnasiums(here):
    code, _ = own_environment()
    line = "import gym  # or: import gymnasium as gym\n"
    assert line in code
    code = code.replace(line, "import gymnasium as gym\n").replace("Hallway-v0", "Passage-v0")
    (here / "hallway_of_gymnasium.py").write_text(code)
    env = make_environment("hallway_of_gymnasium:Passage-v0")
    assert check_environment(env) == []
    assert env.package == "gymnasium"


def run_lines(document):
    """Run a document's Python as a script."""
    (code,) = blocks((ROOT / document).read_text(), "python")
    exec(compile(code, document, "exec"), {"__name__": "__main__"})


def test_the_lines_for_python_run_as_they_stand(tensorflow, here, capsys):
    run_lines("docs/from-python.md")
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert {"study-log finished", "True", "0.99 0", "0.998 0"} <= set(lines)
    assert {"study-log", "study.gif", "gamma-0.99-log", "gamma-0.998-log"} <= set(os.listdir(here))


def test_the_lines_for_plain_keras_reach_the_flag(tensorflow, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run_lines("docs/evidence.md")
    assert capsys.readouterr().out == "reached the flag\n"


def test_the_included_policy_solves_the_mountain(capsys):
    path = ROOT / "assets" / "mountain.h5"
    assert path.stat().st_size < 100_000
    assert run.main(["--model", str(path), "--eval", "--seed", "1"]) == 0
    assert float(capsys.readouterr().out.split()[-1]) > -110
