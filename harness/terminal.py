"""Lines and a progress bar on the screen, and the signals that come from it."""

import atexit
import contextlib
import io
import math
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeGuard

from harness import PROJECT
from harness.errors import reason

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

BAR_SECONDS = 0.25  # between two drawings
BAR_WIDTH = 12  # leaves room for the results, and the terminal's ^C, on a line of 80 columns


class Screen(io.TextIOWrapper):
    """Standard output, or error, that prints what it can and never raises: nobody has to read it.

    What can't be written, to a full disk, a closed pipe or a terminal that is gone, stays in the
    buffer as long as there is room, and the next line tries again. A character that the encoding
    lacks becomes a question mark.

    Attributes:
        lost: why something couldn't be written, None while nothing is lost.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            stream.encoding,
            errors="replace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._stream = stream  # else Python would close the file with it
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, if that is possible."""
        try:
            return super().write(text)
        except OSError as error:  # the buffer is full, too
            self.lost = error
            return len(text)

    def flush(self) -> None:
        """Write what is left in the buffer, if that is possible."""
        with contextlib.suppress(OSError):
            super().flush()

    def flush_at_exit(self) -> None:
        """Write what is left for the last time, and say so if some of it was lost."""
        try:
            super().flush()
        except OSError as error:
            self.lost = error
            # Python tries once more, and would print an exception.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        if self.lost and not isinstance(self.lost, BrokenPipeError):  # `| head` has seen enough
            why = reason(self.lost)
            print(f"warning: some lines couldn't be printed: {why}", file=sys.stderr)


def start_program() -> None:
    """Prepare standard output and error, whatever they are: each program's `main` begins with it.

    Neither a closed or full output nor a name that it can't encode ends a program. Lines that
    couldn't be printed are reported at the end, on standard error.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    if _is_standard(sys.stdout, 1):
        sys.stdout = Screen(sys.stdout)
        atexit.register(sys.stdout.flush_at_exit)
    if _is_standard(sys.stderr, 2):
        sys.stderr = Screen(sys.stderr)


def _is_standard(stream: Any, descriptor: int) -> TypeGuard[io.TextIOWrapper]:
    """Whether it is the process's own stream, neither a Screen yet nor a notebook's or a test's."""
    try:
        return type(stream) is io.TextIOWrapper and stream.fileno() == descriptor
    except OSError:
        return False


def log(line: str) -> None:
    """Print a line at once, above a progress bar if there is one; nobody has to read it."""
    with contextlib.suppress(OSError):  # of a stream that isn't a Screen
        if _shown_bars:
            _shown_bars[0].print_above(line)
        else:
            print(line, flush=True)


