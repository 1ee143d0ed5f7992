"""What turns bounded private quantities into a release, and declares what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedkd.codecs import pack
from fedkd.errors import PrivacyError
from fedkd.privacy.contract import Contract
from fedkd.privacy.costs import GRID
from fedkd.privacy.integers import on_grid, one_hot
from fedkd.privacy.noise import NoiseSource
from fedkd.tensors import canonical, digest
from fedkd.wire import MAX_NOISED, Released


@dataclass(frozen=True)
class Bounded:
    """Rows [queries, classes] and the bound on the L2 norm by which they change with one unit of private data."""

    rows: NDArray[Any]
    sensitivity: float


class Mechanism(Protocol):
    """Built for one contract, a round of which has been reserved."""

    def __init__(self, contract: Contract) -> None: ...

    def bound(self, rows: NDArray[np.float32]) -> Bounded:
        """What may be released of the students' probabilities [students, queries, classes]."""

    def release(self, bounded: Bounded, noise: NoiseSource) -> Released:
        """The only form in which rows can be sent."""


class _Charged:
    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._event = digest(canonical([event.record() for event in contract.events]))


class _PostProcessing(_Charged):
    """Answers of a student whose training has been paid for: post-processing, so that no noise is added here."""

    def bound(self, rows: NDArray[np.float32]) -> Bounded:
        """Project finite rows onto the simplex. Raises PrivacyError for rows that are not finite."""
        return Bounded(simplex(_only(rows)), math.inf)

    def release(self, bounded: Bounded, noise: NoiseSource) -> Released:
        """The rows as the codec carries them, under the events that paid for them."""
        return Released(pack(bounded.rows, self._contract.codec), self._event)


class DpSgd(_PostProcessing):
    """The noise is in the student's gradients (Abadi et al. 2016, arXiv:1607.00133): one example, add/remove."""

    def __init__(self, contract: Contract) -> None:
        if not all(math.isfinite(event.noise_multiplier) and event.noise_multiplier > 0 for event in contract.events):
            raise PrivacyError("DP-SGD without noise protects nothing", fix="choose the mechanism 'none' to say so")
        super().__init__(contract)


class Unprotected(_PostProcessing):
    """The mechanism ``none``: no privacy, epsilon is infinite."""


class Gaussian(_Charged):
    """Discrete Gaussian noise on the answers themselves (Canonne, Kamath & Steinke 2020, arXiv:2004.00010, theorem 14).

    Rows are probabilities on a grid of integers that sum to GRID: two of them differ by at most sqrt(2) GRID.
    """

    def bound(self, rows: NDArray[np.float32]) -> Bounded:
        """Rows on the grid. Raises PrivacyError for rows that are not finite."""
        return Bounded(on_grid(simplex(_only(rows)), GRID), math.sqrt(2 * rows.shape[1]) * GRID)

    def release(self, bounded: Bounded, noise: NoiseSource) -> Released:
        """Integers with noise of the contract's variance."""
        (variance,) = self._contract.variances
        noised = bounded.rows + noise.discrete_gaussian(bounded.rows.shape, variance)
        # what nobody ever draws must not wrap around
        return Released(np.clip(noised, -MAX_NOISED, MAX_NOISED).astype(np.int32), self._event)


class Votes(_Charged):
    """One-hot votes, bare: the trusted aggregator adds the noise that the contract asks for. ``sum`` and ``votes``.

    The integers may become shares modulo 2^32 once aggregation is secure.
    """

    def bound(self, rows: NDArray[np.float32]) -> Bounded:
        """One vote a query and student: counts [queries, classes]. Raises PrivacyError for rows that are not finite."""
        if len(rows) != self._contract.shards:
            raise PrivacyError(f"{len(rows)} students vote where the contract has {self._contract.shards}")
        votes = np.sum([one_hot(_finite(student)) for student in rows], axis=0)
        return Bounded(votes, math.sqrt((1 if self._contract.mechanism == "sum" else 2) * rows.shape[1]))

    def release(self, bounded: Bounded, noise: NoiseSource) -> Released:
        """The counts, for the aggregator alone."""
        return Released(bounded.rows.astype(np.uint8), self._event)


MECHANISMS: dict[str, type[Mechanism]] = {
    "dp_sgd": DpSgd, "gaussian": Gaussian, "sum": Votes, "votes": Votes, "none": Unprotected
}  # fmt: skip


def simplex(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Rows scaled to probabilities; a row of zeros becomes uniform. Raises PrivacyError unless all are finite."""
    wide = np.clip(_finite(rows).astype(np.float64), 0.0, None)
    total = wide.sum(axis=1, keepdims=True)
    scaled: NDArray[np.float64] = np.where(total > 0, wide / np.where(total > 0, total, 1), 1 / wide.shape[1])
    return scaled


def _only(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    if len(rows) != 1:
        raise PrivacyError("one student answers under this mechanism")
    one: NDArray[np.float32] = rows[0]
    return one


def _finite(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(rows).all():
        raise PrivacyError("the student's answers are not finite", fix="lower the learning rate")
    return rows
