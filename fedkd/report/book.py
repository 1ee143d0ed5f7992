"""One ledger at a glance, for its owner: what it has agreed to, what it has spent, what is open, and what is amiss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedkd.privacy.events import Unit
from fedkd.privacy.reading import export, reading
from fedkd.privacy.rollback import evidence
from fedkd.report.budget import DEFAULT_DELTA, limits_of
from fedkd.report.numbers import number
from fedkd.report.spend import Account

UNITS: tuple[Unit, ...] = ("example", "client")


def overview(path: Path) -> dict[str, Any]:
    """A JSON-able description of a verified ledger; an infinite epsilon is "inf". Raises LedgerError."""
    with reading(path) as (chain, found):
        exported, lock = export(chain), evidence(chain)
    contracts, limits = exported["contracts"], limits_of(None, exported["contracts"])
    delta = limits.delta or DEFAULT_DELTA
    account = Account.of(exported["client"], exported, delta)
    spent = {unit: max(account.by_block(unit, account.events).values()) for unit in UNITS}
    return {
        "client": exported["client"],
        "key": exported["key"],
        "head": exported["head"],
        "entries": found.head.counter,
        "charges": found.head.charges,
        "servers": {server: at.charges for server, at in found.branches.items() if server},
        "contracts": [_contract(one, exported["events"], one is contracts[-1]) for one in contracts],
        "delta": delta,
        "spent": {unit: number(epsilon) for unit, epsilon in spent.items()},
        "limits": {unit: limits.of(unit) for unit in UNITS},
        "accountant": account.accountant.name,
        "open": _open(exported["events"]),
        "locked": None if lock is None else {"server": lock.server, "lost": lock.lost, "fork": lock.fork},
    }


def _contract(contract: Mapping[str, Any], events: list[dict[str, Any]], newest: bool) -> dict[str, Any]:
    own = [event for event in events if event["run"] == contract["run"] and not event["part"]]
    about = {key: contract[key] for key in ("run", "server", "mechanism", "rounds", "hash")}
    states = [event["state"] for event in own]
    return {**about, "charged": len(own), "released": states.count("released"), "in_force": newest}


def _open(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The charge that an answer may still come of: the newest one, if it has none."""
    last = events[-1] if events and events[-1]["state"] == "reserved" else None
    return None if last is None else {"run": last["run"], "round": last["round"]}


def render(book: Mapping[str, Any]) -> str:
    """The description as lines of text."""
    return "".join(f"{line}\n" for line in _lines(book))


def _lines(book: Mapping[str, Any]) -> Iterator[str]:
    yield f"{book['client']}: {book['entries']} entries, {book['charges']} charges"
    for one in book["contracts"]:
        force = "in force" if one["in_force"] else "closed"
        yield (
            f"  run {one['run']} of server {one['server']}: {one['mechanism']}, {one['charged']} of {one['rounds']} "
            f"rounds charged, {one['released']} released, {force}"
        )
    for unit, epsilon in book["spent"].items():
        limit = book["limits"][unit]
        of = "" if limit is None else f" of {limit:g}"
        shown = "∞" if epsilon == "inf" else f"{epsilon:.4f}"
        yield f"  epsilon of one {unit}: {shown}{of} at delta {book['delta']:g} ({book['accountant']})"
    if book["open"] is not None:
        yield f"  open: round {book['open']['round']} of run {book['open']['run']} is charged and not answered"
    yield f"  {_lock(book['locked'])}"
    yield f"  head {book['head']}"
    yield f"  key  {book['key']}"


def _lock(lock: Mapping[str, Any] | None) -> str:
    if lock is None:
        return "not locked"
    if lock["fork"]:
        return f"LOCKED: server {lock['server']} has seen another continuation of this ledger: it was copied"
    return (
        f"LOCKED: server {lock['server']} has seen up to {lock['lost']} rounds that are missing here; "
        "'fedkd ledger recover' charges them"
    )
