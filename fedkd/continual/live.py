"""A live stream: records that a device goes on writing, each taken into one block, exactly once.

A record's block is fixed by its time or a hash of its content, never by a count, and by nothing about other records.
The index holds the records themselves, so that a block can be learned again to the same bytes after a crash, whatever
has become of the files.
"""

from __future__ import annotations

import hashlib
import io
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.config import Live
from fedkd.data import sources
from fedkd.data.proxy import ProxySet
from fedkd.data.sources import Examples, as_float
from fedkd.errors import DataError
from fedkd.tensors import digest

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS sources (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS records (sha256 TEXT PRIMARY KEY, source TEXT NOT NULL, block TEXT NOT NULL, late INTEGER
    NOT NULL, x BLOB NOT NULL, y INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS sealed (block TEXT PRIMARY KEY) STRICT;
"""
SCHEMA = "1"


@dataclass(frozen=True)
class Record:
    """One example x [*shape] with its label, and its time in seconds where it has one."""

    x: NDArray[Any]
    y: int
    time: float | None

    @property
    def identity(self) -> str:
        """SHA-256 of all of it: the same record under another name is the same record."""
        mark = hashlib.sha256(f"{self.x.dtype.str} {self.x.shape} {self.y} {self.time!r}\n".encode())
        mark.update(np.ascontiguousarray(self.x).tobytes())
        return mark.hexdigest()


@dataclass(frozen=True)
class Taken:
    """What one look at the source has found: records that are new, that came after their block was sealed, that were
    there already; and sources (files or rows) that cannot be used."""

    new: int = 0
    late: int = 0
    known: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Block:
    """A block of the stream: its name, how many records it has, and whether it is closed to further ones."""

    name: str
    records: int
    sealed: bool


class LiveStream:
    """The index of one live stream; one process at a time writes to it."""

    def __init__(self, index: Path, live: Live, base: Path, proxy: ProxySet, console: Callable[[str], None]) -> None:
        """Open or create. Shape and list of labels are the proxy set's: fixed and public.

        Raises DataError for an index whose records were put into blocks by another rule.
        """
        self._live, self._source, self._console = live, base / live.source, console
        self._shape, self._classes = proxy.shape, proxy.classes
        index.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(index, isolation_level=None, timeout=30)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            self._db.execute(f"PRAGMA {pragma}")
        for statement in TABLES.strip().split(";\n"):
            self._db.execute(statement)
        self._check_rule(index)

    def _check_rule(self, index: Path) -> None:
        """The rule that puts records into blocks never changes: a record would be in two."""
        rule = f"{SCHEMA} time {self._live.period}" if self._live.by == "time" else f"{SCHEMA} hash {self._live.blocks}"
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('rule', ?)", (rule,))
        (found,) = self._db.execute("SELECT value FROM meta WHERE key = 'rule'").fetchone()
        if found != rule:
            self._db.close()
            raise DataError(
                f"the index puts records into blocks by {found!r}, the configuration by {rule!r}",
                where=str(index),
                fix="keep the rule, or begin a stream of its own",
            )

    def close(self) -> None:
        """Close the index."""
        self._db.close()

    # -- taking records in -------------------------------------------------------------------------------------------

    def ingest(self) -> Taken:
        """Take every record that is not known yet into its block. Raises DataError for a source that is not there.

        One transaction a source: after a crash it has been taken whole, or will be. What cannot be read may be half
        written, and is looked at again the next time.
        """
        total = Taken()
        for source in self._sources():
            found = self._take(source)
            total = Taken(*(a + b for a, b in zip(_counts(total), _counts(found), strict=True)))
        return total

    def _sources(self) -> Iterator[_Source]:
        """Every file, or every row."""
        if self._source.is_dir():
            for path in sorted(self._source.glob("*.npz")):
                content = path.read_bytes()
                yield _Source(path.name, digest(content), partial(_file, content))
        elif self._source.is_file():
            yield from self._rows()
        else:
            raise DataError("there is no folder and no SQLite file", where=str(self._source), fix="check 'source'")

    def _rows(self) -> Iterator[_Source]:
        query = f"SELECT id, time, x, y FROM {self._live.table}"  # the configuration admits a plain name only
        try:
            with closing(sqlite3.connect(f"{self._source.resolve().as_uri()}?mode=ro", uri=True)) as device:
                for id, *values in device.execute(query):
                    mark = digest(repr(values).encode())
                    yield _Source(f"{self._live.table} {id!r}", mark, partial(_row, *values))
        except sqlite3.DatabaseError as error:
            raise DataError(f"the records cannot be read: {error}", where=str(self._source)) from None

    def _take(self, source: _Source) -> Taken:
        before = self._db.execute("SELECT sha256 FROM sources WHERE name = ?", (source.name,)).fetchone()
        if before == (source.sha256,):
            return Taken()
        if before is not None:
            self._console(f"{source.name} was changed after it was taken: what it holds now is ignored")
            return Taken(refused=1)
        try:
            records = list(self._records(source))
        except DataError as error:
            self._console(str(error.at(source.name)))
            return Taken(refused=1)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            counts = [self._insert(source.name, record) for record in records]
            self._db.execute("INSERT INTO sources VALUES (?, ?)", (source.name, source.sha256))
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return Taken(counts.count("new"), counts.count("late"), counts.count("known"))

    def _insert(self, name: str, record: Record) -> str:
        block = self.block_of(record)
        late = self._db.execute("SELECT 1 FROM sealed WHERE block = ?", (block,)).fetchone() is not None
        buffer = io.BytesIO()
        np.save(buffer, record.x, allow_pickle=False)
        values = (record.identity, name, block, late, buffer.getvalue(), record.y)
        added = self._db.execute("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?, ?)", values).rowcount
        return "known" if not added else "late" if late else "new"

    def block_of(self, record: Record) -> str:
        """The name of a record's block. Raises DataError for a record without a time, where blocks are times."""
        if self._live.by == "hash":
            return f"hash-{int(record.identity[:16], 16) % self._live.blocks}"
        if record.time is None:
            raise DataError("the record has no time", fix="give it one, or put records into blocks by: hash")
        return f"time-{int(record.time // self._live.period)}"

    def _records(self, source: _Source) -> Iterator[Record]:
        arrays = source.read()
        x, y, time = (arrays.get(key) for key in ("x", "y", "time"))
        if x is None or y is None or x.ndim < 1 or y.shape != x.shape[:1]:
            raise DataError("records need x [n, ...] and y [n]")
        if time is None and self._live.by == "time":
            raise DataError("the records have no times", fix="write time [n], in seconds")
        if time is not None and (time.shape != y.shape or time.dtype.kind not in "fiu" or not np.isfinite(time).all()):
            raise DataError("time must be numbers [n]")
        x = x if x.dtype == np.uint8 else x.astype(np.float32)
        sources.check(Examples(x, y, self._classes), "its records", self._shape, self._classes)
        for index in range(len(y)):
            yield Record(x[index], int(y[index]), None if time is None else float(time[index]))

    # -- giving blocks out -------------------------------------------------------------------------------------------

    def seal(self, block: str) -> None:
        """Close a block: records that come for it later are kept apart and never learned. Before a block is charged
        for, so that it is the same whenever it is entered again."""
        self._db.execute("INSERT OR IGNORE INTO sealed VALUES (?)", (block,))

    def blocks(self) -> list[Block]:
        """Every block that has records or is sealed, times in their order."""
        query = """SELECT block, SUM(n), MAX(s) FROM (SELECT block, late = 0 AS n, 0 AS s FROM records
            UNION ALL SELECT block, 0, 1 FROM sealed) GROUP BY block"""
        found = [Block(name, count, bool(sealed)) for name, count, sealed in self._db.execute(query)]
        return sorted(found, key=lambda block: int(block.name.partition("-")[2]))

    def examples(self, block: str) -> Examples:
        """The records of a block, in an order that does not depend on when they came."""
        query = "SELECT x, y FROM records WHERE block = ? AND late = 0 ORDER BY sha256"
        rows = [(np.load(io.BytesIO(x), allow_pickle=False), y) for x, y in self._db.execute(query, (block,))]
        x = np.zeros((0, *self._shape), np.float32)
        if rows:
            same = all(row.dtype == np.uint8 for row, _ in rows)  # else all of them in one scale
            x = np.stack([row if same else as_float(row) for row, _ in rows])
        return Examples(x, np.array([y for _, y in rows], np.int64), self._classes)


def _counts(taken: Taken) -> tuple[int, int, int, int]:
    return taken.new, taken.late, taken.known, taken.refused


@dataclass(frozen=True)
class _Source:
    """A file or a row: its name, the hash of its content, and what reads it."""

    name: str
    sha256: str
    read: Callable[[], Mapping[str, NDArray[Any]]]


def _file(content: bytes) -> Mapping[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {key: file[key] for key in ("x", "y", "time") if key in file}
    except (OSError, ValueError, EOFError, TypeError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"not an .npz file of plain arrays: {error}") from None


def _row(time: Any, x: Any, y: Any) -> Mapping[str, NDArray[Any]]:
    try:
        found = {"x": np.load(io.BytesIO(x), allow_pickle=False)[None], "y": np.array([y])}
    except (TypeError, ValueError, EOFError, OSError) as error:
        raise DataError(f"x is not the bytes of an .npy array: {error}") from None
    return found if time is None else {**found, "time": np.array([time])}
