"""Whether a ledger's entries are those that its client has written, all of them, in their order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedkd.errors import LedgerError
from fedkd.privacy.chain import SIGNATURE, START, TABLES, Chain, after, branch_after, link
from fedkd.privacy.identity import Head, Position, verifies

INTACT = "put the newest intact copy of the file back; 'fedkd ledger recover' then charges what it lacks"
NEWEST = "put the newest copy back, or charge what is missing with 'fedkd ledger recover'"


@dataclass(frozen=True)
class Verified:
    """What has been found intact: the newest position of the chain and of every branch (of the server ``""``: what was
    lost with whichever servers), and how many entries the head file is behind; None: there is no such file."""

    head: Position
    branches: dict[str, Position]
    behind: int | None


@contextmanager
def verified(chain: Chain, *, damaged: bool = False) -> Iterator[Verified]:
    """A snapshot whose chain and branches have been walked. Raises LedgerError at the first entry that does not fit,
    for a head without the client's signature and, unless ``damaged``, for what is older than its head file."""
    # first: who is writing meanwhile writes an entry before the file
    noted = None if damaged else chain.noted()
    with chain.snapshot():
        _check_tables(chain)
        head = _check_links(chain)
        _check_signature(chain, head)
        try:
            branches = _check_branches(chain)
        except (KeyError, TypeError, ValueError):
            raise _altered(chain, "an entry is none of this program's") from None
        if noted is not None and not chain.has(noted.position):
            raise _rolled_back(chain, noted.position)
        yield Verified(head, branches, None if noted is None else head.counter - noted.position.counter)


def _check_tables(chain: Chain) -> None:
    """Else a query might find other entries than those that are walked here."""
    query = "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    if {sql for (sql,) in chain.db.execute(query)} != set(TABLES):
        raise _altered(chain, "its tables are not as they were made")
    if chain.db.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
        raise _altered(chain, "its tables and their indexes contradict each other")


def _check_links(chain: Chain) -> Position:
    head = START
    rows = chain.db.execute("SELECT seq, body, prev, charges, hash FROM entries ORDER BY seq")
    for seq, text, prev, charges, mark in rows:
        if (seq, prev, mark) != (head.counter + 1, head.hash, link(head.hash, text)):
            raise _altered(chain, f"its hash chain breaks at entry {head.counter + 1}")
        head = Position(seq, charges, mark)
    return head


def _check_signature(chain: Chain, head: Position) -> None:
    meta, signature = chain.meta, chain.state(SIGNATURE)
    if head != START and not (signature and verifies(meta["key"], meta["client"], "", Head(head, signature))):
        raise _altered(chain, "its head is not signed by this client")
    if chain.identity is not None and chain.identity.public != meta["key"]:
        raise LedgerError(
            "the ledger belongs to another identity key",
            where=str(chain.path),
            fix="put the client's own identity file back beside it",
        )


def _check_branches(chain: Chain) -> dict[str, Position]:
    """The numbers beside the hashes, and the branches, follow from the bodies."""
    head, branches = START, dict[str, Position]()
    rows = chain.db.execute("SELECT body, charges, counter, branch_charges, branch FROM entries ORDER BY seq")
    for text, charges, *branch in rows:
        body = json.loads(text)
        server = body["server"]
        head, new = after(head, body, text), branch_after(branches.get(server, START), body, text)
        if charges != head.charges or Position(*branch) != new:
            raise _altered(chain, f"the branch of server {server!r} breaks at entry {head.counter}")
        branches[server] = new
    return branches


def _altered(chain: Chain, how: str) -> LedgerError:
    return LedgerError(f"the ledger has been altered: {how}", where=str(chain.path), fix=INTACT)


def _rolled_back(chain: Chain, noted: Position) -> LedgerError:
    return LedgerError(
        f"the ledger has been rolled back: entry {noted.counter} is missing or another one",
        where=str(chain.path),
        fix=NEWEST,
    )
