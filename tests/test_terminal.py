"""What a terminal of 80 columns and a pipe get to see."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, SHORT, python, run_command, start_command, terminal
from players import play

import run
from harness.environments import make_environment
from harness.state import Episode
from harness.terminal import ProgressBar, StopSignal
from loggers import TensorBoardLogger


@contextlib.contextmanager
def screen(columns=80):
    """Standard output and error go to a terminal; yields what it shows."""
    with (
        terminal() as (descriptor, shown),
        open(descriptor, "w", closefd=False) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        termios.tcsetwinsize(descriptor, (24, columns))
        yield shown


def test_a_terminal_shows_a_bar_below_the_log_lines(here):
    with screen() as shown:
        assert run.main([*SHORT, "--name", "bar"]) == 0
    text = shown.decode()
    last = [part for part in re.split(r"[\r\n]", text) if "2.50k/2.50k" in part][-1]
    pattern = r".*\| 2.50k/2.50k, +[\d.]+k? steps/s, 00:00 left, return -200, evaluation -200 *"
    assert re.fullmatch(pattern, last)
    assert len(last.rstrip()) <= 77  # with ^C after it, the line isn't full yet
    for line in ("Created bar-log", "Saved bar-log/bar-2500.h5"):
        assert re.search(rf"[\r\n]{line}\r?\n", text)


def test_a_long_evaluation_has_a_bar_of_its_own():
    weights = [np.zeros(shape, np.float32) for shape in ((2, 8), 8, (8, 3), 3)]
    env = make_environment("MountainCar-v0")
    with screen() as shown, ProgressBar(100_000, "steps", desc="evaluation ", delay=1) as bar:
        run.evaluate(env, weights, 1, steps=100_000, bar=bar)
    assert re.search(r"evaluation .*\| [\d.]+k/100k, ", shown.decode())


def test_a_long_series_of_episodes_has_a_bar_unless_it_is_piped(capsys):
    def long(observation):
        time.sleep(0.002)
        return 1

    with screen() as shown:
        play(policy=long, episodes=4, eval=True)
    assert re.search(r"\| [34]/4, ", shown.decode())
    assert re.search(r"[\r\n]episode_return_avg ", shown.decode())  # the bar leaves its line
    play(episodes=1, eval=True)
    assert "\r" not in "".join(capsys.readouterr())


def episode_line(folder, columns=None):
    """The line of an episode in a terminal of so many columns, or in a file."""
    episode = Episode(677, 1, [0] * 136, -136.0, 0.5)
    logger = TensorBoardLogger(folder)
    if columns is None:
        logger.log_episode(episode, 120136, 0.0123456)
        return None
    with screen(columns) as shown:
        logger.log_episode(episode, 120136, 0.0123456)
    return shown.decode().strip("\r\n")


START = "episode 677 steps 136/120136 loss 0.0123456 return -136.0"


def test_a_line_of_an_episode_fits_the_terminal_where_it_can(tmp_path):
    whole = episode_line(tmp_path, 200)
    assert re.fullmatch(START + r" in 0\.50s 272\.0 steps/s [\d.]+/[\d.]+ GB RAM", whole)
    assert episode_line(tmp_path, len(whole)) == whole
    assert episode_line(tmp_path, len(whole) - 1) == START + " in 0.50s 272.0 steps/s"
    assert episode_line(tmp_path, 80) == START + " in 0.50s 272.0 steps/s"
    assert episode_line(tmp_path, 79) == START + " 272.0 steps/s"
    assert episode_line(tmp_path, 60) == START
    assert episode_line(tmp_path, 20) == START  # its numbers are worth a second line
    assert episode_line(tmp_path, 0).endswith("GB RAM")  # the terminal doesn't know its width


def test_a_file_gets_the_whole_line_of_an_episode(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    episode_line(tmp_path)
    assert capsys.readouterr().out.endswith(" GB RAM\n")


def test_signal_handlers_are_given_back():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignal() as stop:
        assert [signal.getsignal(number) for number in numbers] != before
        signal.raise_signal(signal.SIGTERM)
    assert stop.exit_status == 143
    assert [signal.getsignal(number) for number in numbers] == before


def test_main_gives_back_the_signal_handlers_also_after_an_error(refused):
    before = signal.getsignal(signal.SIGINT)
    refused("--model", "nothing.h5")
    assert signal.getsignal(signal.SIGINT) is before


def test_nohups_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.number == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_stay_as_they_are():
    seen = []

    def enter():
        with StopSignal() as stop:
            seen.append((stop.number, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


LOCALES = {
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ASCII": {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
}
FEW_STEPS = [
    "--max-steps",
    "60",
    "--train-start",
    "30",
    "--eval-every",
    "0",
    "--hidden",
    "4,4",
    "--seed",
    "1",
]


def in_locale(name, program, *arguments, cwd):
    """What a program prints to two pipes, in bytes, and its exit status."""
    environment = {**os.environ, "PYTHONIOENCODING": "", **LOCALES[name]}
    return subprocess.run(
        python(program, arguments),
        capture_output=True,
        cwd=cwd,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("name", LOCALES)
def test_a_training_runs_in_a_locale_without_the_characters_of_its_lines(tmp_path, name):
    result = in_locale(name, "run.py", "--name", "naïve→", *FEW_STEPS, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    shown = {"Latin-1": b"Saved na.*ve.*-log/na.*ve.*-60.h5", "ASCII": rb"Saved na\?+ve\?+-log/na"}
    assert re.search(shown[name], result.stdout)
    assert (tmp_path / "naïve→-log" / "naïve→-60.h5").exists()


@pytest.mark.parametrize("program", ["run.py", "see.py", "sweep.py", "bench.py"])
def test_help_and_mistakes_need_neither_unicode_nor_docstrings(tmp_path, program, monkeypatch):
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    result = in_locale("ASCII", program, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    result = in_locale("ASCII", program, "--größe", os.fsdecode(b"\xff"), cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(program.encode() + b": error: ")
    assert result.stderr.count(b"\n") == 1


def test_names_that_are_no_unicode_are_replaced_in_a_line(tmp_path):
    name = os.fsdecode(b"caf\xe9.gif")
    result = run_command("see.py", "--gif", name, "--seed", "1", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Saved caf?.gif\n" in result.stdout
    assert (tmp_path / name).exists()


PRINTING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from harness.terminal import log, start_program
start_program()
start_program()
log("a line")
print("another")
sys.stderr.write("done\\n")
"""


