"""The errors that a user meets, each shown as one line."""

import contextlib
import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path


class UsageError(Exception):
    """Something that the user can mend: exit status 2."""


class TrainingError(Exception):
    """Training can't go on: exit status 1."""


class EnvironmentFault(Exception):  # noqa: N818, the field's word would be "environment error"
    """An environment doesn't do what gym's contract says: exit status 1.

    Attributes:
        env_id: what `--env` names.
        fault: what is wrong and what was expected.
    """

    def __init__(self, env_id: str, fault: str) -> None:
        super().__init__(env_id, fault)
        self.env_id, self.fault = env_id, fault

    def __str__(self) -> str:
        return f"the environment {self.env_id} is at fault: {self.fault}"


class EnvironmentCrash(EnvironmentFault):
    """An exception from inside the environment's own code, which is the `__cause__`.

    `fault` says where it was: "step", say.
    """

    def __str__(self) -> str:
        return f"the environment {self.env_id} failed in its own code, in {self.fault}:"


def report_crash(program: str, error: EnvironmentFault) -> None:
    """Print an environment's fault in one line; after a crash, its own traceback too.

    The traceback begins where the environment's code does: our frames are none of its owner's.
    """
    print(f"{program}: error: {error}", file=sys.stderr)
    cause = error.__cause__
    if cause is None:
        return
    ours, frames = str(Path(__file__).parent), cause.__traceback__
    while frames is not None and frames.tb_next is not None:
        name = frames.tb_frame.f_code.co_filename
        if not name.startswith((ours, "<frozen importlib", importlib.__path__[0])):
            break
        frames = frames.tb_next
    traceback.print_exception(type(cause), cause, frames)


def reason(error: BaseException) -> str:
    """Why something failed, in a few words: the system's own in lower case, where it has some."""
    if isinstance(error, MemoryError):
        return "out of memory"
    return (getattr(error, "strerror", None) or "").lower() or str(error) or type(error).__name__


@contextlib.contextmanager
def usage_error(what: str) -> Iterator[None]:
    """Report what the system refuses, and any ValueError, as a UsageError: `what`, and why."""
    try:
        yield
    except (OSError, MemoryError, ValueError) as error:
        raise UsageError(f"{what}: {reason(error)}") from None


def diverged(step: int) -> str:
    """What a TrainingError says of a loss or weights that stopped being finite numbers."""
    return (
        f"at step {step} the loss or the weights stopped being finite numbers: the values "
        "diverged; try a lower --learning-rate, a --gamma further below 1, or smaller rewards"
    )
