"""What one client's charges have spent, for each unit apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkd.errors import PrivacyError
from fedkd.privacy.accounting import CURVE_DELTAS, Accountant, ClosedForm, Pld, round_up
from fedkd.privacy.blocks import ALL, by_block
from fedkd.privacy.events import PrivacyEvent, Unit
from fedkd.privacy.ledger import Ledger
from fedkd.privacy.limits import Past
from fedkd.privacy.units import adjacency, seen_by
from fedkd.report.numbers import Number, number
from fedkd.report.schema import Charge, CrossCheck, Limits, Point, Spend

TOLERANCE = 0.02
"""The largest difference between two accountants at which a report is given at all."""

SAME = ("mechanism", "noise_multiplier", "sample_rate", "unit", "adjacency")

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Account:
    """A client's charges, and what makes an epsilon of them: the accountant that limited its ledger."""

    client: str
    charges: Sequence[Records]
    events: Sequence[PrivacyEvent]
    delta: float
    accountant: Accountant

    @classmethod
    def of(cls, client: str, export: Mapping[str, Any], delta: float) -> Account:
        """Of what a ledger exports."""
        past = past_of(export)
        accountant = past.accountant((), delta, another=False)
        return cls(client, charged(export.get("events", ())), past.events, delta, accountant)

    def epsilon(self, unit: Unit, events: Iterable[PrivacyEvent]) -> float:
        """Of some of the events, as a unit sees them."""
        return self.accountant.spent(seen_by(unit, events), self.delta).epsilon

    def blocks(self, unit: Unit, events: Sequence[PrivacyEvent]) -> dict[str, Sequence[PrivacyEvent]]:
        """block -> events that one unit in it pays for; a whole client is in all blocks."""
        return {**by_block(events)} if unit == "example" else {ALL: events}

    def by_block(self, unit: Unit, events: Sequence[PrivacyEvent]) -> dict[str, float]:
        """block -> epsilon of one unit in it; of blocks that were charged alike it is computed once."""
        known: dict[tuple[PrivacyEvent, ...], float] = {}
        found = {}
        for block, some in self.blocks(unit, events).items():
            alike = tuple(sorted((replace(event, blocks=(ALL,)) for event in some), key=repr))
            if alike not in known:
                known[alike] = self.epsilon(unit, some)
            found[block] = known[alike]
        return found


def spent_by_an_example(ledger: Path) -> tuple[Number | None, float | None]:
    """ε and δ that a ledger has charged for one example, in whichever block; None where there is no ledger."""
    if not ledger.is_file():
        return None, None
    export = Ledger.read(ledger)
    if not export["contracts"]:
        return 0.0, None
    delta = float(export["contracts"][-1]["limits"]["delta"])
    account = Account.of(export["client"], export, delta)
    return number(max(account.by_block("example", account.events).values())), delta


def past_of(export: Mapping[str, Any]) -> Past:
    """What an exported ledger has charged, equal events taken together."""
    contracts = export.get("contracts", ())
    first = [PrivacyEvent.from_record(event) for event in contracts[0]["events"]] if contracts else []
    schedule = [replace(event, steps=event.steps * contracts[0]["rounds"]) for event in first]
    if "first" in export:  # a ledger that has been recovered counts what was lost as a contract, and may begin with it
        schedule = [PrivacyEvent.from_record(event) for event in export["first"]]
    events = merge(export.get("events", ()))
    return Past(tuple(events), export.get("begun", len(contracts)), tuple(schedule))


def merge(records: Iterable[Mapping[str, Any]]) -> list[PrivacyEvent]:
    """The events of exported rows, equal ones as one with the steps of all: composition commutes."""
    rows: dict[tuple[object, ...], Mapping[str, Any]] = {}
    steps: dict[tuple[object, ...], int] = {}
    for record in records:
        key = (*(record[name] for name in SAME), *record["blocks"])
        rows.setdefault(key, record)
        steps[key] = steps.get(key, 0) + record["steps"]
    return [PrivacyEvent.from_record({**row, "steps": steps[key]}) for key, row in rows.items()]


def charged(records: Records) -> list[Records]:
    """Rows by charge: a charge of several parts has as many rows."""
    charges: list[list[Mapping[str, Any]]] = []
    for record in records:
        if not record.get("part"):
            charges.append([])
        charges[-1].append(record)
    return [*charges]


