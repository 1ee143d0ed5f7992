"""Parallel composition over disjoint blocks of a client's data: an example pays for the events of its own block only.

It holds for example-unit DP-SGD whose carried state (weights, optimiser, anchors) is itself a private output, and whose
blocks are fixed by the time or a hash of a record, never by a count. Every other event touches all blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedkd.privacy.events import PrivacyEvent

ALL = "all"


def by_block(events: Iterable[PrivacyEvent], also: str = ALL) -> dict[str, list[PrivacyEvent]]:
    """block -> the events that an example in it pays for, of all blocks that an event names and of ``also``; ``all`` is
    an example in a block that no event names."""
    events = list(events)
    named = {also, *(block for event in events for block in _blocks(event))} - {ALL}
    return {block: [event for event in events if _blocks(event) & {block, ALL}] for block in (ALL, *sorted(named))}


def block_of(events: Iterable[PrivacyEvent]) -> str:
    """The one block that all of the events stay in; ``all`` where there is none."""
    touched = frozenset[str]().union(*map(_blocks, events))
    return next(iter(touched)) if len(touched) == 1 else ALL


def _blocks(event: PrivacyEvent) -> frozenset[str]:
    local = event.mechanism == "dp_sgd" and event.unit == "example" and event.blocks
    return frozenset(event.blocks) if local else frozenset({ALL})