def print_to(stdout, unbuffered=""):
    return subprocess.run(
        [sys.executable, "-c", PRINTING, ROOT],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_output_is_one_line_at_the_end(unbuffered):
    with open("/dev/full", "w") as full:
        result = print_to(full, unbuffered)
    assert result.returncode == 0
    assert result.stderr == (
        "done\nwarning: some lines couldn't be printed: no space left on device\n"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_nobody_reads_is_no_error(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    result = print_to(writer, unbuffered)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "done\n")


def test_a_closed_output_is_no_error_and_no_other_file_takes_its_place(tmp_path):
    command = f'"$0" -c "$1" {ROOT} >&- 2>&- && "$0" -c "$2" >&- 2>&-'
    takes_its_place = "from harness.terminal import start_program; start_program(); "
    takes_its_place += f"print(open({str(tmp_path / 'file')!r}, 'w').fileno() > 2 or 1 / 0)"
    words = ["sh", "-c", command, sys.executable, PRINTING, takes_its_place]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_a_training_whose_lines_nobody_can_read_ends_well(tmp_path):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            python("run.py", ["--name", "full", *FEW_STEPS]),
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            timeout=300,
            check=False,
        )
    assert result.returncode == 0
    assert result.stderr == "warning: some lines couldn't be printed: no space left on device\n"
    assert (tmp_path / "full-log" / "full-60.h5").exists()


def test_a_mistake_whose_line_cannot_be_printed_is_still_status_2(tmp_path):
    with open("/dev/full", "w") as full:
        words = python("run.py", ["--model", "nothing.h5"])
        result = subprocess.run(words, stderr=full, cwd=tmp_path, check=False)
    assert result.returncode == 2


def test_ctrl_c_ends_the_benchmark_without_a_traceback(tmp_path):
    process = start_command("bench.py", "--turns", "1000", cwd=tmp_path, env=temporary(tmp_path))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("tmp*/config.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def temporary(folder):
    return {**os.environ, "TMPDIR": str(folder)}
