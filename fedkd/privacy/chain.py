"""An append-only, hash-chained, signed table of entries in SQLite, with a branch of its own for every server.

The chain's hash covers all entries. A branch's hash covers the entries that concern one server: its signed head can be
given to that server without telling it how busy the client is elsewhere. The newest head is signed twice over: in the
database, so that nobody without the key can edit entries and mend the chain, and in a file beside it, so that an older
database does not pass for the newest.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedkd.privacy.identity import Head, HeadFile, Identity, Position
from fedkd.tensors import canonical, digest

SCHEMA = 2
GENESIS = "0" * 64
START = Position(0, 0, GENESIS)
STATEMENTS = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY, body TEXT NOT NULL, prev TEXT NOT NULL,
    charges INTEGER NOT NULL, hash TEXT NOT NULL UNIQUE,
    counter INTEGER NOT NULL, branch_charges INTEGER NOT NULL, branch TEXT NOT NULL,
    kind TEXT GENERATED ALWAYS AS (json_extract(body, '$.kind')) VIRTUAL,
    server TEXT GENERATED ALWAYS AS (json_extract(body, '$.server')) VIRTUAL,
    run TEXT GENERATED ALWAYS AS (json_extract(body, '$.run')) VIRTUAL,
    round INTEGER GENERATED ALWAYS AS (json_extract(body, '$.round')) VIRTUAL
);
CREATE INDEX entries_by_round ON entries (kind, run, round);
CREATE INDEX entries_by_branch ON entries (server, counter);
CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TRIGGER entries_keep BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
TABLES = tuple(STATEMENTS.strip().removesuffix(";").split(";\n"))
SIGNATURE = "signature of the head"
CONTRACT, RESERVE, COMMIT, RECOVER = "contract", "reserve", "commit", "recover"


class Chain:
    """The entries of one client's ledger. Reads need no identity; ``append`` does."""

    def __init__(self, db: sqlite3.Connection, path: Path, identity: Identity | None = None) -> None:
        self.db, self.path, self.identity = db, path, identity
        self._file = HeadFile(path.with_name("head"))

    @property
    def meta(self) -> dict[str, str]:
        """What was written when the ledger was made: schema, client, public key."""
        return dict(self.db.execute("SELECT key, value FROM meta").fetchall())

    def create(self, meta: Mapping[str, str]) -> None:
        """Make the tables unless they are there."""
        with self.locked():
            if not self.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                for statement in TABLES:
                    self.db.execute(statement)
                self.db.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One writer at a time, all or nothing; afterwards the newest head is also in its file."""
        with self.locked():
            before = self.head()
            yield
            changed = self.head() != before
        if changed:
            # a crash before this leaves an older head, which is on the chain too; the lock keeps writers apart
            with self.locked():
                self._file.write(self.signed("", self.head()))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other writer, all or nothing."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything that is read inside is of one moment, whoever is writing."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.execute("ROLLBACK")

    # -- heads -------------------------------------------------------------------------------------------------------

    def head(self) -> Position:
        """The newest entry of all."""
        row = self.db.execute("SELECT seq, charges, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return Position(*row) if row else START

    def branch(self, server: str) -> Position:
        """The newest entry that concerns a server."""
        query = "SELECT counter, branch_charges, branch FROM entries WHERE server = ? ORDER BY counter DESC LIMIT 1"
        row = self.db.execute(query, (server,)).fetchone()
        return Position(*row) if row else START

    def knows(self, server: str, seen: Position) -> bool:
        """Whether a position of a server's branch lies on this one, or in a gap that has been charged."""
        query = "SELECT counter, branch_charges, branch FROM entries WHERE server = ? AND counter = ?"
        rows = self.db.execute(query, (server, seen.counter)).fetchall()
        return seen in {Position(*row) for row in rows} or self._charged(server, seen)

    def _charged(self, server: str, seen: Position) -> bool:
        """Whether it is among the lost entries that a recovery has paid for."""
        return any(
            body["server"] == server and (seen == _adopted(body) or _between(body, seen))
            for body in self.bodies(RECOVER)
        )

    def signed(self, branch: str, position: Position) -> Head:
        """That position under the client's signature."""
        assert self.identity is not None
        return self.identity.sign(self.meta["client"], branch, position)

    def noted(self) -> Head | None:
        """The head in the file beside the ledger. Raises LedgerError for one that this client has not signed."""
        meta = self.meta
        return self._file.read(meta["key"], meta["client"])

    def has(self, noted: Position) -> bool:
        """Whether a position of the whole chain lies on it, or in a gap that has been charged."""
        row = self.db.execute("SELECT seq, charges, hash FROM entries WHERE seq = ?", (noted.counter,)).fetchone()
        return (row is not None and Position(*row) == noted) or self._charged("", noted)

    # -- entries -----------------------------------------------------------------------------------------------------

    def append(self, body: Mapping[str, Any]) -> str:
        """Add an entry, which names the server that it concerns, and sign the new head. Returns its hash."""
        text, old = canonical(body).decode(), self.head()
        new, branch = after(old, body, text), branch_after(self.branch(body["server"]), body, text)
        row = (new.counter, text, old.hash, new.charges, new.hash, branch.counter, branch.charges, branch.hash)
        self.db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.put({SIGNATURE: self.signed("", new).signature})
        return new.hash

    def body(self, kind: str, run: str, round: int | None = None) -> dict[str, Any] | None:
        """The entry of that kind for a run, or for one of its rounds."""
        query = "SELECT body FROM entries WHERE kind = ? AND run = ? AND round IS ?"
        row = self.db.execute(query, (kind, run, round)).fetchone()
        return json.loads(row[0]) if row else None

    def bodies(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """All entries of some kinds, oldest first."""
        query = f"SELECT body FROM entries WHERE kind IN ({_places(kinds)}) ORDER BY seq"
        for (text,) in self.db.execute(query, kinds).fetchall():
            yield json.loads(text)

    def newest(self, server: str, *kinds: str) -> dict[str, Any] | None:
        """The newest entry of some kinds that concerns a server."""
        query = (
            f"SELECT body FROM entries WHERE server = ? AND kind IN ({_places(kinds)}) ORDER BY counter DESC LIMIT 1"
        )
        row = self.db.execute(query, (server, *kinds)).fetchone()
        return json.loads(row[0]) if row else None

    def last_round(self, run: str) -> int:
        """The last round of a run that has been charged; 0 if there is none."""
        query = "SELECT COALESCE(MAX(round), 0) FROM entries WHERE kind = ? AND run = ?"
        return int(self.db.execute(query, (RESERVE, run)).fetchone()[0])

    def charged(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """The events of all charges, oldest first; equal ones once, with their number."""
        query = """SELECT json_extract(body, '$.events') AS events, COUNT(*) FROM entries
            WHERE kind IN ('reserve', 'recover') GROUP BY events ORDER BY MIN(seq)"""
        for text, count in self.db.execute(query).fetchall():
            yield json.loads(text), count

    # -- state, which is not in the chain ----------------------------------------------------------------------------

    def state(self, key: str) -> str | None:
        """A value stored with ``put``."""
        row = self.db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, state: Mapping[str, str | None]) -> None:
        """Store values; None takes one away. To be called in a transaction."""
        self.db.executemany("DELETE FROM state WHERE key = ?", [(key,) for key in state])
        rows = [(key, value) for key, value in state.items() if value is not None]
        self.db.executemany("INSERT INTO state VALUES (?, ?)", rows)


def _adopted(body: Mapping[str, Any]) -> Position:
    """Where a branch goes on after a rollback: behind what the server has seen."""
    return Position(body["counter"], body["charges"], body["branch"])


def _between(body: Mapping[str, Any], seen: Position) -> bool:
    """Any position before the end of a recovered gap, and after its beginning: it is known by the signature alone."""
    return bool(body["from"] < seen.charges <= body["charges"] and seen.counter < body["counter"])


def after(before: Position, body: Mapping[str, Any], text: str) -> Position:
    """The position in the whole chain that an entry makes."""
    recovered = body["charges"] - body["from"] if body["kind"] == RECOVER else 0
    charges = 1 if body["kind"] == RESERVE else recovered
    return Position(before.counter + 1, before.charges + charges, link(before.hash, text))


def branch_after(before: Position, body: Mapping[str, Any], text: str) -> Position:
    """The position in its server's branch that an entry makes."""
    if body["kind"] == RECOVER:
        before = _adopted(body)
        return Position(before.counter + 1, before.charges, link(before.hash, text))
    return after(before, body, text)


def link(prev: str, body: str) -> str:
    """The hash of an entry and of all before it."""
    return digest(f"{prev}\n{body}".encode())


def _places(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))
