"""What ledgers export, of contracts that an agent would really draw up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedkd.config import Policy
from fedkd.privacy.contract import Contract, draw_up
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.limits import Past
from tests import builders


def agreed(past: Sequence[Contract] = (), block: str = "all", rounds: int = 2, **policy: Any) -> Contract:
    """The contract of such a policy, after the whole schedules of those before it."""
    mechanism = policy.get("mechanism", "dp_sgd")
    aggregate = {"sum": "sum", "votes": "confident_votes"}.get(mechanism, "mean")
    offer = builders.offer(run=f"run-{len(past)}", examples=100, rounds=rounds, aggregate=aggregate)
    settings = {"epsilon": 3.0, "nominal_examples": 100, "proxies": offer.proxy, "accept_low_utility": True, **policy}
    events = tuple(event for one in past for event in one.schedule(one.rounds))
    first = tuple(past[0].schedule(past[0].rounds)) if past else ()
    return draw_up(Policy(**settings), offer, Past(events, len(past), first), block)


def dp_sgd(z: float = 12.0, rate: float = 1.0, steps: int = 10, rounds: int = 2, **changes: Any) -> Contract:
    """A contract to a given noise multiplier."""
    return builders.contract(PrivacyEvent("dp_sgd", z, rate, steps), rounds=rounds, **changes)


def none(rounds: int = 2) -> Contract:
    """A contract to no privacy."""
    return builders.contract(PrivacyEvent("none", 0.0, 1.0, 10), rounds=rounds)


def export(*contracts: Contract, client: str = "a", done: int | None = None, released: int = 10**9) -> dict[str, Any]:
    """A ledger charged for ``done`` rounds of each contract (None: all), the first ``released`` of them answered."""
    events = [
        {
            **event.record(),
            "state": "released" if round <= released else "reserved",
            "run": one.run,
            "round": round,
            "part": part,
            "digest": None,
            "bytes": 9 if part == 0 else 0,
        }
        for one in contracts
        for round in range(1, (one.rounds if done is None else done) + 1)
        for part, event in enumerate(one.events)
    ]
    records = [{"hash": one.hash, **one.record()} for one in contracts]
    return {"schema": 2, "client": client, "key": "k", "head": "h" * 64, "contracts": records, "events": events}
