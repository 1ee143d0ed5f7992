"""What a release costs, as values: events, and the epsilon that an accountant makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["example", "client"]
Adjacency = Literal["add_remove", "replace"]


@dataclass(frozen=True)
class PrivacyEvent:
    """One release, as the accountant sees it.

    ``noise_multiplier`` is the standard deviation of the noise over the true L2 sensitivity under ``adjacency``;
    ``steps`` such Gaussians are composed, each on a Poisson sample of the data at ``sample_rate``.
    Sampling amplifies only for one example, added or removed. The mechanism ``none`` releases without protection: its
    epsilon is infinite.
    """

    mechanism: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    unit: Unit = "example"
    adjacency: Adjacency = "add_remove"
    blocks: tuple[str, ...] = ("all",)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ValueError("noise_multiplier must be finite and not negative")
        if not 0 < self.sample_rate <= 1 or self.steps < 1:
            raise ValueError("sample_rate must be in (0, 1] and steps at least 1")
        if self.sample_rate < 1 and (self.unit, self.adjacency) != ("example", "add_remove"):
            raise ValueError("amplification by sampling is accounted for one example, added or removed, alone")

    @property
    def protects(self) -> bool:
        """Whether the event has a finite cost at all."""
        return self.mechanism != "none" and self.noise_multiplier > 0

    def record(self) -> dict[str, Any]:
        """JSON-able form; ``from_record`` is its inverse."""
        return {
            "mechanism": self.mechanism,
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.sample_rate,
            "steps": self.steps,
            "unit": self.unit,
            "adjacency": self.adjacency,
            "blocks": list(self.blocks),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PrivacyEvent:
        """Inverse of ``record``; other keys are ignored."""
        fields = {name: record[name] for name in cls.__dataclass_fields__ if name != "blocks"}
        return cls(**fields, blocks=tuple(record["blocks"]))


@dataclass(frozen=True)
class Spent:
    """(epsilon, delta) for one unit under one adjacency, and who computed it."""

    epsilon: float
    delta: float
    accountant: str


def merged(events: Iterable[PrivacyEvent]) -> dict[tuple[float, float], int]:
    """(noise_multiplier, sample_rate) -> total steps. Composition commutes, so equal steps may be merged."""
    total: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.noise_multiplier, event.sample_rate)
        total[key] = total.get(key, 0) + event.steps
    return total
