"""Files that are written whole or not at all, some of them with a checksum."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import reason
from harness.terminal import log

SEAL = b"\nsha256 "  # and 64 digits: after the content, where HDF5 and zip readers don't look
SEAL_LENGTH = len(SEAL) + 64 + 1


def write_file(path: Path | str, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all: beside its name, flushed to disk, then renamed.

    Args:
        path: Path of the file, replaced if it exists.
        write: function that is given a temporary path of the same suffix and writes there.

    Raises:
        OSError: if the file can't be written; nothing of it is left then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself must reach the disk too, where that can be asked
        with contextlib.suppress(OSError):
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a dict as JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_sealed(path: Path, content: bytes | memoryview) -> None:
    """Write bytes with their checksum after them, whole or not at all."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(content)
            file.write(seal(content))

    write_file(path, write)


def seal(content: bytes | memoryview) -> bytes:
    """The bytes that `write_sealed` appends to `content`: its SHA-256."""
    return SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def unseal(data: bytes) -> bytes | None:
    """The content of sealed `data`, or None if it isn't sealed; ValueError if it is damaged."""
    content, end = data[:-SEAL_LENGTH], data[-SEAL_LENGTH:]
    if not end.startswith(SEAL):
        return None
    if end != seal(content):
        raise ValueError("the file is damaged: its checksum doesn't match")
    return content


def attempt(save: Callable[..., Any], path: Path, *arguments: Any) -> bool:
    """Call `save(path, *arguments)`; return whether it worked, and warn if it didn't.

    A full disk or a folder that is gone must not end a training: the next snapshot tries again.
    """
    try:
        save(path, *arguments)
        return True
    except (OSError, MemoryError) as error:
        log(f"warning: can't write {path}: {reason(error)}")
        return False
