"""The lock of a folder: one process holds it at a time, until it lets go or ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedkd.errors import ConfigError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder; the others wait."""
    with _open(folder) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hold(folder: Path, taken: str) -> IO[str]:
    """Hold a folder until the file that is returned is closed. Raises ConfigError, which says ``taken``, at once if
    another process holds it."""
    file = _open(folder)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(taken, where=str(folder), fix="stop it first") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def holder(folder: Path) -> int | None:
    """The number of the process that holds the folder; None if there is none."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        text = (folder / "lock").read_text().strip()
        return int(text) if text else None
    return None


def _open(folder: Path) -> IO[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "lock").open("a+")