def make_console() -> "Console":
    """A rich Console of standard output: colours and redrawing in a terminal, else plain text.

    It leaves the cursor visible, or a program that is killed would leave a terminal without one.
    """
    from rich.console import Console  # late: --help needs no such thing

    class PlainConsole(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False

    # What FORCE_COLOR would bring into a file, no program can read.
    return PlainConsole(force_terminal=sys.stdout.isatty(), force_jupyter=False)


def command(program: str, *words: str | Path) -> str:
    """The command that runs `program`, such as run.py, from where the user stands.

    Args:
        words: its flags and their values, files and folders as Paths.
    """
    python, found = "python", shutil.which("python") or ""
    if os.path.dirname(found) != os.path.dirname(sys.executable):  # it would be another one
        python = os.path.relpath(sys.executable)
    # A name that begins with a dash would be taken for a flag.
    texts = [f"./{w}" if isinstance(w, Path) and str(w).startswith("-") else str(w) for w in words]
    return shlex.join([python, os.path.relpath(PROJECT / program), *texts])


_shown_bars: list["ProgressBar"] = []  # the outermost first


class ProgressBar:
    """A bar in a terminal, with rate, time left and the latest results; nothing in a pipe.

    As a listener of `evaluate` it counts steps, or episodes if that is its unit.

    Attributes:
        number: how much is done.
        results: the text shown for the latest result of each name.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        initial: int = 0,
        desc: str | None = None,
        delay: float = 0,
        leave: bool = True,
    ) -> None:
        """Make a bar that counts to `total`.

        Args:
            unit: what is counted, such as "steps".
            initial: where the count starts.
            desc: text in front of the bar.
            delay: seconds before the bar appears.
            leave: whether the bar stays on the screen at the end.
        """
        self.total, self.unit, self.number, self.desc = total, unit, initial, desc or ""
        self.results: dict[str, str] = {}
        self._leave = leave
        self._progress: Progress | None = None
        self._next_drawing = time.monotonic() + delay if sys.stdout.isatty() else math.inf
        self.reach(initial)

    def reach(self, number: int, name: str | None = None, result: float = 0) -> None:
        """Show that `number` of the total is done, and `result` as the latest one of a name."""
        self.number = number
        if name:
            self.results[name] = f"{name} {result:.4g}"
        now = time.monotonic()
        if now >= self._next_drawing:  # seldom: a drawing takes a millisecond
            self._next_drawing = now + BAR_SECONDS
            self._draw()

    def reset(self) -> None:
        """Nothing: an episode that begins is not counted yet."""

    def step(self, action: int, reward: float, ended: bool) -> None:
        """Count a step, or the end of an episode; an evaluation may take more than its total."""
        if ended or self.unit != "episodes":
            self.reach(min(self.number + 1, self.total))

    def print_above(self, line: str) -> None:
        """Print a line above the bar, left to the terminal to wrap: it may be copied from there."""
        if self._progress:
            console = self._progress.console
            console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Draw the bar for the last time, or remove it."""
        if self._progress:
            self._draw()
            self._progress.stop()
            _shown_bars.remove(self)
        self._progress, self._next_drawing = None, math.inf

    def _draw(self) -> None:
        if not self._progress:
            self._progress = self._start()
        (task,) = self._progress.tasks
        self._progress.update(task.id, completed=self.number)
        self._progress.update(task.id, text=self._text(task), refresh=True)

    def _start(self) -> "Progress":
        from rich.progress import BarColumn, Progress, TextColumn

        outer = _shown_bars[0]._progress if _shown_bars else None
        progress = Progress(
            *([TextColumn("{task.description}")] if self.desc else []),
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.fields[text]}", markup=False),
            console=outer.console if outer else make_console(),
            auto_refresh=False,  # by a thread, which training would have to wait for
            transient=not self._leave,
            redirect_stderr=False,  # it may be a file
        )
        progress.add_task(self.desc, total=self.total, completed=self.number, text="")
        progress.start()
        _shown_bars.append(self)
        return progress

    def _text(self, task: "Task") -> str:
        text = f"{_short(self.number)}/{_short(self.total)}"
        if task.speed:
            text += f" {_short(task.speed)} {self.unit}/s"
        if task.time_remaining is not None:
            minutes, seconds = divmod(round(task.time_remaining), 60)
            text += f" {minutes}:{seconds:02} left"
        return " ".join([text, *self.results.values()])

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _short(number: float) -> str:
    """A number in at most five characters, such as 2, 4.35, 12.3k or 100k."""
    if number < 999.5:
        return f"{number:.3g}"
    return f"{number / 1e3:.3g}k" if number < 999.5e3 else f"{number / 1e6:.3g}M"


class StopSignal:
    """Ctrl-C, SIGTERM and a closed terminal: the first sets `number`, and the step is finished.

    Inside the `with`, a second Ctrl-C or SIGTERM ends the process at once; after it, signals do
    what they did before. Outside the main thread, where Python can't receive them, it never stops.

    Attributes:
        number: the signal's, 0 before one arrives.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}  # handlers

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        numbers = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup and signal.getsignal(hangup) != signal.SIG_IGN:  # as `nohup` wants it
            numbers.append(hangup)
        for number in numbers:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # None: it wasn't Python that set it
                signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # The shell and the system may both report one closed terminal.
        if self.number and number in (signal.SIGINT, signal.SIGTERM):
            os._exit(128 + number)
        self.number = self.number or number

    @property
    def exit_status(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, as a shell reports them; 0 without either."""
        return 128 + self.number if self.number else 0
