"""How much privacy has been spent, computed anew from exported ledgers, so that a privacy officer can check it.

The fields follow NIST SP 800-226 and Ponomareva et al. 2023 (arXiv:2303.00654, section 5.3). An infinite epsilon is
the string "inf": JSON has no such number, and it is never left blank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from fedkd import __version__
from fedkd.errors import PrivacyError
from fedkd.privacy.accounting import Accountant, ClosedForm, Pld, curve, round_up
from fedkd.privacy.blocks import by_block
from fedkd.privacy.events import PrivacyEvent, Spent, Unit
from fedkd.privacy.limits import Past
from fedkd.privacy.units import adjacency, seen_by
from fedkd.report import statements
from fedkd.report.budget_text import render_text

__all__ = ["SCHEMA", "TOLERANCE", "LedgerExport", "budget_report", "render_text"]

SCHEMA = 1
TOLERANCE = 0.02
"""The largest |PLD - PRV| at which a report is given at all."""

DEFAULT_DELTA = 1e-5
ROUNDS = 200
"""After how many charges of a client an epsilon is computed at most: one takes up to a second."""


Account = Callable[[Unit, Sequence[PrivacyEvent]], float]


class LedgerExport(TypedDict, total=False):
    """What a ledger says of itself: ``client``, ``head``, ``events`` and ``contracts`` always, the rest if known."""

    schema: int
    client: str
    policy: Mapping[str, Any]
    noise: str
    head: str
    contracts: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]


def budget_report(
    exports: Mapping[str, Any],
    *,
    delta: float | None = None,
    provenance: Mapping[str, str] | None = None,
    config_hash: str | None = None,
) -> dict[str, Any]:
    """A JSON-able report of client -> LedgerExport. ``delta`` overrules the policies'; ``provenance`` is by proxy hash.

    Raises PrivacyError if the accountants disagree by more than TOLERANCE, or if an event has a unit, an adjacency or a
    delta that they cannot account for.
    """
    clients = {name: _client(name, exports[name], delta, provenance or {}) for name in sorted(exports)}
    worst = max((float(client["epsilon"]["example"]) for client in clients.values()), default=0.0)
    simulated = any(client["noise"] != "os" for client in clients.values())
    largest = max((client["delta"] for client in clients.values() if client["per_round"]), default=0.0)
    return {
        "schema": SCHEMA,
        "guarantee": statements.guarantee(worst, largest, simulated),
        "holds": not simulated and math.isfinite(worst),
        "epsilon": {"example": number(worst), "client": _client_column(clients.values())},
        "units": statements.UNITS,
        "trust_model": statements.TRUST,
        "outputs_covered": statements.COVERED,
        "outputs_not_covered": statements.NOT_COVERED,
        "floating_point": statements.FLOATING_POINT,
        "audit": "none run",
        "code": {"fedkd": __version__, "config_hash": config_hash or "not given"},
        "clients": clients,
    }


def number(epsilon: float) -> float | str:
    """A number that strict JSON can carry."""
    return "inf" if math.isinf(epsilon) else epsilon


def _client(name: str, export: LedgerExport, delta: float | None, provenance: Mapping[str, str]) -> dict[str, Any]:
    records, contracts = list(export.get("events", ())), list(export.get("contracts", ()))
    events = [PrivacyEvent.from_record(record) for record in records]
    policy: Mapping[str, Any] = export.get("policy") or (contracts[-1]["limits"] if contracts else {})
    delta = float(policy.get("delta", DEFAULT_DELTA)) if delta is None else delta
    account = _account(events, contracts, delta)
    blocks = {block: account("example", some) for block, some in by_block(events).items()}
    example = max(blocks.values())
    noise = _noise(export, contracts)
    return {
        "unit": "example",
        "adjacency": "add_remove",
        "epsilon": {"example": number(example), "client": number(account("client", events))},
        "client_adjacency": adjacency("client", events),
        "delta": delta,
        "limit": {key: policy.get(key, "not given") for key in ("epsilon", "delta")},
        "curve": [{"epsilon": number(at), "delta": chance} for at, chance in curve(seen_by("example", events))],
        "per_round": _per_round(records, events, account),
        "per_block": {block: number(spent) for block, spent in blocks.items()},
        "one_example_in_each_block": number(account("example", events)),
        "charged": {state: sum(r["state"] == state for r in records) for state in ("released", "reserved")},
        "bytes_released": sum(int(record.get("bytes") or 0) for record in records),
        "accountant": _accountant(events, contracts, delta).name,
        "cross_check": _cross_check(name, seen_by("example", events), delta),
        "mechanisms": [part for contract in contracts for part in _mechanisms(contract)],
        "adaptivity": statements.adaptivity(len(contracts), events),
        "noise": noise,
        "randomness": statements.RANDOMNESS.get(noise, statements.UNKNOWN_NOISE),
        "proxies": {str(c["proxy"]): provenance.get(str(c["proxy"]), "not given") for c in contracts},
        "contracts": [{key: contract[key] for key in ("run", "hash", "rounds", "proxy")} for contract in contracts],
        "ledger_head": export["head"],
    }


def _noise(export: LedgerExport, contracts: Sequence[Mapping[str, Any]]) -> str:
    """The weakest source of noise that this ledger has ever used."""
    said = [export.get("noise"), *(contract.get("noise") for contract in contracts)]
    kinds = {str(kind) for kind in said if kind is not None}
    if not kinds:
        return "unknown" if export.get("events") else "os"
    return next(iter(kinds - {"os"}), "os")


def _per_round(
    records: Sequence[Mapping[str, Any]], events: Sequence[PrivacyEvent], account: Account
) -> list[dict[str, Any]]:
    """Cumulative epsilon of one example after each charge, or of ROUNDS of them evenly spread, the last among them.

    A reservation is charged for ever, released or not.
    """
    rounds = []
    stride = math.ceil(len(records) / ROUNDS) or 1
    for count in range(len(records) % stride or stride, len(records) + 1, stride):
        record = records[count - 1]
        spent = max(account("example", some) for some in by_block(events[:count]).values())
        rounds.append({key: record[key] for key in ("run", "round", "state")} | {"epsilon": number(spent)})
    return rounds


def _cross_check(client: str, events: Sequence[PrivacyEvent], delta: float) -> dict[str, Any]:
    """The same composition by another library. Raises PrivacyError if it says otherwise."""
    # imported here: it loads torch
    from fedkd.privacy.opacus_prv import Prv

    ours = Pld().spent(events, delta).epsilon
    check: dict[str, Any] = {"accountant": Prv.name, "tolerance": TOLERANCE, "exact": _exact(events, delta)}
    if not events or math.isinf(ours):
        return check | {"epsilon": None, "difference": None, "agrees": None, "reason": "no finite cost to compose"}
    try:
        other = Prv().spent(events, delta)
    except PrivacyError as error:
        return check | {"epsilon": None, "difference": None, "agrees": None, "reason": error.what}
    return check | {"epsilon": round_up(other.epsilon), **_agreement(client, ours, other)}


def _agreement(client: str, ours: float, other: Spent) -> dict[str, Any]:
    difference = ours - other.epsilon
    if not abs(difference) <= TOLERANCE:
        raise PrivacyError(
            f"two accountants disagree: {Pld.name} says {ours:.4f}, {other.accountant} says {other.epsilon:.4f}",
            where=f"client {client}",
            fix="do not rely on either number; recompute from 'fedkd ledger export --json'",
        )
    return {"difference": round(difference, 6), "agrees": True}


def _exact(events: Sequence[PrivacyEvent], delta: float) -> float | str | None:
    """The closed form where there is one: full batches only."""
    if any(event.sample_rate < 1 for event in events):
        return None
    return number(round_up(ClosedForm().spent(events, delta).epsilon))


def _mechanisms(contract: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry for each kind of release in a round."""
    clip, training = float(contract["training"]["clip"]), contract["training"]
    found = []
    for event in map(PrivacyEvent.from_record, contract["events"]):
        found.append(
            {
                "run": contract["run"],
                "mechanism": event.mechanism,
                "unit": event.unit,
                "adjacency": event.adjacency,
                "clip": clip,
                "sensitivity": clip if event.protects else "inf",
                "derivation": statements.derivation(event, clip),
                "noise_multiplier": event.noise_multiplier,
                "sigma": event.noise_multiplier * clip,
                "nominal_batch": training["nominal_batch"],
                "steps_per_round": event.steps,
                "rounds": contract["rounds"],
                "sample_rate": event.sample_rate,
                "sampler": statements.sampler(event),
            }
        )
    return found


def _account(events: Sequence[PrivacyEvent], contracts: Sequence[Mapping[str, Any]], delta: float) -> Account:
    """Epsilon of some of the events as one unit sees them."""
    accountant = _accountant(events, contracts, delta)
    return lambda unit, some: accountant.spent(seen_by(unit, some), delta).epsilon


def _accountant(events: Sequence[PrivacyEvent], contracts: Sequence[Mapping[str, Any]], delta: float) -> Accountant:
    """What the ledger was limited by: PLD, or a filter where sampled rounds were chosen after answers."""
    first = [replace(e, steps=e.steps * contracts[0]["rounds"]) for e in _contracted(contracts)]
    return Past(tuple(events), len(contracts), tuple(first)).accountant((), delta, another=False)


def _contracted(contracts: Sequence[Mapping[str, Any]]) -> list[PrivacyEvent]:
    return [PrivacyEvent.from_record(record) for record in contracts[0]["events"]] if contracts else []


def _client_column(clients: Any) -> float | str:
    return number(max((float(client["epsilon"]["client"]) for client in clients), default=0.0))
