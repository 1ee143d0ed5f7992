"""An append-only, hash-chained, signed table of entries in SQLite, with a branch of its own for every server.

The chain's hash covers all entries. A branch's hash covers the entries that concern one server: its signed head can be
given to that server without telling it how busy the client is elsewhere. The newest head is signed twice over: in the
database, so that nobody without the key can edit entries and mend the chain, and in a file beside it, so that an older
database does not pass for the newest.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedkd.errors import LedgerError
from fedkd.privacy.identity import Head, Identity, Position, verifies
from fedkd.state import write_atomic
from fedkd.tensors import canonical, digest

GENESIS = "0" * 64
START = Position(0, GENESIS)
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY, body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL UNIQUE,
    counter INTEGER NOT NULL, branch TEXT NOT NULL,
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
SIGNATURE = "signature of the head"
RECOVER = "recover"
REPAIR = "stop answering with it; 'fedkd ledger recover' charges what may be missing"


class Chain:
    """The entries of one client's ledger. Reads need no identity; ``append`` does."""

    def __init__(self, db: sqlite3.Connection, path: Path, identity: Identity | None = None) -> None:
        self._db, self._path, self._identity = db, path, identity

    @property
    def meta(self) -> dict[str, str]:
        """What was written when the ledger was made: schema, client, public key."""
        return dict(self._db.execute("SELECT key, value FROM meta").fetchall())

    def create(self, meta: Mapping[str, str]) -> None:
        """Make the tables unless they are there."""
        with self._locked():
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                for statement in TABLES.strip().split(";\n"):
                    self._db.execute(statement)
                self._db.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One writer at a time, all or nothing; afterwards the newest head is also in its file."""
        with self._locked():
            before = self.head()
            yield
            changed = self.head() != before
        if changed:
            self._note_head()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # -- heads -------------------------------------------------------------------------------------------------------

    def head(self) -> Position:
        """The newest entry of all."""
        row = self._db.execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return Position(*row) if row else START

    def branch(self, server: str) -> Position:
        """The newest entry that concerns a server."""
        row = self._db.execute(
            "SELECT counter, branch FROM entries WHERE server = ? ORDER BY counter DESC LIMIT 1", (server,)
        ).fetchone()
        return Position(*row) if row else START

    def knows(self, server: str, seen: Position) -> bool:
        """Whether a position of a server's branch lies on this one, or in a gap that has been charged."""
        query = "SELECT branch FROM entries WHERE server = ? AND counter = ?"
        row = self._db.execute(query, (server, seen.counter)).fetchone()
        if row is not None:
            return bool(row[0] == seen.hash)
        return any(
            body["server"] == server and body["from"] < seen.counter <= body["counter"]
            and (seen.counter < body["counter"] or seen.hash == body["branch"])
            for body in self.bodies(RECOVER)
        )  # fmt: skip

    def signed(self, branch: str, position: Position) -> Head:
        """That position under the client's signature."""
        assert self._identity is not None
        return self._identity.sign(self.meta["client"], branch, position)

    # -- entries -----------------------------------------------------------------------------------------------------

    def append(self, body: Mapping[str, Any]) -> str:
        """Add an entry, which names the server that it concerns, and sign the new head. Returns its hash."""
        text, head = canonical(body).decode(), self.head()
        mark = _link(head.hash, text)
        before = _adopted(body) or self.branch(body["server"])
        row = (head.counter + 1, text, head.hash, mark, before.counter + 1, _link(before.hash, text))
        self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)
        signature = self.signed("", Position(head.counter + 1, mark)).signature
        self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (SIGNATURE, signature))
        return mark

    def body(self, kind: str, run: str, round: int | None = None) -> dict[str, Any] | None:
        """The entry of that kind for a run, or for one of its rounds."""
        query = "SELECT body FROM entries WHERE kind = ? AND run = ? AND round IS ?"
        row = self._db.execute(query, (kind, run, round)).fetchone()
        return json.loads(row[0]) if row else None

    def bodies(self, kind: str) -> Iterator[dict[str, Any]]:
        """All entries of a kind, oldest first."""
        for (text,) in self._db.execute("SELECT body FROM entries WHERE kind = ? ORDER BY seq", (kind,)).fetchall():
            yield json.loads(text)

    # -- verification ------------------------------------------------------------------------------------------------

    def verify(self) -> int:
        """Walk the chain and its branches and return its length. Raises LedgerError at the first entry that does not
        fit, for a head without the client's signature, and for a ledger that is older than its head file."""
        prev, count, branches = GENESIS, 0, dict[str, Position]()
        rows = self._db.execute("SELECT seq, body, prev, hash, counter, branch FROM entries ORDER BY seq")
        for seq, text, before, mark, counter, branch in rows:
            count += 1
            if (seq, before, mark) != (count, prev, _link(prev, text)):
                raise self._altered(f"its hash chain breaks at entry {count}")
            body = json.loads(text)
            old = _adopted(body) or branches.get(body["server"], START)
            if (counter, branch) != (old.counter + 1, _link(old.hash, text)):
                raise self._altered(f"the branch of server {body['server']} breaks at entry {count}")
            prev, branches[body["server"]] = mark, Position(counter, branch)
        self._check_signature(Position(count, prev))
        return count

    def _check_signature(self, head: Position) -> None:
        meta = self.meta
        row = self._db.execute("SELECT value FROM state WHERE key = ?", (SIGNATURE,)).fetchone()
        if head != START and not (row and verifies(meta["key"], meta["client"], "", Head(head, row[0]))):
            raise self._altered("its head is not signed by this client")
        if self._identity is not None and self._identity.public != meta["key"]:
            raise LedgerError("the ledger belongs to another identity key", where=str(self._path), fix=REPAIR)

    def check_head_file(self) -> None:
        """Raises LedgerError if the file beside the ledger has seen entries that the ledger lacks."""
        noted = self.noted()
        if noted is None:
            return
        row = self._db.execute("SELECT hash FROM entries WHERE seq = ?", (noted.position.counter,)).fetchone()
        if row is None or row[0] != noted.position.hash:
            raise LedgerError(
                f"the ledger has been rolled back: entry {noted.position.counter} is missing or another one",
                where=str(self._path),
                fix=REPAIR,
            )

    def noted(self) -> Head | None:
        """The head in the file beside the ledger; None if there is none that this client has signed."""
        try:
            head = Head.parse(self._head_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        meta = self.meta
        return head if verifies(meta["key"], meta["client"], "", head) else None

    def _note_head(self) -> None:
        """A crash before this leaves an older head, which is on the chain too. The lock keeps writers apart."""
        with self._locked():
            write_atomic(self._head_file, self.signed("", self.head()).text.encode())

    @property
    def _head_file(self) -> Path:
        return self._path.with_name("head")

    def _altered(self, how: str) -> LedgerError:
        return LedgerError(f"the ledger has been altered: {how}", where=str(self._path), fix=REPAIR)


def _adopted(body: Mapping[str, Any]) -> Position | None:
    """Where a branch goes on after a rollback: behind what the server has seen."""
    return Position(body["counter"], body["branch"]) if body["kind"] == RECOVER else None


def _link(prev: str, body: str) -> str:
    return digest(f"{prev}\n{body}".encode())
