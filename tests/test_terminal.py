"""What a terminal of 80 columns and a pipe get to see."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest
from conftest import ROOT, SHORT, python, run_command, start_command, terminal

import run
from harness.terminal import ProgressBar, StopSignal, log


@contextlib.contextmanager
def screen(columns=80):
    """Standard output goes to a terminal; yields what it is sent."""
    with (
        terminal() as (descriptor, shown),
        open(descriptor, "w", closefd=False) as file,
        contextlib.redirect_stdout(file),
    ):
        termios.tcsetwinsize(descriptor, (24, columns))
        yield shown


def lines_on_screen(data, columns=80):
    """What a terminal shows after it was sent `data`: its lines, from the top."""
    lines, row, column = [[]], 0, 0
    for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|.", data.decode(), re.DOTALL):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
        elif part == "\x1b[2K":
            lines[row] = []
        elif re.fullmatch(r"\x1b\[\d*A", part):
            row -= int(part[2:-1] or 1)
        elif not part.startswith("\x1b"):
            if column == columns:
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append([])
            lines[row] += " " * (column + 1 - len(lines[row]))
            lines[row][column] = part
            column += 1
        while len(lines) <= row:
            lines.append([])
    return ["".join(line).rstrip() for line in lines]


def wait_for(text, shown):
    deadline = time.monotonic() + 30
    while text not in shown and time.monotonic() < deadline:
        time.sleep(0.01)


BAR = "[━╸╺]{12}"


def test_a_terminal_shows_a_bar_below_the_log_lines(here):
    with screen() as shown:
        assert run.main([*SHORT, "--name", "bar"]) == 0
    lines = lines_on_screen(shown)
    (bar,) = (line for line in lines if re.match(rf"{BAR} ", line))
    pattern = rf"{BAR} 2\.5k/2\.5k [\d.]+k? steps/s 0:00 left return -200 evaluation -200"
    assert re.fullmatch(pattern, bar)
    assert "Created bar-log" in lines
    assert "Saved bar-log/bar-2500.h5" in lines


def test_a_bar_shows_how_far_it_is_how_fast_and_the_latest_results(monkeypatch):
    monkeypatch.setattr("harness.terminal.BAR_SECONDS", 0)
    with screen() as shown, ProgressBar(200_000, "steps") as bar:
        bar.reach(100_000, "return", -200)
        time.sleep(0.1)
        bar.reach(123_456, "evaluation", -123.456)
        bar.reach(123_456, "return", -198.76)
    (line,) = (line for line in lines_on_screen(shown) if line)
    rate, left = r"[\d.]+[kM] steps/s", r"0:\d\d left"
    results = r"return -198\.8 evaluation -123\.5"
    assert re.fullmatch(rf"{BAR} 123k/200k {rate} {left} {results}", line)
    assert len(line) <= 77  # with ^C after it, the line isn't full yet


def test_lines_and_prints_come_above_the_bar_and_long_ones_stay_whole(monkeypatch):
    monkeypatch.setattr("harness.terminal.BAR_SECONDS", 0)
    command = "python run.py --model " + "long/" * 20 + "[best].h5"
    with screen() as shown, ProgressBar(10, "episodes", leave=False) as bar:
        log("first")
        bar.reach(1)
        log(command)
        bar.reach(2)
        print("an environment's own line")
        bar.reach(3)
    log_lines = ["first", command[:80], command[80:], "an environment's own line"]
    assert [line for line in lines_on_screen(shown) if line] == log_lines
    assert command in shown.decode()  # the terminal wraps it: it can be copied


def test_a_bar_within_another_leaves_the_screen_to_it(monkeypatch):
    monkeypatch.setattr("harness.terminal.BAR_SECONDS", 0)
    with screen() as shown, ProgressBar(100, "steps") as bar:
        bar.reach(40, "return", 1)
        with ProgressBar(50, "steps", desc="evaluation", leave=False) as inner:
            inner.reach(20)
            wait_for(b" 20/50", shown)
            both = lines_on_screen(shown)
            log("a line")
            inner.reach(40)
        bar.reach(60, "return", 2)
    assert [re.sub(rf"{BAR} ", "", line)[:16] for line in both] == [
        "40/100 return 1",
        "evaluation 20/50",
    ]
    a_line, bar_line, *rest = lines_on_screen(shown)
    assert a_line == "a line"
    assert re.fullmatch(rf"{BAR} 60/100 .*return 2", bar_line)
    assert not any(rest)


@pytest.mark.parametrize(("unit", "shown_last"), [("steps", "150/200"), ("episodes", "3/200")])
def test_a_bar_listens_to_an_evaluation(monkeypatch, unit, shown_last):
    monkeypatch.setattr("harness.terminal.BAR_SECONDS", 0)
    with screen() as shown, ProgressBar(200, unit) as bar:
        for _ in range(3):
            bar.reset()
            for step in range(50):
                bar.step(0, -1.0, ended=step == 49)
    (line,) = (line for line in lines_on_screen(shown) if line)
    assert re.match(rf"{BAR} {shown_last} ", line)


def test_a_bar_that_comes_late_is_not_shown_for_what_is_quick():
    with screen() as shown, ProgressBar(5, "steps", delay=60) as bar:
        for number in range(6):
            bar.reach(number)
    assert shown == b""


def test_a_bar_is_drawn_seldom_however_often_it_is_told():
    with screen() as shown, ProgressBar(100_000, "steps") as bar:
        started = time.perf_counter()
        for number in range(100_000):
            bar.reach(number, "return", number)
        seconds = time.perf_counter() - started
    assert shown.count(b"\r") <= 4 * seconds + 4


def test_a_terminal_too_narrow_for_the_bar_shows_one_line_of_it(monkeypatch):
    monkeypatch.setattr("harness.terminal.BAR_SECONDS", 0)
    monkeypatch.setenv("COLUMNS", "30")
    with screen(30) as shown, ProgressBar(200_000, "steps") as bar:
        for number in range(0, 200_000, 50_000):
            bar.reach(number, "return", -200)
    assert len([line for line in lines_on_screen(shown, 30) if line]) == 1


def test_a_pipe_gets_lines_only_whatever_the_environment_asks_for(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from harness.terminal import ProgressBar, log, make_console, start_program
start_program()
with ProgressBar(10, "steps") as bar:
    for number in range(10):
        bar.reach(number, "return", 1)
        log(f"line {{number}}")
make_console().print("[bold red]coloured[/]")
"""
    forced = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "CLICOLOR_FORCE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=os.environ | forced, check=False
    )
    expected = [*(f"line {number}" for number in range(10)), "coloured"]
    assert (result.stdout.decode().splitlines(), result.stderr) == (expected, b"")


