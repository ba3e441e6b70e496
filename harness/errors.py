"""The errors that a user meets, each shown as one line."""

import contextlib
import math


class UsageError(Exception):
    """Something that the user can mend: exit status 2."""


class TrainingError(Exception):
    """Training can't go on: exit status 1."""


def reason(error):
    """Why something failed, in a few words: the system's own in lower case, where it has some."""
    if isinstance(error, MemoryError):
        return "out of memory"
    return (getattr(error, "strerror", None) or "").lower() or str(error) or type(error).__name__


@contextlib.contextmanager
def usage_error(what):
    """Report what the system refuses, and any ValueError, as a UsageError: `what`, and why."""
    try:
        yield
    except (OSError, MemoryError, ValueError) as error:
        raise UsageError(f"{what}: {reason(error)}") from None


def finite(array, step):
    """`array` itself if all its numbers are finite; else TrainingError with the likely cause."""
    if not math.isfinite(array.sum()):
        raise TrainingError(
            f"at step {step} the loss or the weights stopped being finite numbers: the values "
            "diverged; try a lower --learning-rate, or a --gamma further below 1"
        )
    return array
