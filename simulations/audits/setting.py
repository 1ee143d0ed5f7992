"""What is audited, and how hard: the promise of a scenario, and the sizes of the experiments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from fedkd.config import Scenario
from fedkd.errors import PrivacyError
from fedkd.privacy.accounting import epsilon
from fedkd.privacy.contract import Contract

LEAST_NOISE = 0.1
"""Epsilons are computed for no less noise; what more is lost below it is not claimed to be shown."""


@dataclass(frozen=True)
class Sizes:
    """How much an audit tries: releases on each of D and D', canaries, draws of noise, runs and targets of the
    membership attack."""

    trials: int = 1000
    canaries: int = 1000
    draws: int = 40_000
    runs: int = 15
    targets: int = 60

    @classmethod
    def quick(cls) -> Self:
        """For a first look: gross mistakes only."""
        return cls(trials=200, canaries=400, draws=10_000, runs=5, targets=40)


@dataclass(frozen=True)
class Setting:
    """A scenario whose promise is audited. ``base`` is where its relative paths start from."""

    scenario: Scenario
    base: Path
    sizes: Sizes
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        if self.scenario.privacy.mechanism == "none":
            raise PrivacyError(
                "the mechanism 'none' promises nothing that an audit could refute",
                where="key 'privacy.mechanism'",
                fix="audit a mechanism that protects, such as dp_sgd",
            )

    @property
    def delta(self) -> float:
        """The policy's delta."""
        return self.scenario.privacy.delta

    @property
    def quantity(self) -> str:
        """What most bounds are of."""
        return epsilon_at(self.delta)


def epsilon_at(delta: float) -> str:
    """The name of that quantity."""
    return f"epsilon at delta {delta:g}"


def charged(contract: Contract, delta: float, times: float = 1.0) -> float:
    """Epsilon of the whole contract, had its noise been ``times`` smaller; from below where there is hardly any."""
    noise = [max(event.noise_multiplier / times, LEAST_NOISE) for event in contract.events]
    events = contract.schedule(contract.rounds)
    return epsilon([replace(e, noise_multiplier=z) for e, z in zip(events, noise, strict=True)], delta)


def claimed(contract: Contract, delta: float) -> float:
    """What is promised at ``delta``: what the contract charges, at the policy's own delta no more than its limit."""
    if contract.mechanism == "none":
        return math.inf
    spent = charged(contract, delta)
    return min(spent, contract.limits.epsilon) if delta == contract.limits.delta else spent


def progress(tell: Callable[[str], None], what: str, total: int) -> Callable[[int], None]:
    """Tells ``what`` at every quarter of ``total``."""
    marks: Sequence[int] = [max(1, total * part // 4) for part in (1, 2, 3, 4)]

    def step(done: int) -> None:
        if done in marks:
            tell(f"{what}: {100 * done // total} %")

    return step
