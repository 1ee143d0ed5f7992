"""What one round of each mechanism costs, and how much noise that puts on released integers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedkd.config import Mechanism, Policy
from fedkd.errors import PrivacyError
from fedkd.privacy.blocks import ALL
from fedkd.privacy.calibration import Shape
from fedkd.privacy.discrete import variance_for
from fedkd.privacy.events import Adjacency, PrivacyEvent, Unit

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
    blocks: tuple[str, ...] = (ALL,)

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

    def loud(self, least: float) -> float:
        """The noise with which every event has at least ``least``."""
        smallest = min(scale for scale, _, _ in self.shape)
        noise = least / smallest
        while noise * smallest < least:  # where the quotient was rounded down
            noise = math.nextafter(noise, math.inf)
        return noise

    def variances(self, noise: float) -> tuple[int, ...]:
        """Variance of the noise on each part's integers: what may be charged as its events."""
        return tuple(variance_for(noise * p.scale, p.squared) for p in self.parts if p.squared is not None)


def cost_of(mechanism: Mechanism, policy: Policy, queries: int, aggregate: str, block: str = ALL) -> Cost:
    """What a round costs under that policy, in which so many proxy examples are asked for that aggregate.

    ``gaussian``: rows of the simplex on a grid, each of diameter sqrt(2). ``sum``: one-hot rows, of norm 1. ``votes``:
    one vote changes two counts by 1, and the largest count by 1 (Papernot et al. 2018, arXiv:1802.08908, section 4),
    for every query that is asked: the worst case, in which all are answered.
    """
    q = queries
    if mechanism == "dp_sgd":
        step = Part(1.0, policy.sample_rate, policy.steps, None)
        return Cost(mechanism, "example", "add_remove", (step,), (block,))
    if mechanism == "gaussian":
        return Cost(mechanism, "client", "replace", (Part(1.0, 1.0, 1, 2 * q * GRID**2),))
    if mechanism == "sum":
        return Cost(mechanism, "client", "add_remove", (Part(1.0, 1.0, 1, q),))
    if mechanism == "votes":
        answer = Part(1 / math.sqrt(2), 1.0, q, 2)
        test = (Part(policy.noise_ratio, 1.0, q, 1),) if aggregate == "confident_votes" else ()
        sharded = policy.shards > 1
        return Cost(
            mechanism, "example" if sharded else "client", "add_remove" if sharded else "replace", (*test, answer)
        )
    return Cost(mechanism, "example", "add_remove", (Part(0.0, 1.0, 1, None),))


def most(policy: Policy, proxies: int, known: Iterable[PrivacyEvent] = ()) -> tuple[PrivacyEvent, ...]:
    """What a round on a proxy set of so many examples has cost at the most, whichever of the policy's mechanisms it was
    of: the events of all of them. Beside them those of the ``known`` contracts, since a lost round may have been of one
    that was drawn up under an earlier policy. Raises PrivacyError where the policy leaves that open."""
    mechanisms = (policy.mechanism, *policy.also)
    if "none" in mechanisms:
        return cost_of("none", policy, proxies, "mean").events(0.0)
    if not policy.min_noise:
        raise PrivacyError(
            "the policy does not say how little noise a lost round may have had, so that nothing can be charged for it",
            fix="set 'min_noise' to the least that any policy of this client has ever named; if none did, the ledger "
            "stays locked: start a new one under another client name, and count the epsilons of both",
        )
    queries = proxies if policy.max_answers is None else policy.max_answers
    if policy.max_answers is None and len(policy.proxies) > 1 and "votes" in mechanisms:
        raise PrivacyError(
            "the policy allows several proxy sets, and does not say how many answers a lost round may have had",
            fix="set 'max_answers' to the most that any policy of this client has ever allowed",
        )
    costs = [cost_of(mechanism, policy, queries, "confident_votes") for mechanism in mechanisms]
    own = [event for cost in costs for event in cost.events(cost.loud(policy.min_noise))]
    earlier = [replace(event, blocks=(ALL,)) for event in dict.fromkeys(known)]
    return (*own, *(event for event in earlier if not any(_covers(one, event) for one in own)))


def _covers(one: PrivacyEvent, other: PrivacyEvent) -> bool:
    """Whether ``one`` costs at least as much, whatever comes beside it."""
    louder = replace(other, noise_multiplier=one.noise_multiplier, steps=one.steps)
    return one == louder and other.noise_multiplier >= one.noise_multiplier and other.steps <= one.steps