def spend(account: Account, unit: Unit, limits: Limits, points: int) -> Spend:
    """What one unit has spent, with epsilon after at most ``points`` of the charges.

    Raises PrivacyError if two accountants disagree by more than TOLERANCE, or for events that they cannot account for.
    """
    blocks = account.by_block(unit, account.events)
    epsilon, limit = max(blocks.values()), limits.of(unit)
    return Spend(
        unit=unit,
        adjacency=adjacency(unit, account.events),
        epsilon=number(epsilon),
        limit=limit,
        left=None if limit is None else max(limit - epsilon, 0.0),
        accountant=account.accountant.name,
        cross_checks=_cross_checks(account, unit, blocks),
        curve=_curve(account, unit),
        per_round=_per_round(account, unit, points),
        per_block={block: number(spent) for block, spent in blocks.items()},
        limit_per_block=_limits(unit, limits, blocks),
        one_example_in_each_block=number(account.epsilon(unit, account.events)) if unit == "example" else None,
    )


def _limits(unit: Unit, limits: Limits, blocks: Iterable[str]) -> dict[str, float]:
    own, usual = limits.blocks if unit == "example" else {}, limits.example if unit == "example" else limits.client
    return {} if usual is None else {block: own.get(block, usual) for block in blocks}


def _curve(account: Account, unit: Unit) -> list[Point]:
    """At each delta the largest epsilon over blocks."""
    seen = [seen_by(unit, some) for some in account.blocks(unit, account.events).values()]
    return [
        Point(epsilon=number(max(account.accountant.spent(some, delta).epsilon for some in seen)), delta=delta)
        for delta in CURVE_DELTAS
    ]


def _per_round(account: Account, unit: Unit, points: int) -> list[Charge]:
    """Epsilon after each charge, or after ``points`` of them evenly spread, the last among them. A reservation is
    charged for ever, released or not."""
    rounds: list[Charge] = []
    events: list[PrivacyEvent] = []
    charges = account.charges
    stride = math.ceil(len(charges) / points) or 1
    for count in range(len(charges) % stride or stride, len(charges) + 1, stride):
        new = (row for charge in charges[max(count - stride, 0) : count] for row in charge)
        events = merge([*(event.record() for event in events), *new])
        spent = max(account.by_block(unit, events).values())
        about = {key: charges[count - 1][0][key] for key in ("run", "round", "state")}
        rounds.append(Charge(charge=count, **about, epsilon=number(spent)))
    return rounds


def _cross_checks(account: Account, unit: Unit, blocks: Mapping[str, float]) -> list[CrossCheck]:
    """The composition of the block that has spent most: by PLD where a filter has limited it, by another library, and
    by the closed form."""
    # imported here: it loads torch
    from fedkd.privacy.opacus_prv import Prv

    worst = max(blocks, key=lambda block: blocks[block])
    seen = seen_by(unit, account.blocks(unit, account.events)[worst])
    pld = Pld().spent(seen, account.delta).epsilon
    if not seen or math.isinf(pld):
        return [_unavailable(Prv.name, "no finite cost to compose")]
    adaptive = [] if account.accountant.name == Pld.name else [_in_advance(pld)]
    return [*adaptive, *(_check(account, seen, pld, accountant) for accountant in (Prv(), ClosedForm()))]


def _check(account: Account, seen: Sequence[PrivacyEvent], pld: float, accountant: Accountant) -> CrossCheck:
    try:
        other = accountant.spent(seen, account.delta).epsilon
    except PrivacyError as error:
        return _unavailable(accountant.name, error.what)
    if not abs(pld - other) <= TOLERANCE:
        raise PrivacyError(
            f"two accountants disagree: {Pld.name} says {pld:.4f}, {accountant.name} says {other:.4f}",
            where=f"client {account.client}",
            fix="do not rely on either number; recompute from 'fedkd ledger export --json'",
        )
    return CrossCheck(
        accountant=accountant.name,
        epsilon=round_up(other),
        compared_with=Pld.name,
        difference=round(pld - other, 6),
        tolerance=TOLERANCE,
        reason=None,
    )


def _unavailable(accountant: str, reason: str) -> CrossCheck:
    return CrossCheck(
        accountant=accountant, epsilon=None, compared_with=None, difference=None, tolerance=TOLERANCE, reason=reason
    )


def _in_advance(pld: float) -> CrossCheck:
    return CrossCheck(
        accountant=Pld.name,
        epsilon=pld,
        compared_with=None,
        difference=None,
        tolerance=TOLERANCE,
        reason="what it would be if all had been fixed in advance; contracts that were concluded after answers were "
        "not, so that the larger number of the filter holds",
    )
