"""A policy's limits, and whether events stay within them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedkd.privacy.accounting import Accountant, Pld, adaptive
from fedkd.privacy.blocks import ALL, by_block
from fedkd.privacy.events import PrivacyEvent, Unit
from fedkd.privacy.filters import first_choice
from fedkd.privacy.units import seen_by

Column = tuple[Unit, float, list[PrivacyEvent]]


@dataclass(frozen=True)
class Limits:
    """``epsilon`` for one ``unit``: the client, or an example in whichever block; ``client`` for all that the client
    holds; ``lifetime`` for all blocks together, sequentially composed. None: no such limit."""

    unit: Unit
    epsilon: float
    delta: float
    client: float | None = None
    lifetime: float | None = None

    def admits(self, events: Sequence[PrivacyEvent], accountant: Accountant, block: str = ALL) -> bool:
        """Whether all limits hold for ``events``, the newest of them in ``block``, by that accountant.

        Other blocks have limits of their own, which held when they were charged, and nothing is added to them.
        """
        return all(
            accountant.spent(seen_by(unit, some), self.delta).epsilon <= limit
            for unit, limit, some in self.columns(events, block)
        )

    def columns(self, events: Sequence[PrivacyEvent], block: str = ALL) -> list[Column]:
        """Each limit that there is, with its unit and the events that it bounds; of blocks only those that a further
        event in ``block`` would add to."""
        blocks = by_block([*events], also=block)
        touched = list(blocks.values()) if block == ALL else [blocks[block]]
        own = [list(events)] if self.unit == "client" else touched
        found: list[Column] = [(self.unit, self.epsilon, some) for some in own]
        found += [("client", self.client, list(events))] if self.client is not None else []
        return found + ([("example", self.lifetime, list(events))] if self.lifetime is not None else [])


@dataclass(frozen=True)
class Past:
    """What a ledger has charged: ``events`` of ``contracts`` contracts, the ``first`` over its whole schedule."""

    events: tuple[PrivacyEvent, ...] = ()
    contracts: int = 0
    first: tuple[PrivacyEvent, ...] = ()

    def accountant(self, more: Sequence[PrivacyEvent], delta: float, *, another: bool) -> Accountant:
        """What bounds this past and ``more``, of ``another`` contract or of the newest: tight for schedules fixed in
        advance, a filter where sampled rounds may depend on earlier answers."""
        if adaptive(self.contracts + another, [*self.events, *more]):
            return first_choice(seen_by("example", self.first or more), delta)
        return Pld()
