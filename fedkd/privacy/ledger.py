"""The durable record of what has been spent: charged before released, whatever crashes.

reserve (fsync) -> compute -> store the exact bytes -> commit -> send. A reservation stays charged for ever. Entering it
again after a crash gives the same noise key, hence the same bytes, and costs nothing more; once it is committed the key
is erased and only the stored bytes can be had. Entries form a signed hash chain (``chain``) and are never changed.

A contract that has been agreed to is *pending*: it enters the chain with its first reservation. Until then a server
can make the client agree to as many others as it likes, and nothing grows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from fedkd.errors import BudgetExceeded, LedgerError
from fedkd.privacy.chain import RECOVER, Chain
from fedkd.privacy.contract import Contract, Refused
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.identity import Head, Identity, verifies
from fedkd.privacy.keys import Held, KeyFile
from fedkd.privacy.limits import Past
from fedkd.state import write_atomic
from fedkd.tensors import canonical, digest
from fedkd.wire import Code

SCHEMA = 2
PENDING, ROLLED_BACK = "pending contract", "rolled back"
KEPT = 64
"""Released answers whose bytes are kept, to be sent again; older ones are known by their digest."""


@dataclass(frozen=True)
class Reservation:
    """A charge that has been made, and the key of its noise."""

    run: str
    round: int
    events: tuple[PrivacyEvent, ...]
    key: bytes


@dataclass(frozen=True)
class Receipt:
    """What has been committed: its digest and the head of the chain after it."""

    digest: str
    head: str


class Ledger:
    """One client's ledger: a SQLite file and, beside it, the outbox of released bytes and the key of an open round."""

    def __init__(self, path: Path, client: str, identity: bytes | None = None) -> None:
        """Open or create. ``identity`` is the key to make where there is none; None: one of the operating system.

        Raises LedgerError if it belongs to another client, its chain is broken, or it is older than its head file.
        """
        self._files(path)
        self._open(path, client, identity)
        try:
            self._chain.verify()
            self._chain.check_head_file()
        except (LedgerError, sqlite3.DatabaseError) as error:
            self._db.close()
            raise _unreadable(error, path) from None

    @classmethod
    def damaged(cls, path: Path, client: str) -> Self:
        """Open a ledger that may be older than its head file, for ``recover`` alone. Raises LedgerError if its chain
        is broken: then no entry of it can be trusted."""
        ledger = cls.__new__(cls)
        ledger._files(path)
        ledger._open(path, client, None)
        try:
            ledger._chain.verify()
        except LedgerError:
            ledger.close()
            raise
        return ledger

    def _files(self, path: Path) -> None:
        self._path, self._outbox = path, path.parent / "outbox"
        self._keys = KeyFile(path.parent / "key")

    def _open(self, path: Path, client: str, identity: bytes | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        signer = Identity.open(path.parent / "identity", identity)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        try:
            # FULL makes a reservation durable before any data is touched
            for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                self._db.execute(f"PRAGMA {pragma}")
            self._chain = Chain(self._db, path, signer)
            self._chain.create({"schema": str(SCHEMA), "client": client, "key": signer.public})
            self._check_meta(client)
        except (LedgerError, sqlite3.DatabaseError) as error:
            self._db.close()
            raise _unreadable(error, path) from None

    def _check_meta(self, client: str) -> None:
        meta = self._chain.meta
        if meta.get("schema") != str(SCHEMA):
            raise LedgerError("the ledger has another schema version", where=str(self._path), fix="upgrade fedkd")
        if meta["client"] != client:
            raise LedgerError(f"the ledger belongs to client {meta['client']!r}, not {client!r}", where=str(self._path))
        self.client = client
        held = self._keys.read()
        if held is None or self._chain.body("commit", held.run, held.round) is not None:
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
                ledger._chain = Chain(ledger._db, path)
                ledger.client = ledger._chain.meta["client"]
                ledger._chain.verify()
                ledger._chain.check_head_file()
                return ledger.export()
        except (sqlite3.DatabaseError, KeyError, ValueError) as error:
            raise LedgerError(f"not a readable ledger: {error}", where=str(path)) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def verify(self) -> int:
        """Walk the chain and return its length. Raises LedgerError where it does not fit."""
        return self._chain.verify()

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
        with self._chain.transaction():
            self._check_lock()
            if self.contract(contract.run) is not None or self._chain.body("contract", contract.run) is not None:
                raise Refused(Code.CONTRACT)
            if not self._fits(contract, contract.rounds, new=True):
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
        body = {"kind": "contract", "server": contract.server, "run": contract.run, "hash": contract.hash}
        self._chain.append({**body, "contract": contract.record()})

    # -- reserve -> commit -------------------------------------------------------------------------------------------

    def reserve(
        self, run: str, round: int, plan: str, snapshot: str, new_key: Callable[[], bytes], block: str | None = None
    ) -> Reservation:
        """Charge one round, durably, before any private data is touched; or enter the same reservation again.

        ``block`` is the part of the data that DP-SGD touches, where that is another one than the contract's. Raises
        Refused for a round out of order or another plan, BudgetExceeded when a limit would be passed.
        """
        with self._chain.transaction():
            self._check_lock()
            contract = self.contract(run)
            if contract is None:
                raise Refused(Code.NO_CONTRACT)
            before = self._chain.body("reserve", run, round)
            if before is not None:
                return self._again(before, plan, snapshot)
            if round < self._last_round(run):
                raise Refused(Code.ORDER)
            if not 1 <= round <= contract.rounds:
                raise Refused(Code.ROUNDS)
            events = self._charge(contract, round, plan, block)
            # only now: it takes the place of the key of a round that was given up, which can never be entered again
            held = Held(run, round, snapshot, new_key())
            self._keys.write(held)
        return Reservation(run, round, events, held.key)

    def _charge(self, contract: Contract, round: int, plan: str, block: str | None) -> tuple[PrivacyEvent, ...]:
        new, charged = self._chain.body("contract", contract.run) is None, _in_block(contract, block)
        if not self._fits(charged, contract.rounds if new else 1, new=new):
            raise BudgetExceeded("this round would spend more than the policy allows", where=f"round {round}")
        if new:
            self._bring_into_force(contract)
        body = {"kind": "reserve", "server": contract.server, "run": contract.run, "round": round, "plan": plan}
        self._chain.append({**body, "events": [event.record() for event in charged.events]})
        return charged.events

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
        return Reservation(held.run, held.round, _events(body), held.key)

    def _key(self, run: str, round: int) -> Held | None:
        held = self._keys.read()
        return held if held is not None and (held.run, held.round) == (run, round) else None

    def commit(self, reservation: Reservation, payload: bytes, state: Mapping[str, str]) -> Receipt:
        """Store the exact bytes that may leave, and with them the client's new state; erase the key."""
        mark = digest(payload)
        write_atomic(self._outbox / mark, payload)
        run, round = reservation.run, reservation.round
        with self._chain.transaction():
            charge = self._chain.body("reserve", run, round)
            if charge is None or self._key(run, round) is None or self._chain.body("commit", run, round) is not None:
                raise LedgerError("there is no open reservation to commit", where=f"run {run}, round {round}")
            body = {"kind": "commit", "server": charge["server"], "run": run, "round": round, "digest": mark}
            head = self._chain.append({**body, "bytes": len(payload)})
            self._put_state(state)
        self._keys.erase()
        self._prune()
        return Receipt(mark, head)

    def released(self, run: str, round: int, plan: str) -> bytes | None:
        """The exact bytes committed for a round. Raises Refused if they answer another plan, or are kept no longer."""
        commit, charge = (self._chain.body(kind, run, round) for kind in ("commit", "reserve"))
        if commit is None or charge is None:
            return None
        if charge["plan"] != plan:
            raise Refused(Code.PLAN)
        try:
            payload = (self._outbox / commit["digest"]).read_bytes()
        except FileNotFoundError:
            raise Refused(Code.ORDER) from None
        if digest(payload) != commit["digest"]:
            raise LedgerError("a released answer in the outbox has been altered", where=commit["digest"])
        return bytes(payload)

    def _prune(self) -> None:
        """Let go of the bytes of the one answer that is too old by now."""
        query = "SELECT json_extract(body, '$.digest') FROM entries WHERE kind = 'commit' ORDER BY seq DESC"
        row = self._db.execute(f"{query} LIMIT 1 OFFSET ?", (KEPT,)).fetchone()
        if row is not None:
            (self._outbox / str(row[0])).unlink(missing_ok=True)

    # -- what a server has seen --------------------------------------------------------------------------------------

    def head(self, server: str) -> str:
        """This client's signed head of the events that concern a server; empty while there are none."""
        position = self._chain.branch(server)
        return self._chain.signed(server, position).text if position.counter else ""

    def check_seen(self, server: str, seen: str) -> None:
        """Compare with the newest head that a server has seen. Raises Refused, now and from then on, if it is this
        client's own and not on this ledger: then entries have been lost, or two devices continue one ledger."""
        if seen:
            head, meta = Head.parse(seen), self._chain.meta
            if not verifies(meta["key"], self.client, server, head):
                raise Refused(Code.MALFORMED)  # not ours: says nothing about this ledger
            if not self._chain.knows(server, head.position):
                self.put_state({ROLLED_BACK: json.dumps([server, seen])})
        self._check_lock()

    def _check_lock(self) -> None:
        if self.state(ROLLED_BACK):
            raise Refused(Code.ROLLED_BACK)

    def missing(self) -> tuple[str, int, int, str] | None:
        """Server, first and last counter and last hash of entries that are known to be missing; None if none are.

        The server is empty where only the head file tells: the gap is then one of the whole chain. A gap without
        length is a fork: two continuations of one ledger.
        """
        evidence = self.state(ROLLED_BACK)
        if evidence:
            server, text = json.loads(evidence)
            seen, own = Head.parse(text).position, self._chain.branch(server).counter
            return server, own, seen.counter, seen.hash
        noted, head = self._chain.noted(), self._chain.head()
        if noted is None or noted.position.counter <= head.counter:
            return None
        return "", head.counter, noted.position.counter, noted.position.hash

    def recover(self, most: Sequence[PrivacyEvent]) -> int:
        """Charge every missing entry as if it had been a round of ``most``, and go on. Returns how many.

        Raises LedgerError if nothing is missing, or for a fork: what another device has answered cannot be counted.
        """
        gap = self.missing()
        if gap is None:
            raise LedgerError("nothing is missing from this ledger", where=str(self._path))
        server, own, seen, mark = gap
        if seen <= own:
            raise LedgerError(
                "the ledger has a fork: another device has continued a copy of it, and cannot be counted",
                where=str(self._path),
                fix="delete the copy, start a new ledger under another client name, and add both epsilons up",
            )
        with self._chain.transaction():
            charges = [{**event.record(), "steps": event.steps * (seen - own)} for event in most]
            body = {"kind": RECOVER, "server": server, "from": own, "counter": seen, "branch": mark, "events": charges}
            self._chain.append(body)
            self._db.execute("DELETE FROM state WHERE key = ?", (ROLLED_BACK,))
        return seen - own

    # -- state that moves with a commit ------------------------------------------------------------------------------

    def state(self, key: str) -> str | None:
        """A value stored with ``commit`` or ``put_state``."""
        row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put_state(self, state: Mapping[str, str]) -> None:
        """Store values that no release goes with."""
        with self._chain.transaction():
            self._put_state(state)

    def _put_state(self, state: Mapping[str, str]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", list(state.items()))

    # -- reading -----------------------------------------------------------------------------------------------------

    def history(self) -> list[PrivacyEvent]:
        """All that has ever been charged, released or not; equal events are one, with the steps of all."""
        query = """SELECT json_extract(body, '$.events') AS events, COUNT(*) FROM entries
            WHERE kind IN ('reserve', 'recover') GROUP BY events ORDER BY MIN(seq)"""
        return [
            replace(event, steps=event.steps * count)
            for text, count in self._db.execute(query)
            for event in map(PrivacyEvent.from_record, json.loads(text))
        ]

    def past(self) -> Past:
        """What limits a further contract."""
        contracts = [Contract.from_record(body["contract"]) for body in self._chain.bodies("contract")]
        first = contracts[0].schedule(contracts[0].rounds) if contracts else []
        return Past(tuple(self.history()), len(contracts), tuple(first))

    def export(self) -> dict[str, Any]:
        """Everything that an independent accountant needs. No record ids, no keys, no data."""
        commits = {(b["run"], b["round"]): b for b in self._chain.bodies("commit")}
        events = []
        for body in self._chain.bodies("reserve"):
            done = commits.get((body["run"], body["round"]))
            for part, event in enumerate(body["events"]):
                events.append(
                    {
                        **event,
                        "state": "released" if done else "reserved",
                        "run": body["run"],
                        "round": body["round"],
                        "part": part,
                        "digest": done["digest"] if done else None,
                        "bytes": done["bytes"] if done and not part else 0,
                    }
                )
        lost = {"state": "lost", "run": None, "round": None, "part": 0, "digest": None, "bytes": 0}
        events += [{**event, **lost} for body in self._chain.bodies(RECOVER) for event in body["events"]]
        contracts = [{"hash": body["hash"], **body["contract"]} for body in self._chain.bodies("contract")]
        about = {"schema": SCHEMA, "client": self.client, "key": self._chain.meta["key"]}
        return {**about, "head": self._chain.head().hash, "contracts": contracts, "events": events}

    # -- inside ------------------------------------------------------------------------------------------------------

    def _fits(self, contract: Contract, rounds: int, *, new: bool) -> bool:
        """Whether ``rounds`` more rounds of a contract stay within its limits."""
        if contract.mechanism == "none":
            return True  # the policy has said that nothing is protected; every report says infinity
        past, more = self.past(), contract.schedule(rounds)
        accountant = past.accountant(more, contract.limits.delta, another=new)
        return contract.limits.admits([*past.events, *more], accountant)


def _in_block(contract: Contract, block: str | None) -> Contract:
    """The contract with its DP-SGD charged to a block; every other event touches all blocks."""
    if block is None or contract.mechanism != "dp_sgd":
        return contract
    return replace(contract, events=tuple(replace(event, blocks=(block,)) for event in contract.events))


def _events(body: Mapping[str, Any]) -> tuple[PrivacyEvent, ...]:
    return tuple(PrivacyEvent.from_record(event) for event in body["events"])


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


def _unreadable(error: Exception, path: Path) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    return LedgerError(f"the ledger cannot be read: {error}", where=str(path))
