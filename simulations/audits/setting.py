"""What is audited, and how hard: the promise of a scenario, and the sizes of the experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from fedkd.config import Scenario
from fedkd.errors import PrivacyError
from fedkd.privacy import calibration
from fedkd.privacy.accounting import epsilon
from fedkd.privacy.contract import Contract
from fedkd.privacy.events import PrivacyEvent

LEAST_NOISE = 0.1
"""Epsilons are computed for no less noise; what more is lost below it is not claimed to be shown."""


@dataclass(frozen=True)
class Sizes:
    """How much an audit tries: releases on each of D and D', canaries, draws of noise, runs and targets of the
    membership attack."""

    trials: int = 1000
    canaries: int = 1000
    draws: int = 40_000
    runs: int = 24
    targets: int = 60

    @classmethod
    def quick(cls) -> Self:
        """For a first look: gross mistakes only."""
        return cls(trials=200, canaries=400, draws=10_000, runs=10, targets=40)


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
    def claim(self) -> float:
        """The policy's epsilon at its delta."""
        return self.scenario.privacy.epsilon

    @property
    def delta(self) -> float:
        """The policy's delta."""
        return self.scenario.privacy.delta

    @property
    def quantity(self) -> str:
        """What most bounds are of."""
        return epsilon_at(self.delta)

    def one_step(self, classes: int) -> Contract:
        """A contract that spends the whole budget in a single step on the scenario's sampling rate, divisor 1."""
        privacy = self.scenario.privacy
        noise = calibration.noise_multiplier((), privacy.sample_rate, 1, privacy.epsilon, privacy.delta)
        return Contract(
            run="audit",
            proxy="made up",
            examples=1,
            classes=classes,
            rounds=1,
            codec="float32",
            event=PrivacyEvent("dp_sgd", noise, privacy.sample_rate, 1),
            clip=privacy.clip,
            nominal_batch=1.0,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            noise="os",
        )


def epsilon_at(delta: float) -> str:
    """The name of that quantity."""
    return f"epsilon at delta {delta:g}"


def with_less_noise(event: PrivacyEvent, rounds: int, times: float, delta: float) -> float:
    """Epsilon of ``rounds`` such events, had their noise been ``times`` smaller; from below where there is none."""
    noise = max(event.noise_multiplier / times, LEAST_NOISE)
    return epsilon([replace(event, noise_multiplier=noise, steps=event.steps * rounds)], delta)


def progress(tell: Callable[[str], None], what: str, total: int) -> Callable[[int], None]:
    """Tells ``what`` at every quarter of ``total``."""
    marks: Sequence[int] = [max(1, total * part // 4) for part in (1, 2, 3, 4)]

    def step(done: int) -> None:
        if done in marks:
            tell(f"{what}: {done} of {total}")

    return step
