"""What turns bounded private quantities into a release, and declares what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedkd.errors import PrivacyError
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.noise import NoiseSource
from fedkd.tensors import canonical, digest
from fedkd.wire import Released, Rows, quantise

SIMPLEX_NORM = 1.0  # the largest L2 norm of a probability row


@dataclass(frozen=True)
class Bounded:
    """Rows [examples, classes] of probabilities, and the bound on each row's L2 norm that was enforced."""

    rows: Rows
    norm: float


class Mechanism(Protocol):
    """Built for one privacy event, which has been reserved."""

    event: PrivacyEvent

    def bound(self, rows: Rows) -> Bounded: ...

    def release(self, bounded: Bounded, noise: NoiseSource, codec: str) -> Released: ...


class _PostProcessing:
    """Answers of a student whose training has been paid for: post-processing, so that no noise is added here."""

    def __init__(self, event: PrivacyEvent) -> None:
        self.event = event

    def bound(self, rows: Rows) -> Bounded:
        """Project finite rows onto the simplex. Raises PrivacyError for rows that are not finite."""
        wide = np.clip(rows.astype(np.float64), 0.0, None)
        if not np.isfinite(wide).all():
            raise PrivacyError("the student's answers are not finite", fix="lower the learning rate")
        total = wide.sum(axis=1, keepdims=True)
        return Bounded(np.where(total > 0, wide / np.where(total > 0, total, 1), 1 / wide.shape[1]), SIMPLEX_NORM)

    def release(self, bounded: Bounded, noise: NoiseSource, codec: str) -> Released:
        """The rows as the codec carries them, under the event that paid for them."""
        return Released(quantise(bounded.rows, codec), digest(canonical(self.event.record())))


class DpSgd(_PostProcessing):
    """The noise is in the student's gradients (Abadi et al. 2016, arXiv:1607.00133): one example, add/remove."""

    def __init__(self, event: PrivacyEvent) -> None:
        if not (event.noise_multiplier > 0 and math.isfinite(event.noise_multiplier)):
            raise PrivacyError("DP-SGD without noise protects nothing", fix="choose the mechanism 'none' to say so")
        super().__init__(event)


class Unprotected(_PostProcessing):
    """The mechanism ``none``: no privacy, epsilon is infinite."""


MECHANISMS: dict[str, type[DpSgd] | type[Unprotected]] = {"dp_sgd": DpSgd, "none": Unprotected}
