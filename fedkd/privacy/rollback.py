"""What servers have seen of a client's ledger, and what that says about it: that entries were lost, or that two devices
continue one ledger (Jin et al. 2024, ElephantDP, arXiv:2401.17628: replay, rollback, fork).

A server hands back the newest head that the client has signed for it. What it cannot show is what it has not seen: a
server that keeps heads to itself, and two devices that answer two servers, are found by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedkd.errors import LedgerError
from fedkd.privacy.chain import RECOVER, RESERVE, Chain
from fedkd.privacy.contract import Refused
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.identity import Head, Position, verifies
from fedkd.wire import Code

LOCK = "rolled back"


@dataclass(frozen=True)
class Gap:
    """Charges ``start`` + 1 to ``charges`` of a server's branch, or of the whole chain (``""``), may be missing; the
    last of them is entry ``counter``, whose hash is ``branch``. A ``fork`` is no gap: both ends have been continued."""

    server: str
    start: int
    counter: int
    charges: int
    branch: str
    fork: bool

    @property
    def lost(self) -> int:
        """How many charges."""
        return self.charges - self.start


def evidence(chain: Chain) -> Gap | None:
    """What a server has shown to be missing from this ledger, which is locked then."""
    found = chain.state(LOCK)
    return Gap(**json.loads(found)) if found else None


class Rollback:
    """Compares one ledger with the heads that servers and the head file have kept of it."""

    def __init__(self, chain: Chain, client: str, path: Path) -> None:
        self._chain, self._client, self._path = chain, client, path
        self._acknowledged: dict[str, int] = {}

    def check(self, server: str, seen: str) -> None:
        """Compare with the newest head that a server has seen. Raises Refused, now and from then on, if it is this
        client's own and not on this ledger."""
        if seen:
            head = Head.parse(seen)
            if not verifies(self._chain.meta["key"], self._client, server, head):
                raise Refused(Code.MALFORMED)  # not ours: says nothing about this ledger
            if not self._chain.knows(server, head.position):
                self._lock(self._gap(server, head.position))
            elif self._evidence() is None:
                self._acknowledged[server] = max(self.acknowledged(server), head.position.charges)
        self.check_lock()

    def check_lock(self) -> None:
        """Raises Refused while entries are known to be missing."""
        if self._evidence() is not None:
            raise Refused(Code.ROLLED_BACK)

    def acknowledged(self, server: str) -> int:
        """How many charges of its branch a server is known to have seen. Those of this ledger that come after may have
        been made beside the missing ones."""
        body = self._chain.newest(server, RESERVE, RECOVER) or {"kind": RESERVE, "seen": 0}
        known = body["charges"] if body["kind"] == RECOVER else body["seen"]
        return max(int(known), self._acknowledged.get(server, 0))

    def missing(self) -> Gap | None:
        """What is known to be missing; None if nothing is. Raises LedgerError for a damaged head file."""
        known = self._evidence()
        if known is not None:
            return known
        noted, head = self._chain.noted(), self._chain.head()
        if noted is None or self._chain.has(noted.position):
            return None
        at = noted.position
        return Gap("", head.charges, at.counter, at.charges, at.hash, fork=at.counter <= head.counter)

    def recover(self, most: Sequence[PrivacyEvent]) -> int:
        """Charge every missing charge as if it had been a round of ``most``, and go on. Returns how many.

        Raises LedgerError if nothing is missing, or for a fork: what another device has answered cannot be counted.
        """
        gap = self.missing()
        if gap is None:
            raise LedgerError("nothing is missing from this ledger", where=str(self._path))
        if gap.fork:
            raise LedgerError(
                "the ledger has a fork: another device has continued a copy of it, and cannot be counted",
                where=str(self._path),
                fix="delete the copy, start a new ledger under another client name, and add both epsilons up",
            )
        charges = [{**event.record(), "steps": event.steps * gap.lost} for event in most if gap.lost]
        body = {"kind": RECOVER, "server": gap.server, "from": gap.start, "events": charges}
        with self._chain.transaction():
            self._chain.append({**body, "counter": gap.counter, "charges": gap.charges, "branch": gap.branch})
            self._chain.put({LOCK: None})
        return gap.lost

    def _gap(self, server: str, seen: Position) -> Gap:
        start, own = min(self.acknowledged(server), seen.charges), self._chain.branch(server)
        return Gap(server, start, seen.counter, seen.charges, seen.hash, fork=seen.counter <= own.counter)

    def _evidence(self) -> Gap | None:
        return evidence(self._chain)

    def _lock(self, gap: Gap) -> None:
        """Write down what shows most. A fork stays one when its other end has come further than this one; what another
        server has to show, it will show again."""
        known = self._evidence()
        further = known is not None and known.server == gap.server and known.counter < gap.counter
        if known is None or (not known.fork and (gap.fork or further)):
            with self._chain.transaction():
                self._chain.put({LOCK: json.dumps(asdict(gap))})
