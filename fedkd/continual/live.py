"""A live stream: records that a device goes on writing, each taken into one block, exactly once.

A record's block is fixed by its time or a hash of its content, never by a count, and by nothing about other records; so
is whether it is held out. The index holds the records themselves, so that a block can be learned again to the same
bytes after a crash, whatever has become of the files. What can never be learned again is forgotten.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.config import Live
from fedkd.continual import inbox
from fedkd.continual.inbox import Source, State
from fedkd.data import sources
from fedkd.data.proxy import ProxySet
from fedkd.data.sources import Examples, as_float
from fedkd.errors import DataError
from fedkd.tensors import digest

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS sources (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL UNIQUE,
    block INTEGER NOT NULL, held_out INTEGER NOT NULL, x BLOB NOT NULL, y INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS by_block ON records (block);
CREATE TABLE IF NOT EXISTS sealed (block INTEGER PRIMARY KEY) STRICT;
"""
SCHEMA = "1"
FARTHEST = 2**53
"""Blocks before and after the first: as far as their numbers are exact."""
HELD_OUT = 100
"""Held-out records that are kept of each label once their block is forgotten: the newest."""
SURPLUS = """SELECT sha256 FROM (SELECT sha256, block, ROW_NUMBER() OVER (PARTITION BY y ORDER BY block DESC, sha256)
    AS place FROM records WHERE held_out = 1) WHERE block < ? AND place > ?"""


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
    """A block of the stream: its name, how many records it has to learn, and whether it is closed to further ones."""

    name: str
    records: int
    sealed: bool


