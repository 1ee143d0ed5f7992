"""What a device has written for a live stream: files of a folder, or rows of a table, whatever is in them."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.errors import DataError
from fedkd.tensors import Arrays

State = tuple[int, int, int] | None


@dataclass(frozen=True)
class Source:
    """A file or a row: its name, what gives its content, what reads records out of that, and the path of a file."""

    name: str
    content: Callable[[], bytes]
    read: Callable[[bytes], Arrays]
    path: Path | None = None

    def state(self) -> State:
        """Which file has the name now, and how it is; None for a row, or where there is none."""
        try:
            found = None if self.path is None else self.path.stat()
        except OSError:
            return None
        return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)


def sources(place: Path, table: str) -> Iterator[Source]:
    """Every file of a folder, or every row of an SQLite file's table. Raises DataError where there is neither."""
    if place.is_dir():
        for path in sorted(place.glob("*.npz")):
            if not path.name.startswith(".") and not path.name.endswith(".tmp.npz"):  # not whole yet
                yield Source(path.name, path.read_bytes, _file, path)
    elif place.is_file():
        yield from _rows(place, table)
    else:
        raise DataError("there is no folder and no SQLite file", where=str(place), fix="check 'source'")


def _rows(place: Path, table: str) -> Iterator[Source]:
    query = f"SELECT id, time, x, y FROM {table}"  # the configuration admits a plain name only
    try:
        with closing(sqlite3.connect(f"{place.resolve().as_uri()}?mode=ro", uri=True)) as device:
            device.text_factory = partial(str, encoding="utf-8", errors="replace")
            for id, *values in device.execute(query):
                content = repr(values).encode(errors="replace")
                yield Source(f"{table} {id!r}", partial(bytes, content), partial(_row, values))
    except sqlite3.DatabaseError as error:
        raise DataError(f"the records cannot be read: {error}", where=str(place)) from None


def _file(content: bytes) -> Arrays:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {key: file[key] for key in ("x", "y", "time") if key in file}
    except Exception as error:  # of a file that is none: whatever zip, zlib and the parser of headers find to say
        raise DataError(f"not an .npz file of plain arrays: {error}") from None


def _row(values: Sequence[Any], content: bytes) -> Arrays:
    """Of the values themselves: ``content`` is what they are known by."""
    time, x, y = values
    try:
        found = {"x": np.load(io.BytesIO(x), allow_pickle=False)[None], "y": np.array([y])}
    except Exception as error:
        raise DataError(f"x is not the bytes of an .npy array: {error}") from None
    return found if time is None else {**found, "time": np.array([time])}
