"""What a ledger says of itself, for whoever computes epsilon again: in use, or a copy that cannot be written to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedkd.errors import LedgerError
from fedkd.privacy.chain import COMMIT, CONTRACT, RECOVER, RESERVE, SCHEMA, Chain
from fedkd.privacy.contract import Contract
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.identity import Identity
from fedkd.privacy.limits import Past
from fedkd.privacy.verification import Verified, verified


@contextmanager
def reading(path: Path) -> Iterator[tuple[Chain, Verified]]:
    """A verified snapshot of a ledger that may be in use, without changing it. Raises LedgerError."""
    if not path.is_file():
        raise LedgerError("there is no ledger", where=str(path))
    try:
        with closing(_open_to_read(path)) as db:
            chain = Chain(db, path, _identity(path))
            with verified(chain) as found:
                yield chain, found
    except (sqlite3.DatabaseError, KeyError, ValueError) as error:
        raise LedgerError(f"not a readable ledger: {error}", where=str(path)) from None


def history(chain: Chain) -> list[PrivacyEvent]:
    """All that has ever been charged, released or not; equal events are one, with the steps of all."""
    return [
        replace(event, steps=event.steps * count)
        for events, count in chain.charged()
        for event in map(PrivacyEvent.from_record, events)
    ]


def past(chain: Chain) -> Past:
    """What limits a further contract. Lost entries count as another contract, since they may have been of one."""
    begun = [_schedule(body) for body in chain.bodies(CONTRACT, RECOVER)]
    return Past(tuple(history(chain)), len(begun), next((tuple(some) for some in begun if some), ()))


def _schedule(body: dict[str, Any]) -> list[PrivacyEvent]:
    """What was known of a contract before its first answer: of a lost one, what a round of it cost at the most."""
    if body["kind"] == CONTRACT:
        contract = Contract.from_record(body["contract"])
        return contract.schedule(contract.most)
    events = [PrivacyEvent.from_record(event) for event in body["events"]]
    return [replace(event, steps=event.steps // (body["charges"] - body["from"])) for event in events]


def export(chain: Chain) -> dict[str, Any]:
    """Everything that an independent accountant needs. No record ids, no keys, no data."""
    commits = {(body["run"], body["round"]): body for body in chain.bodies(COMMIT)}
    events = []
    for body in chain.bodies(RESERVE):
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
    lost = {"state": "lost", "run": None, "round": None, "digest": None, "bytes": 0}
    for body in chain.bodies(RECOVER):
        events += [{**event, **lost, "part": part} for part, event in enumerate(body["events"])]
    contracts = [{"hash": body["hash"], **body["contract"]} for body in chain.bodies(CONTRACT)]
    known = past(chain)
    return {
        "schema": SCHEMA,
        "client": chain.meta["client"],
        "key": chain.meta["key"],
        "head": chain.head().hash,
        "contracts": contracts,
        "begun": known.contracts,
        "first": [event.record() for event in known.first],
        "events": events,
    }


def _identity(path: Path) -> Identity | None:
    """The client's key, where it lies beside the ledger and may be read: then a ledger of another key is found out."""
    try:
        return Identity.read(path.with_name("identity"))
    except OSError:
        return None


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
