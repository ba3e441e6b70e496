"""Lines and a progress bar on the screen, and the signals that come from it."""

import atexit
import contextlib
import io
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeGuard

from tqdm import tqdm

from harness import PROJECT
from harness.errors import reason


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


def log(line: str, *shorter: str) -> None:
    """Print a line at once, above a progress bar if there is one; nobody has to read it.

    Args:
        shorter: what to print instead in a terminal that is too narrow for `line`, in order: the
            first that fits, or the last.
    """
    columns = _columns()
    for other in shorter:
        if len(line) <= columns:
            break
        line = other
    with contextlib.suppress(OSError):  # of a stream that isn't a Screen
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def _columns() -> float:
    """The width of the terminal that lines go to; infinite for a file, a pipe or a notebook."""
    try:
        if sys.stdout.isatty():
            # Some terminals say 0 when they don't know.
            return os.get_terminal_size(sys.stdout.fileno()).columns or float("inf")
    except (OSError, ValueError):
        pass
    return float("inf")


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


Size = Callable[[Any], tuple[int | None, int | None]]  # columns and rows of a stream's terminal


def _leave_room_for_interrupt(size: Size) -> Size:
    """A size that is three columns narrower.

    The terminal's ^C must fit on the bar's line, or the bar would stay there as another one.
    """

    def narrower(stream: Any) -> tuple[int | None, int | None]:
        columns, rows = size(stream)
        return (columns or 80) - 3, rows

    return narrower


class ProgressBar(tqdm):
    """A bar in a terminal, with rate, time left and the latest results; nothing in a pipe.

    Attributes:
        results: dict of the text shown for the latest result of each name.
    """

    dynamic_ncols: Size  # tqdm asks it before it draws

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
        super().__init__(
            total=total,
            unit=f" {unit}",
            unit_scale=total > 999,
            initial=initial,
            desc=desc,
            delay=delay,
            leave=leave,
            disable=None,  # where there is no terminal
            dynamic_ncols=True,
            # tqdm's own format leaves no room for the results in a terminal of 80 columns.
            bar_format="{desc}{bar}| {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left{postfix}",
        )
        self.results: dict[str, str] = {}
        if not self.disable:
            self.dynamic_ncols = _leave_room_for_interrupt(self.dynamic_ncols)

    def close(self) -> None:
        """Leave the line to what comes next; tqdm forgets that a printed line drew the bar."""
        if not (self.disable or self.leave):
            self.clear()
        super().close()

    def reach(self, number: int, name: str | None = None, result: float = 0) -> None:
        """Show that `number` of the total is done, and `result` as the latest one of a name."""
        if name:
            self.results[name] = f"{name} {result:.4g}"
        self.set_postfix_str(", ".join(self.results.values()), refresh=False)
        self.update(number - self.n)


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
