"""Lines and a progress bar on the screen, and the signals that come from it."""

import os
import shlex
import shutil
import signal
import sys

from tqdm import tqdm


def log(line):
    """Print a line at once, above a progress bar if there is one; nobody has to read it."""
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough: the rest goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        pass  # a full disk, or a terminal that is gone; the next line tries again


def command(program, flag, path):
    """The command that runs `program`, such as run.py, from where the user stands, with a flag.

    Args:
        path: Path that the flag takes.
    """
    python, found = "python", shutil.which("python") or ""
    if os.path.dirname(found) != os.path.dirname(sys.executable):  # it would be another one
        python = os.path.relpath(sys.executable)
    if os.path.basename(sys.argv[0]) == program:
        program = sys.argv[0]
    # A name that begins with a dash would be taken for a flag.
    path = f"./{path}" if str(path).startswith("-") else str(path)
    return shlex.join([python, program, flag, path])


class ProgressBar(tqdm):
    """A bar in a terminal, with rate, time left and the latest results; nothing in a pipe."""

    def __init__(self, total, unit, **options):
        # tqdm's own format leaves no room for the results in a terminal of 80 columns.
        shape = "{desc}{bar}| {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left{postfix}"
        options |= {"disable": None, "dynamic_ncols": True, "bar_format": shape}
        super().__init__(total=total, unit=f" {unit}", unit_scale=total > 999, **options)
        if not self.disable:
            # The terminal's ^C must fit on the line, or the bar would stay there as another one.
            size = self.dynamic_ncols
            self.dynamic_ncols = lambda file: ((size(file)[0] or 80) - 3, size(file)[1])
        self.results = {}

    def close(self):
        """Leave the line to what comes next; tqdm forgets that a printed line drew the bar."""
        if not (self.disable or self.leave):
            self.clear()
        super().close()

    def reach(self, number, name=None, result=None):
        """Show that `number` of the total is done, and a named result until its next."""
        if name:
            self.results[name] = f"{name} {result:.0f}"
        self.set_postfix_str(", ".join(self.results.values()), refresh=False)
        self.update(number - self.n)


class StopSignal:
    """Ctrl-C, SIGTERM and a closed terminal: the first sets `number`, and the step is finished.

    A second Ctrl-C or SIGTERM ends the process at once.
    """

    def __init__(self):
        self.number = 0
        signal.signal(signal.SIGINT, self._receive)
        signal.signal(signal.SIGTERM, self._receive)
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup and signal.getsignal(hangup) != signal.SIG_IGN:  # as `nohup` wants it
            signal.signal(hangup, self._receive)

    def _receive(self, number, _frame):
        # The shell and the system may both report one closed terminal.
        if self.number and number in (signal.SIGINT, signal.SIGTERM):
            os._exit(128 + number)
        self.number = self.number or number

    @property
    def exit_status(self):
        """130 after Ctrl-C, 143 after SIGTERM, as a shell reports them; 0 without either."""
        return 128 + self.number if self.number else 0