def test_lines_of_a_pipe_need_no_library_of_colours():
    code = "import sys, harness.terminal as t; t.log('x'); print('rich' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False
    )
    assert result.stdout == b"x\nFalse\n"


INTERRUPTED = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from harness.terminal import ProgressBar, StopSignal, log, start_program
start_program()
with StopSignal() as stop, ProgressBar(10**6, "steps") as bar:
    number = 0
    while not stop.number:
        number += 1
        time.sleep(0.01)
        bar.reach(number, "return", -200)
        bar.reach(number, "evaluation", -123.4)
    log("stopped")
    stubborn = len(sys.argv) > 1
    while stubborn:
        time.sleep(0.01)
sys.exit(stop.exit_status)
"""


def interrupt(*words):
    """Type Ctrl-C, a second time if words are given, in a terminal that runs INTERRUPTED.

    Returns:
        the exit status, and what the screen was sent.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
    )
    os.close(theirs)
    shown, awaited = bytearray(), [b"evaluation", b"stopped"][: 1 + len(words)]
    with contextlib.suppress(OSError):  # the process has closed it
        while data := os.read(ours, 1 << 16):
            shown += data
            if awaited and awaited[0] in shown:
                del awaited[0]
                os.write(ours, b"\x03")
    os.close(ours)
    return process.wait(timeout=60), shown


def test_ctrl_c_leaves_one_bar_and_a_visible_cursor():
    status, shown = interrupt()
    assert status == 130
    assert b"^C" in shown
    first, bar, *rest = (line for line in lines_on_screen(shown) if line)
    assert (first, rest) == ("stopped", [])
    assert re.match(rf"{BAR} \d+/1M", bar)
    assert b"\x1b[?25l" not in shown


def test_a_second_ctrl_c_leaves_a_visible_cursor():
    status, shown = interrupt("stubborn")
    assert status == 130
    assert b"\x1b[?25l" not in shown


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


@pytest.mark.parametrize(
    ("name", "shown"), [("Latin-1", "naïve?\n".encode("latin-1")), ("ASCII", b"na?ve?\n")]
)
def test_characters_that_a_locale_lacks_become_question_marks(name, shown):
    code = "from harness.terminal import log, start_program; start_program(); log('naïve→')"
    environment = {**os.environ, "PYTHONIOENCODING": "", **LOCALES[name]}
    code = code.encode("unicode_escape").decode()  # it has to pass through the command line
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=environment, check=False
    )
    assert (result.stdout, result.stderr) == (shown, b"")


def test_a_training_runs_in_a_locale_without_the_characters_of_its_lines(tmp_path):
    result = in_locale("ASCII", "run.py", "--name", "naïve→", *FEW_STEPS, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    assert re.search(rb"Saved na\?+ve\?+-log/na", result.stdout)
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
    while not list(tmp_path.glob("tmp*/*/config.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def temporary(folder):
    return {**os.environ, "TMPDIR": str(folder)}
