"""One ledger, two units: what its events cost one example, and what they cost everything that a client holds.

Two units are never put into one number. An event that protects a whole client also protects each of its examples; one
that protects an example says nothing about the whole client.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from fedkd.privacy.events import Adjacency, PrivacyEvent, Unit

REPLACED = math.sqrt(2)
"""A replaced client moves a one-hot row by the simplex's diameter, sqrt(2); an added or removed one by 1."""


def seen_by(unit: Unit, events: Iterable[PrivacyEvent]) -> list[PrivacyEvent]:
    """The events as they count for one ``unit``; all have that unit, and one adjacency.

    For an example a client-unit event counts with its replacement sensitivity: another example may change every answer
    of its client. For the client an example-unit event has no bound. The client's column is add/remove where all its
    events are, else replace, under which add/remove events count sqrt(2) times.
    """
    events = list(events)
    if unit == "example":
        return [_for_example(event) for event in events]
    replaced = any(event.unit == "client" and event.adjacency == "replace" for event in events)
    return [_for_client(event, replaced) for event in events]


def adjacency(unit: Unit, events: Iterable[PrivacyEvent]) -> Adjacency:
    """The adjacency of that unit's column."""
    seen = seen_by(unit, events)
    return seen[0].adjacency if seen else "add_remove"


def _for_example(event: PrivacyEvent) -> PrivacyEvent:
    if event.unit == "example":
        return event
    return replace(_replacement(event), unit="example", adjacency="add_remove")


def _for_client(event: PrivacyEvent, replaced: bool) -> PrivacyEvent:
    if event.unit == "example":
        kind: Adjacency = "replace" if replaced else "add_remove"
        return PrivacyEvent("none", 0.0, 1.0, event.steps, "client", kind, event.blocks)
    return _replacement(event) if replaced else event


def _replacement(event: PrivacyEvent) -> PrivacyEvent:
    """The same release, with its noise relative to the change that a replaced client makes."""
    if event.adjacency == "replace":
        return event
    return replace(event, noise_multiplier=event.noise_multiplier / REPLACED, adjacency="replace")
