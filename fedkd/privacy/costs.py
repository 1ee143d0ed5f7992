"""What one round of each mechanism costs, and how much noise that puts on released integers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedkd.config import Mechanism, Policy
from fedkd.privacy.calibration import Shape
from fedkd.privacy.discrete import variance_for
from fedkd.privacy.events import Adjacency, PrivacyEvent, Unit
from fedkd.wire import Offer

GRID = 16
"""A probability of a 'gaussian' answer is an integer of at most this: far finer than its noise."""


@dataclass(frozen=True)
class Part:
    """``steps`` Gaussians of noise multiplier ``scale`` times the noise that is sought; on integers whose squared L2
    sensitivity is ``squared`` (None: the noise is in the training)."""

    scale: float
    sample_rate: float
    steps: int
    squared: int | None


@dataclass(frozen=True)
class Cost:
    """One round of a mechanism: the parts that it releases, and whom they protect."""

    mechanism: Mechanism
    unit: Unit
    adjacency: Adjacency
    parts: tuple[Part, ...]
    blocks: tuple[str, ...] = ("all",)

    @property
    def shape(self) -> Shape:
        """The parts up to their noise; empty for no protection."""
        return tuple((part.scale, part.sample_rate, part.steps) for part in self.parts if part.scale)

    def events(self, noise: float) -> tuple[PrivacyEvent, ...]:
        """The events of one round."""
        return tuple(
            PrivacyEvent(
                self.mechanism, noise * p.scale, p.sample_rate, p.steps, self.unit, self.adjacency, self.blocks
            )
            for p in self.parts
        )

    def variances(self, noise: float) -> tuple[int, ...]:
        """Variance of the noise on each part's integers: what may be charged as its events."""
        return tuple(variance_for(noise * p.scale, p.squared) for p in self.parts if p.squared is not None)


def cost_of(mechanism: Mechanism, policy: Policy, offer: Offer, block: str) -> Cost:
    """What a round of that offer costs under that policy.

    ``gaussian``: rows of the simplex on a grid, each of diameter sqrt(2). ``sum``: one-hot rows, of norm 1. ``votes``:
    one vote changes two counts by 1, and the largest count by 1 (Papernot et al. 2018, arXiv:1802.08908, section 4),
    for every query that is asked: the worst case, in which all are answered.
    """
    q = offer.queries
    if mechanism == "dp_sgd":
        step = Part(1.0, policy.sample_rate, policy.steps, None)
        return Cost(mechanism, "example", "add_remove", (step,), (block,))
    if mechanism == "gaussian":
        return Cost(mechanism, "client", "replace", (Part(1.0, 1.0, 1, 2 * q * GRID**2),))
    if mechanism == "sum":
        return Cost(mechanism, "client", "add_remove", (Part(1.0, 1.0, 1, q),))
    if mechanism == "votes":
        answer = Part(1 / math.sqrt(2), 1.0, q, 2)
        test = (Part(policy.noise_ratio, 1.0, q, 1),) if offer.aggregate == "confident_votes" else ()
        sharded = policy.shards > 1
        return Cost(
            mechanism, "example" if sharded else "client", "add_remove" if sharded else "replace", (*test, answer)
        )
    return Cost(mechanism, "example", "add_remove", (Part(0.0, 1.0, 1, None),))
