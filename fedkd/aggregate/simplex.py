"""Scores as rows of probabilities, for the teacher to learn from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.consensus import Consensus
from fedkd.privacy.integers import one_hot


def hard(scores: NDArray[Any]) -> NDArray[np.float32]:
    """Scores [q, k] -> all mass on each row's largest, the first of equals."""
    return one_hot(scores).astype(np.float32)


def projected(scores: NDArray[Any], total: float) -> NDArray[np.float32]:
    """Scores [q, k] that ought to add up to ``total``, or to zero, -> the nearest probabilities to scores / total.

    Euclidean projection on the simplex (Held, Wolfe & Crowder 1974, doi:10.1007/BF01580223): every entry less one
    number, what is negative cut off. A constant added to a row changes nothing.
    """
    wide = scores.astype(np.float64) / total
    falling = -np.sort(-wide, axis=1)
    ranks = np.arange(1, wide.shape[1] + 1)
    levels = (falling.cumsum(axis=1) - 1) / ranks  # what to take off, were the first 1, 2, ... entries to stay positive
    positive = (falling > levels).sum(axis=1, keepdims=True)
    return np.maximum(wide - np.take_along_axis(levels, positive - 1, axis=1), 0).astype(np.float32)


def scaled(rows: NDArray[Any]) -> Consensus:
    """Non-negative rows [q, k] scaled to sum to one. A row of zeros says nothing: it is not known, and uniform."""
    total = rows.sum(axis=1, keepdims=True, dtype=np.float64)
    known = total[:, 0] > 0
    probabilities = np.where(total > 0, rows / np.where(total > 0, total, 1.0), 1 / rows.shape[1])
    return Consensus(probabilities.astype(np.float32), known)
