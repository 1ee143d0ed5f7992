"""Parallel composition over disjoint blocks of a client's data: an example pays for the events of its own block only.

It holds for example-unit DP-SGD whose carried state (weights, optimiser, anchors) is itself a private output, and whose
blocks are fixed by the time or a hash of a record, never by a count. Every other event touches all blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedkd.privacy.accounting import Pld
from fedkd.privacy.events import PrivacyEvent, Spent

ALL = "all"


def by_block(events: Iterable[PrivacyEvent], delta: float) -> dict[str, Spent]:
    """block -> what an example in it has spent, by PLD; ``all`` is an example in a block that no event names.

    Raises PrivacyError as Pld does.
    """
    events = list(events)
    named = {block for event in events for block in _blocks(event)} - {ALL}
    return {
        block: Pld().spent([event for event in events if _blocks(event) & {block, ALL}], delta)
        for block in (ALL, *sorted(named))
    }


def per_example(events: Iterable[PrivacyEvent], delta: float) -> Spent:
    """What one example has spent: the maximum over blocks."""
    return max(by_block(events, delta).values(), key=lambda spent: spent.epsilon)


def _blocks(event: PrivacyEvent) -> frozenset[str]:
    local = event.mechanism == "dp_sgd" and event.unit == "example" and event.blocks
    return frozenset(event.blocks) if local else frozenset({ALL})
