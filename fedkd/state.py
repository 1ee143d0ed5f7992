"""Files that survive a crash: written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fedkd.errors import DataError
from fedkd.tensors import Arrays, unpack


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace ``path`` by ``data``; after a crash the file is the old one or the new one, whole.

    ``mode`` are the permissions of the new file, less the process's umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk half a file is in the way of everything else
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_packed(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read a file written by pack. Raises DataError with the path."""
    try:
        return unpack(path.read_bytes())
    except FileNotFoundError:
        raise DataError("the file does not exist", where=str(path), fix="check the path") from None
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path)) from None
    except DataError as error:
        raise DataError(error.what, where=str(path), fix="the file is damaged, or of another kind") from None