class LiveStream:
    """The index of one live stream; one thread at a time, of one process, uses it."""

    def __init__(self, index: Path, live: Live, base: Path, proxy: ProxySet, console: Callable[[str], None]) -> None:
        """Open or create. Shape and list of labels are the proxy set's: fixed and public.

        Raises DataError for an index whose records were put into blocks by another rule.
        """
        self._live, self._source, self._console = live, base / live.source, console
        self._shape, self._classes = proxy.shape, proxy.classes
        index.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(index, isolation_level=None, timeout=30, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            self._db.execute(f"PRAGMA {pragma}")
        for statement in TABLES.strip().split(";\n"):
            self._db.execute(statement)
        self._check_rule(index)

    def _check_rule(self, index: Path) -> None:
        """The rule that puts records into blocks never changes: a record would be in two."""
        by = f"time {self._live.period}" if self._live.by == "time" else f"hash {self._live.blocks}"
        rule = f"{SCHEMA} {by}, {self._live.held_out:g} held out"
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
        total, seen = Taken(), set[str]()
        for source in inbox.sources(self._source, self._live.table):
            seen.add(source.name)
            found = self._take(source)
            total = Taken(*(a + b for a, b in zip(_counts(total), _counts(found), strict=True)))
        for (name,) in self._db.execute("SELECT name FROM sources").fetchall():
            if name not in seen:  # gone; were it to come back, its records would be known, or too late
                self._db.execute("DELETE FROM sources WHERE name = ?", (name,))
        return total

    def _take(self, source: Source) -> Taken:
        was = source.state()
        try:
            content = source.content()
            mark = digest(content)
            before = self._db.execute("SELECT sha256 FROM sources WHERE name = ?", (source.name,)).fetchone()
            if before is None:
                records = [(self._number(record), record) for record in self._records(source.read(content))]
        except sqlite3.Error:
            raise
        except Exception as error:  # a record may be anything, and must not decide whether the client answers
            what = error if isinstance(error, DataError) else DataError(f"it cannot be read: {error!r}")
            self._console(str(what.at(source.name)))
            return Taken(refused=1)
        if before == (mark,):
            self._done_with(source, was)
            return Taken()
        if before is not None:
            self._console(f"{source.name} was changed after it was taken: what it holds now is ignored")
            return Taken(refused=1)
        with self._transaction():
            counts = [self._insert(block, record) for block, record in records]
            self._db.execute("INSERT OR IGNORE INTO sources VALUES (?, ?)", (source.name, mark))
        self._done_with(source, was)
        return Taken(counts.count("new"), counts.count("late"), counts.count("known"))

    def _done_with(self, source: Source, was: State) -> None:
        """Remove the file of a source whose records are in the index for good, but not another one that has taken its
        name since it was read. The name is free again: first, since after a crash its records are only known."""
        if not self._live.delete or source.path is None:
            return
        self._db.execute("DELETE FROM sources WHERE name = ?", (source.name,))
        try:
            if source.state() == was:
                source.path.unlink(missing_ok=True)
        except OSError as error:
            self._console(f"{source.name} has been taken and cannot be removed: {error.strerror}")

    def _insert(self, block: int, record: Record) -> str:
        if self._db.execute("SELECT 1 FROM records WHERE sha256 = ?", (record.identity,)).fetchone():
            return "known"
        if self._sealed(block):
            return "late"
        buffer = io.BytesIO()
        np.save(buffer, record.x, allow_pickle=False)
        held_out = int(record.identity[16:32], 16) < self._live.held_out * 2**64
        values = (record.identity, block, held_out, buffer.getvalue(), record.y)
        self._db.execute("INSERT INTO records (sha256, block, held_out, x, y) VALUES (?, ?, ?, ?, ?)", values)
        return "new"

    def block_of(self, record: Record) -> str:
        """The name of a record's block. Raises DataError for a record without a time, where blocks are times."""
        return self._name(self._number(record))

    def _number(self, record: Record) -> int:
        if self._live.by == "hash":
            return int(record.identity[:16], 16) % self._live.blocks
        if record.time is None:
            raise DataError("the record has no time", fix="give it one, or put records into blocks by: hash")
        number = record.time // self._live.period
        if not abs(number) < FARTHEST:
            raise DataError("the record's time is out of all bounds", fix="write it in seconds")
        return int(number)

    def _name(self, block: int) -> str:
        return f"{self._live.by}-{block}"

    def _records(self, arrays: Mapping[str, NDArray[Any]]) -> Iterator[Record]:
        x, y, time = (arrays.get(key) for key in ("x", "y", "time"))
        if x is None or y is None or x.ndim < 1 or y.shape != x.shape[:1]:
            raise DataError("records need x [n, ...] and y [n]")
        if time is None and self._live.by == "time":
            raise DataError("the records have no times", fix="write time [n], in seconds")
        if time is not None and (time.shape != y.shape or time.dtype.kind not in "fiu" or not np.isfinite(time).all()):
            raise DataError("time must be numbers [n]")
        if x.dtype.kind not in "biuf":
            raise DataError(f"x must be numbers, not {x.dtype}")
        x = x if x.dtype == np.uint8 else x.astype(np.float32)
        sources.check(Examples(x, y, self._classes), "its records", self._shape, self._classes)
        for index in range(len(y)):
            yield Record(x[index], int(y[index]), None if time is None else float(time[index]))

    # -- giving blocks out -------------------------------------------------------------------------------------------

    def current(self, now: float) -> str:
        """The block that a client learns at a time, in seconds: the newest one that is over, whatever is in it."""
        return self._name(int((now - self._live.delay) // self._live.period) - 1)

    def enter(self, run: str, round: int, block: str, *, again: bool) -> str:
        """The block of a round: ``block``, or where the round has been charged, and is entered ``again``, the one that
        it was charged to. It is closed: a reservation that is entered again must meet the data that it met before."""
        before = self._meta("entered")
        if again and before is not None and json.loads(before)[:2] == [run, round]:
            block = str(json.loads(before)[2])
        self.seal(block)
        self._put("entered", json.dumps([run, round, block]))
        return block

    def seal(self, block: str) -> None:
        """Close a block: records that come for it later are never learned. Before a block is charged for, so that it is
        the same whenever it is entered again. Raises DataError for what is no block's name."""
        if not re.fullmatch(rf"{self._live.by}--?[0-9]{{1,15}}", block):
            raise DataError(f"there is no block {block!r}", fix=f"blocks are named {self._live.by}-0, and so on")
        self._db.execute("INSERT OR IGNORE INTO sealed VALUES (?)", (_number(block),))

    def forget(self, block: str, *, entered: bool = False) -> None:
        """Close every block of a time before ``block``, and let go of its records: but for the one that was entered
        last, and for the newest held-out records of each label.

        One block at a time, unless ``block`` has been entered: one look at a clock that is wrong does not end learning
        until its date.
        """
        first, before = _number(block), self._meta("first")
        if before is not None:  # a clock may be set back
            first = max(int(before), first if entered else min(first, int(before) + 1))
        self._close_before(first)

    def behind(self, block: str) -> bool:
        """Whether ``block``, which the clock says is the one to learn, is closed already, since it was later before."""
        return _number(block) < int(self._meta("first") or _number(block))

    def _close_before(self, first: int) -> None:
        entered = self._meta("entered")
        kept = first if entered is None else _number(json.loads(entered)[2])
        with self._transaction():
            self._put("first", str(first))
            self._db.execute("DELETE FROM sealed WHERE block < ?", (first,))
            self._db.execute("DELETE FROM records WHERE block < ? AND block <> ? AND held_out = 0", (first, kept))
            self._db.execute(f"DELETE FROM records WHERE sha256 IN ({SURPLUS})", (first, HELD_OUT))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _sealed(self, block: int) -> bool:
        first = self._meta("first")
        if first is not None and block < int(first):
            return True
        return self._db.execute("SELECT 1 FROM sealed WHERE block = ?", (block,)).fetchone() is not None

    def blocks(self) -> list[Block]:
        """Every block that has records or is sealed, and is not forgotten, in order."""
        query = """SELECT block, SUM(n), MAX(s) FROM (SELECT block, held_out = 0 AS n, 0 AS s FROM records
            UNION ALL SELECT block, 0, 1 FROM sealed) GROUP BY block ORDER BY block"""
        found = self._db.execute(query).fetchall()
        return [
            Block(self._name(number), count, bool(sealed) or self._sealed(number)) for number, count, sealed in found
        ]

    def examples(self, block: str) -> Examples:
        """The records of a block that are there to learn, in an order that does not depend on when they came."""
        return self._examples("block = ? AND held_out = 0", _number(block))

    def held_out(self, after: int = 0) -> Examples:
        """The records that nothing learns, of those that came after the first ``after`` of all."""
        return self._examples("held_out = 1 AND number > ?", after)

    def taken(self) -> int:
        """How many records there have ever been."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
        return 0 if row is None else int(row[0])

    def _examples(self, which: str, value: int) -> Examples:
        query = f"SELECT x, y FROM records WHERE {which} ORDER BY sha256"
        rows = [(np.load(io.BytesIO(x), allow_pickle=False), y) for x, y in self._db.execute(query, (value,))]
        x = np.zeros((0, *self._shape), np.float32)
        if rows:
            same = all(row.dtype == np.uint8 for row, _ in rows)  # else all of them in one scale
            x = np.stack([row if same else as_float(row) for row, _ in rows])
        return Examples(x, np.array([y for _, y in rows], np.int64), self._classes)

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _put(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _number(block: str) -> int:
    return int(block.partition("-")[2])


def _counts(taken: Taken) -> tuple[int, int, int, int]:
    return taken.new, taken.late, taken.known, taken.refused
