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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkd.errors import BudgetExceeded, LedgerError
from fedkd.privacy.blocks import block_of
from fedkd.privacy.chain import COMMIT, CONTRACT, RESERVE, SCHEMA, Chain
from fedkd.privacy.contract import Contract, Refused
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.identity import Identity
from fedkd.privacy.keys import Held, KeyFile
from fedkd.privacy.limits import Past
from fedkd.privacy.reading import export, history, past, reading
from fedkd.privacy.rollback import Gap, Rollback
from fedkd.privacy.verification import verified
from fedkd.state import write_atomic
from fedkd.tensors import canonical, digest
from fedkd.wire import Code

PENDING = "pending contract"
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
    """One client's ledger: a SQLite file and, beside it, the client's identity key, the newest head, the outbox of
    released bytes and the key of an open round."""

    def __init__(self, path: Path, client: str, identity: bytes | None = None, *, damaged: bool = False) -> None:
        """Open or create. ``identity`` is the key to make where there is none; None: one of the operating system.
        ``damaged`` opens also what is older than its head file, for ``recover`` alone.

        Raises LedgerError if it belongs to another client or key, its chain is broken, or it is older than its head
        file.
        """
        self._path, self.client, self._outbox = path, client, path.parent / "outbox"
        self._keys = KeyFile(path.parent / "key")
        path.parent.mkdir(parents=True, exist_ok=True)
        signer = self._identity(identity)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self._chain = Chain(self._db, path, signer)
        self._rollback = Rollback(self._chain, client, path)
        try:
            self._open(signer, damaged)
        except (LedgerError, sqlite3.DatabaseError, KeyError) as error:
            self._db.close()
            raise _unreadable(error, path) from None

    def _identity(self, new: bytes | None) -> Identity:
        path = self._path.with_name("identity")
        if self._path.exists() and not path.exists():
            raise LedgerError(
                "the identity key of this ledger is missing",
                where=str(path),
                fix="restore it from a backup; without it, start a new ledger under another client name",
            )
        return Identity.open(path, new)

    def _open(self, signer: Identity, damaged: bool) -> None:
        # FULL makes a reservation durable before any data is touched
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            self._db.execute(f"PRAGMA {pragma}")
        self._chain.create({"schema": str(SCHEMA), "client": self.client, "key": signer.public})
        self._check_meta()
        with verified(self._chain, damaged=damaged):
            pass
        with self._chain.locked():  # what a crash between commit and erasure has left
            held = self._keys.read()
            if held is None or self._chain.body(COMMIT, held.run, held.round) is not None:
                self._keys.erase()

    def _check_meta(self) -> None:
        meta, where = self._chain.meta, str(self._path)
        if meta.get("schema") != str(SCHEMA):
            raise LedgerError("the ledger has another schema version", where=where, fix="upgrade fedkd")
        if meta["client"] != self.client:
            raise LedgerError(f"the ledger belongs to client {meta['client']!r}, not {self.client!r}", where=where)

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The verified export of a ledger that may be in use, without changing it. Raises LedgerError."""
        with reading(path) as (chain, _):
            return export(chain)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def verify(self) -> int:
        """Walk the chain and return its length. Raises LedgerError where it does not fit."""
        with verified(self._chain) as found:
            return found.head.counter

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
            self._rollback.check_lock()
            if self.contract(contract.run) is not None or self._chain.body("contract", contract.run) is not None:
                raise Refused(Code.CONTRACT)
            if not self._fits(contract, contract.most, new=True):
                raise Refused(Code.EXHAUSTED)
            self._chain.put({PENDING: canonical(contract.record()).decode()})

    def _pending(self) -> Contract | None:
        record = self.state(PENDING)
        return Contract.from_record(json.loads(record)) if record else None

    def _newest(self) -> Contract | None:
        row = self._db.execute("SELECT body FROM entries WHERE kind = 'contract' ORDER BY seq DESC LIMIT 1").fetchone()
        return Contract.from_record(json.loads(row[0])["contract"]) if row else None

    def _bring_into_force(self, contract: Contract) -> None:
        """Enter a pending contract into the chain: from now on it is the only one."""
        self._chain.put({PENDING: None})
        body = {"kind": CONTRACT, "server": contract.server, "run": contract.run, "hash": contract.hash}
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
            self._rollback.check_lock()
            contract = self.contract(run)
            if contract is None:
                raise Refused(Code.NO_CONTRACT)
            before = self._chain.body(RESERVE, run, round)
            if before is not None:
                return self._again(before, plan, snapshot)
            if round < self._chain.last_round(run):
                raise Refused(Code.ORDER)
            if not 1 <= round <= contract.rounds:
                raise Refused(Code.ROUNDS)
            held = Held(run, round, snapshot, new_key())
            events = self._charge(contract, round, plan, block, digest(held.key))
            # only now: it takes the place of the key of a round that was given up, which can never be entered again
            self._keys.write(held)
        return Reservation(run, round, events, held.key)

    def _charge(
        self, contract: Contract, round: int, plan: str, block: str | None, noise: str
    ) -> tuple[PrivacyEvent, ...]:
        new, charged = self._chain.body("contract", contract.run) is None, _in_block(contract, block)
        whole = new and contract.block_rounds is None  # else it was looked at in a fresh block
        if not self._fits(charged, contract.rounds if whole else 1, new=new):
            raise BudgetExceeded("this round would spend more than the policy allows", where=f"round {round}")
        if new:
            self._bring_into_force(contract)
        body = {"kind": RESERVE, "server": contract.server, "run": contract.run, "round": round, "plan": plan}
        body["seen"] = self._rollback.acknowledged(contract.server)
        # the digest of the key: two copies of a ledger that answer one plan have made two releases, and two heads
        self._chain.append({**body, "noise": noise, "events": [event.record() for event in charged.events]})
        return charged.events

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
            charge = self._chain.body(RESERVE, run, round)
            if charge is None or self._key(run, round) is None or self._chain.body(COMMIT, run, round) is not None:
                raise LedgerError("there is no open reservation to commit", where=f"run {run}, round {round}")
            body = {"kind": COMMIT, "server": charge["server"], "run": run, "round": round, "digest": mark}
            head = self._chain.append({**body, "bytes": len(payload)})
            self._chain.put(state)
        with self._chain.locked():  # only now: a crash before the commit enters the reservation again
            if self._key(run, round) is not None:
                self._keys.erase()
        self._prune()
        return Receipt(mark, head)

    def charged(self, run: str, round: int) -> bool:
        """Whether a round has been reserved."""
        return self._chain.body(RESERVE, run, round) is not None

    def released(self, run: str, round: int, plan: str) -> bytes | None:
        """The exact bytes committed for a round. Raises Refused if they answer another plan, or are kept no longer."""
        commit, charge = (self._chain.body(kind, run, round) for kind in (COMMIT, RESERVE))
        if commit is None or charge is None:
            return None
        if charge["plan"] != plan:
            raise Refused(Code.PLAN)
        if round < self._chain.last_round(run) and _is_noised_elsewhere(charge):
            # its total has left with the aggregator's noise: the same votes under other noise would be a second release
            raise Refused(Code.ORDER)
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
        self._rollback.check(server, seen)

    def missing(self) -> Gap | None:
        """The charges that are known to be missing; None if none are."""
        return self._rollback.missing()

    def recover(self, most: Sequence[PrivacyEvent]) -> int:
        """Charge every missing charge as if it had been a round of ``most``, and go on. Returns how many.

        Raises LedgerError if nothing is missing, or for a fork: what another device has answered cannot be counted.
        """
        return self._rollback.recover(most)

    # -- state that moves with a commit ------------------------------------------------------------------------------

    def state(self, key: str) -> str | None:
        """A value stored with ``commit`` or ``put_state``."""
        return self._chain.state(key)

    def put_state(self, state: Mapping[str, str]) -> None:
        """Store values that no release goes with."""
        with self._chain.transaction():
            self._chain.put(state)

    # -- reading -----------------------------------------------------------------------------------------------------

    def history(self) -> list[PrivacyEvent]:
        """All that has ever been charged, released or not; equal events are one, with the steps of all."""
        return history(self._chain)

    def past(self) -> Past:
        """What limits a further contract."""
        return past(self._chain)

    def export(self) -> dict[str, Any]:
        """Everything that an independent accountant needs. No record ids, no keys, no data."""
        with self._chain.snapshot():
            return export(self._chain)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _fits(self, contract: Contract, rounds: int, *, new: bool) -> bool:
        """Whether ``rounds`` more rounds of a contract stay within its limits."""
        if contract.mechanism == "none":
            return True  # the policy has said that nothing is protected; every report says infinity
        past, more = self.past(), contract.schedule(rounds)
        accountant = past.accountant(more, contract.limits.delta, another=new)
        return contract.limits.admits([*past.events, *more], accountant, block_of(more))


def _in_block(contract: Contract, block: str | None) -> Contract:
    """The contract with its DP-SGD charged to a block; every other event touches all blocks."""
    if block is None or contract.mechanism != "dp_sgd":
        return contract
    return replace(contract, events=tuple(replace(event, blocks=(block,)) for event in contract.events))


def _events(body: Mapping[str, Any]) -> tuple[PrivacyEvent, ...]:
    return tuple(PrivacyEvent.from_record(event) for event in body["events"])


def _is_noised_elsewhere(charge: Mapping[str, Any]) -> bool:
    return any(event["mechanism"] in ("sum", "votes") for event in charge["events"])


def _unreadable(error: Exception, path: Path) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    return LedgerError(f"the ledger cannot be read: {error}", where=str(path))
