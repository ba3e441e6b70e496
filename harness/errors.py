"""The errors that a user meets, each shown as one line."""

import math


class UsageError(Exception):
    """Something that the user can mend: exit status 2."""


class TrainingError(Exception):
    """Training can't go on: exit status 1."""


def reason(error):
    """Why the system refused something, in a few words, from an OSError or a MemoryError."""
    if isinstance(error, MemoryError):
        return "out of memory"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def finite(array, step):
    """`array` itself if all its numbers are finite; else TrainingError with the likely cause."""
    if not math.isfinite(array.sum()):
        raise TrainingError(
            f"at step {step} the loss or the weights stopped being finite numbers: the values "
            "diverged; try a lower --learning-rate, or a --gamma further below 1"
        )
    return array
