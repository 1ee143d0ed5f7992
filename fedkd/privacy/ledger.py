"""The durable record of what has been spent: charged before released, whatever crashes.

reserve (fsync) -> compute -> store the exact bytes -> commit -> send. A reservation stays charged for ever. Entering it
again after a crash gives the same noise key, hence the same bytes, and costs nothing more; once it is committed the key
is erased and only the stored bytes can be had. Entries form a hash chain and are never changed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.errors import BudgetExceeded, LedgerError
from fedkd.privacy.accounting import Accountant
from fedkd.privacy.contract import Contract, Refused
from fedkd.privacy.events import PrivacyEvent
from fedkd.state import write_atomic
from fedkd.tensors import canonical, digest
from fedkd.wire import Code

SCHEMA = 1
GENESIS = "0" * 64
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL UNIQUE);
CREATE TABLE keys (run TEXT, round INTEGER, key BLOB NOT NULL, snapshot TEXT NOT NULL, PRIMARY KEY (run, round));
CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TRIGGER entries_keep BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


@dataclass(frozen=True)
class Reservation:
    """A charge that has been made, and the key of its noise."""

    run: str
    round: int
    event: PrivacyEvent
    key: bytes


@dataclass(frozen=True)
class Receipt:
    """What has been committed: its digest and the head of the chain after it."""

    digest: str
    head: str


class Ledger:
    """One client's ledger: a SQLite file and, beside it, the outbox of released bytes."""

    def __init__(self, path: Path, client: str, accountant: Accountant) -> None:
        """Open or create. Raises LedgerError if it belongs to another client, or its chain is broken."""
        self._path, self._accountant = path, accountant
        self._outbox = path.parent / "outbox"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
            self._open(client)
            self.verify()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise LedgerError(f"the ledger cannot be read: {error}", where=str(path)) from None
        except LedgerError:
            self._db.close()
            raise

    def _open(self, client: str) -> None:
        # secure_delete overwrites an erased noise key; FULL makes a reservation durable before any data is touched
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            self._db.execute(f"PRAGMA {pragma}")
        with self._transaction():
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                for statement in TABLES.strip().split(";\n"):
                    self._db.execute(statement)
                self._db.executemany("INSERT INTO meta VALUES (?, ?)", [("schema", str(SCHEMA)), ("client", client)])
        meta = dict(self._db.execute("SELECT key, value FROM meta").fetchall())
        if meta.get("schema") != str(SCHEMA):
            raise LedgerError("the ledger has another schema version", where=str(self._path), fix="upgrade fedkd")
        if meta["client"] != client:
            raise LedgerError(f"the ledger belongs to client {meta['client']!r}, not {client!r}", where=str(self._path))
        self.client = client
        # a key that was erased just before a crash may still be in the write-ahead log
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """The verified export of a ledger that may be in use, without changing it. Raises LedgerError."""
        if not path.is_file():
            raise LedgerError("there is no ledger", where=str(path))
        ledger = cls.__new__(cls)
        ledger._path = path
        try:
            ledger._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
            meta = dict(ledger._db.execute("SELECT key, value FROM meta").fetchall())
            ledger.client = meta["client"]
            ledger.verify()
            return ledger.export()
        except (sqlite3.DatabaseError, KeyError, ValueError) as error:
            raise LedgerError(f"not a readable ledger: {error}", where=str(path)) from None
        finally:
            ledger.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- contracts ---------------------------------------------------------------------------------------------------

    def contract(self, run: str) -> Contract | None:
        """The contract registered for a run."""
        record = next((body for body in self._bodies("contract") if body["contract"]["run"] == run), None)
        return Contract.from_record(record["contract"]) if record else None

    def register(self, contract: Contract) -> None:
        """Write a contract down before its first round. Raises Refused if its whole schedule does not fit."""
        with self._transaction():
            if self.contract(contract.run) is not None:
                raise Refused(Code.CONTRACT)
            if not self._fits([*self.events(), *[contract.event] * contract.rounds], contract):
                raise Refused(Code.EXHAUSTED)
            self._append({"kind": "contract", "hash": contract.hash, "contract": contract.record()})

    def open_contract(self) -> Contract | None:
        """The newest contract; older ones are closed, so that what they had not used can be given to the newest."""
        bodies = list(self._bodies("contract"))
        return Contract.from_record(bodies[-1]["contract"]) if bodies else None

    # -- reserve -> commit -------------------------------------------------------------------------------------------

    def reserve(self, run: str, round: int, plan: str, snapshot: str, new_key: Callable[[], bytes]) -> Reservation:
        """Charge one round, durably, before any private data is touched; or enter the same reservation again.

        Raises Refused for a round out of order or another plan, BudgetExceeded when the limit would be passed.
        """
        with self._transaction():
            contract = self.open_contract()
            if contract is None or contract.run != run:
                raise Refused(Code.NO_CONTRACT)
            rounds = {body["round"]: body for body in self._bodies("reserve") if body["run"] == run}
            if round in rounds:
                return self._again(rounds[round], plan, snapshot)
            if rounds and round < max(rounds):
                raise Refused(Code.ORDER)
            if not 1 <= round <= contract.rounds:
                raise Refused(Code.ROUNDS)
            if not self._fits([*self.events(), contract.event], contract):
                raise BudgetExceeded("this round would spend more than the policy allows", where=f"round {round}")
            key = new_key()
            self._db.execute("DELETE FROM keys")  # an abandoned reservation can never be entered again
            self._db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (run, round, key, snapshot))
            self._append(
                {"kind": "reserve", "run": run, "round": round, "plan": plan, "event": contract.event.record()}
            )
        return Reservation(run, round, contract.event, key)

    def _again(self, body: Mapping[str, Any], plan: str, snapshot: str) -> Reservation:
        if body["plan"] != plan:
            raise Refused(Code.PLAN)
        row = self._db.execute(
            "SELECT key, snapshot FROM keys WHERE run = ? AND round = ?", (body["run"], body["round"])
        ).fetchone()
        if row is None:
            raise Refused(Code.ORDER)
        if row[1] != snapshot:
            # other data under the same noise: the difference of two outputs would be the data, bare
            raise Refused(Code.FAILED)
        return Reservation(body["run"], body["round"], PrivacyEvent.from_record(body["event"]), row[0])

    def commit(self, reservation: Reservation, payload: bytes, state: Mapping[str, str]) -> Receipt:
        """Store the exact bytes that may leave, and with them the client's new state; erase the key."""
        mark = digest(payload)
        write_atomic(self._outbox / mark, payload)
        run, round = reservation.run, reservation.round
        with self._transaction():
            if not self._db.execute("DELETE FROM keys WHERE run = ? AND round = ?", (run, round)).rowcount:
                raise LedgerError("there is no open reservation to commit", where=f"run {run}, round {round}")
            head = self._append({"kind": "commit", "run": run, "round": round, "digest": mark, "bytes": len(payload)})
            self._put_state(state)
        # the key must not survive in the write-ahead log either
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return Receipt(mark, head)

    def released(self, run: str, round: int, plan: str) -> bytes | None:
        """The exact bytes committed for a round. Raises Refused if they answered another plan."""
        commit = next((b for b in self._bodies("commit") if (b["run"], b["round"]) == (run, round)), None)
        if commit is None:
            return None
        if not any((b["run"], b["round"], b["plan"]) == (run, round, plan) for b in self._bodies("reserve")):
            raise Refused(Code.PLAN)
        payload = (self._outbox / commit["digest"]).read_bytes()
        if digest(payload) != commit["digest"]:
            raise LedgerError("a released answer in the outbox has been altered", where=commit["digest"])
        return bytes(payload)

    # -- state that moves with a commit ------------------------------------------------------------------------------

    def state(self, key: str) -> str | None:
        """A value stored with ``commit`` or ``put_state``."""
        row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put_state(self, state: Mapping[str, str]) -> None:
        """Store values that no release goes with."""
        with self._transaction():
            self._put_state(state)

    def _put_state(self, state: Mapping[str, str]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", list(state.items()))

    # -- reading -----------------------------------------------------------------------------------------------------

    def events(self) -> list[PrivacyEvent]:
        """Every event ever charged, released or not."""
        return [PrivacyEvent.from_record(body["event"]) for body in self._bodies("reserve")]

    def head(self) -> str:
        """Hash of the newest entry."""
        row = self._db.execute("SELECT hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return str(row[0]) if row else GENESIS

    def verify(self) -> int:
        """Walk the hash chain and return its length. Raises LedgerError at the first entry that does not fit."""
        prev, count = GENESIS, 0
        for seq, body, before, mark in self._db.execute("SELECT seq, body, prev, hash FROM entries ORDER BY seq"):
            count += 1
            if seq != count or before != prev or mark != _link(prev, body):
                raise LedgerError(
                    "the ledger has been altered: its hash chain breaks",
                    where=f"{self._path}, entry {count}",
                    fix="stop answering with it, and restore it from its newest copy",
                )
            prev = mark
        return count

    def export(self) -> dict[str, Any]:
        """Everything that an independent accountant needs. No record ids, no keys, no data."""
        commits = {(b["run"], b["round"]): b for b in self._bodies("commit")}
        events = []
        for body in self._bodies("reserve"):
            done = commits.get((body["run"], body["round"]))
            events.append(
                {
                    **body["event"],
                    "state": "released" if done else "reserved",
                    "run": body["run"],
                    "round": body["round"],
                    "digest": done["digest"] if done else None,
                    "bytes": done["bytes"] if done else 0,
                }
            )
        contracts = [{"hash": body["hash"], **body["contract"]} for body in self._bodies("contract")]
        return {"schema": SCHEMA, "client": self.client, "head": self.head(), "contracts": contracts, "events": events}

    # -- inside ------------------------------------------------------------------------------------------------------

    def _fits(self, events: list[PrivacyEvent], contract: Contract) -> bool:
        if contract.event.mechanism == "none":
            return True  # the policy has said that nothing is protected; every report says infinity
        return self._accountant.spent(events, contract.delta).epsilon <= contract.epsilon

    def _bodies(self, kind: str) -> Iterator[dict[str, Any]]:
        for (text,) in self._db.execute("SELECT body FROM entries ORDER BY seq").fetchall():
            body = json.loads(text)
            if body["kind"] == kind:
                yield body

    def _append(self, body: Mapping[str, Any]) -> str:
        text, prev = canonical(body).decode(), self.head()
        mark = _link(prev, text)
        seq = self._db.execute("SELECT COALESCE(MAX(seq), 0) + 1 FROM entries").fetchone()[0]
        self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (seq, text, prev, mark))
        return mark

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _link(prev: str, body: str) -> str:
    return digest(f"{prev}\n{body}".encode())
