"""The durable record of what has been spent: charged before released, whatever crashes.

reserve (fsync) -> compute -> store the exact bytes -> commit -> send. A reservation stays charged for ever. Entering it
again after a crash gives the same noise key, hence the same bytes, and costs nothing more; once it is committed the key
is erased and only the stored bytes can be had. Entries form a hash chain and are never changed.

A contract that has been agreed to is *pending*: it enters the chain with its first reservation. Until then a server
can make the client agree to as many others as it likes, and nothing grows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkd.errors import BudgetExceeded, LedgerError
from fedkd.privacy.accounting import Accountant, composable
from fedkd.privacy.contract import Contract, Refused
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.keys import Held, KeyFile
from fedkd.state import write_atomic
from fedkd.tensors import canonical, digest
from fedkd.wire import Code

SCHEMA = 1
PENDING = "pending contract"
GENESIS = "0" * 64
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY, body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL UNIQUE,
    kind TEXT GENERATED ALWAYS AS (json_extract(body, '$.kind')) VIRTUAL,
    run TEXT GENERATED ALWAYS AS (COALESCE(json_extract(body, '$.run'), json_extract(body, '$.contract.run'))) VIRTUAL,
    round INTEGER GENERATED ALWAYS AS (json_extract(body, '$.round')) VIRTUAL
);
CREATE INDEX entries_by_round ON entries (kind, run, round);
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
    """One client's ledger: a SQLite file and, beside it, the outbox of released bytes and the key of an open round."""

    def __init__(self, path: Path, client: str, accountant: Accountant) -> None:
        """Open or create. Raises LedgerError if it belongs to another client, or its chain is broken."""
        self._path, self._accountant = path, accountant
        self._outbox, self._keys = path.parent / "outbox", KeyFile(path.parent / "key")
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
        # FULL makes a reservation durable before any data is touched
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
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
        held = self._keys.read()
        if held is None or self._body("commit", held.run, held.round) is not None:
            self._keys.erase()  # what a crash between commit and erasure has left

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """The verified export of a ledger that may be in use, without changing it. Raises LedgerError."""
        if not path.is_file():
            raise LedgerError("there is no ledger", where=str(path))
        ledger = cls.__new__(cls)
        ledger._path = path
        try:
            with closing(_open_to_read(path)) as ledger._db:
                ledger.client = dict(ledger._db.execute("SELECT key, value FROM meta").fetchall())["client"]
                ledger.verify()
                return ledger.export()
        except (sqlite3.DatabaseError, KeyError, ValueError) as error:
            raise LedgerError(f"not a readable ledger: {error}", where=str(path)) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- contracts ---------------------------------------------------------------------------------------------------

    def contract(self, run: str) -> Contract | None:
        """What has been agreed to for a run: pending, or in force. Older contracts are closed, so that what they had
        not used can be given to the newest."""
        return next((one for one in (self._pending(), self._newest()) if one is not None and one.run == run), None)

    def open_contract(self) -> Contract | None:
        """What has been agreed to last."""
        return self._pending() or self._newest()

    def register(self, contract: Contract) -> None:
        """Hold a contract ready for its first round. Raises Refused if its whole schedule does not fit, or its run has
        had a contract."""
        with self._transaction():
            if self.contract(contract.run) is not None or self._body("contract", contract.run) is not None:
                raise Refused(Code.CONTRACT)
            if not self._admits(contract):
                raise Refused(Code.EXHAUSTED)
            self._put_state({PENDING: canonical(contract.record()).decode()})

    def _pending(self) -> Contract | None:
        record = self.state(PENDING)
        return Contract.from_record(json.loads(record)) if record else None

    def _newest(self) -> Contract | None:
        row = self._db.execute("SELECT body FROM entries WHERE kind = 'contract' ORDER BY seq DESC LIMIT 1").fetchone()
        return Contract.from_record(json.loads(row[0])["contract"]) if row else None

    def _bring_into_force(self, contract: Contract) -> None:
        """Enter a pending contract into the chain: from now on it is the only one."""
        self._db.execute("DELETE FROM state WHERE key = ?", (PENDING,))
        self._append({"kind": "contract", "hash": contract.hash, "contract": contract.record()})

    # -- reserve -> commit -------------------------------------------------------------------------------------------

    def reserve(self, run: str, round: int, plan: str, snapshot: str, new_key: Callable[[], bytes]) -> Reservation:
        """Charge one round, durably, before any private data is touched; or enter the same reservation again.

        Raises Refused for a round out of order or another plan, BudgetExceeded when the limit would be passed.
        """
        with self._transaction():
            contract = self.contract(run)
            if contract is None:
                raise Refused(Code.NO_CONTRACT)
            before = self._body("reserve", run, round)
            if before is not None:
                return self._again(before, plan, snapshot)
            if round < self._last_round(run):
                raise Refused(Code.ORDER)
            if not 1 <= round <= contract.rounds:
                raise Refused(Code.ROUNDS)
            self._charge(contract, round, plan)
            # only now: it takes the place of the key of a round that was given up, which can never be entered again
            held = Held(run, round, snapshot, new_key())
            self._keys.write(held)
        return Reservation(run, round, contract.event, held.key)

    def _charge(self, contract: Contract, round: int, plan: str) -> None:
        new = self._body("contract", contract.run) is None
        if not (self._admits(contract) if new else self._fits(contract, 1)):
            raise BudgetExceeded("this round would spend more than the policy allows", where=f"round {round}")
        if new:
            self._bring_into_force(contract)
        event = contract.event.record()
        self._append({"kind": "reserve", "run": contract.run, "round": round, "plan": plan, "event": event})

    def _last_round(self, run: str) -> int:
        query = "SELECT COALESCE(MAX(round), 0) FROM entries WHERE kind = 'reserve' AND run = ?"
        return int(self._db.execute(query, (run,)).fetchone()[0])

    def _again(self, body: Mapping[str, Any], plan: str, snapshot: str) -> Reservation:
        if body["plan"] != plan:
            raise Refused(Code.PLAN)
        held = self._key(body["run"], body["round"])
        if held is None:
            raise Refused(Code.ORDER)
        if held.snapshot != snapshot:
            # other data under the same noise: the difference of two outputs would be the data, bare
            raise Refused(Code.FAILED)
        return Reservation(held.run, held.round, PrivacyEvent.from_record(body["event"]), held.key)

    def _key(self, run: str, round: int) -> Held | None:
        held = self._keys.read()
        return held if held is not None and (held.run, held.round) == (run, round) else None

    def commit(self, reservation: Reservation, payload: bytes, state: Mapping[str, str]) -> Receipt:
        """Store the exact bytes that may leave, and with them the client's new state; erase the key."""
        mark = digest(payload)
        write_atomic(self._outbox / mark, payload)
        run, round = reservation.run, reservation.round
        with self._transaction():
            if self._key(run, round) is None or self._body("commit", run, round) is not None:
                raise LedgerError("there is no open reservation to commit", where=f"run {run}, round {round}")
            head = self._append({"kind": "commit", "run": run, "round": round, "digest": mark, "bytes": len(payload)})
            self._put_state(state)
        self._keys.erase()
        return Receipt(mark, head)

    def released(self, run: str, round: int, plan: str) -> bytes | None:
        """The exact bytes committed for a round. Raises Refused if they answered another plan."""
        commit, charge = (self._body(kind, run, round) for kind in ("commit", "reserve"))
        if commit is None or charge is None:
            return None
        if charge["plan"] != plan:
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

    def history(self) -> list[PrivacyEvent]:
        """All that has ever been charged, released or not; equal events are one, with the steps of all."""
        query = """SELECT json_extract(body, '$.event') AS event, COUNT(*) FROM entries
            WHERE kind = 'reserve' GROUP BY event ORDER BY MIN(seq)"""
        found = [(PrivacyEvent.from_record(json.loads(text)), count) for text, count in self._db.execute(query)]
        return [replace(event, steps=event.steps * count) for event, count in found]

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

    def _admits(self, contract: Contract) -> bool:
        """Whether a new contract may follow what has been charged."""
        return composable(self.history(), contract.event) and self._fits(contract, contract.rounds)

    def _fits(self, contract: Contract, rounds: int) -> bool:
        """Whether ``rounds`` more rounds of a contract stay within its limit."""
        if contract.event.mechanism == "none":
            return True  # the policy has said that nothing is protected; every report says infinity
        events = [*self.history(), *[contract.event] * rounds]
        return self._accountant.spent(events, contract.delta).epsilon <= contract.epsilon

    def _body(self, kind: str, run: str, round: int | None = None) -> dict[str, Any] | None:
        query = "SELECT body FROM entries WHERE kind = ? AND run = ? AND round IS ?"
        row = self._db.execute(query, (kind, run, round)).fetchone()
        return json.loads(row[0]) if row else None

    def _bodies(self, kind: str) -> Iterator[dict[str, Any]]:
        for (text,) in self._db.execute("SELECT body FROM entries WHERE kind = ? ORDER BY seq", (kind,)).fetchall():
            yield json.loads(text)

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


def _open_to_read(path: Path) -> sqlite3.Connection:
    address = f"{path.resolve().as_uri()}?mode=ro"
    try:
        return _connected(address)
    except sqlite3.OperationalError:
        if path.with_name(f"{path.name}-wal").exists():
            raise  # its newest entries are in there, and it needs a medium that can be written to
        # write-ahead logging wants a file beside the database, which a read-only medium has no room for
        return _connected(f"{address}&immutable=1")


def _connected(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, isolation_level=None)
    try:
        connection.execute("SELECT 1 FROM meta")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _link(prev: str, body: str) -> str:
    return digest(f"{prev}\n{body}".encode())
