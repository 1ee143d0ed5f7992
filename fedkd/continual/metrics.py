"""Measures of continual learning, all of them functions of one matrix.

R[i, j] is the accuracy on experience j after training on experience i, [T, T]. Libraries disagree on the formulas of
their names: what is computed here is written out, and R itself is in every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import DataError

Matrix = NDArray[np.float64]

FORMULAS: Mapping[str, str] = {
    "acc": "mean_j R[T, j] (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)",
    "aia": "mean_i mean_{j<=i} R[i, j], the average incremental accuracy",
    "bwt": "mean_{j<T} (R[T, j] - R[j, j]) (arXiv:1706.08840)",
    "fwt": "mean_{j>=2} (R[j-1, j] - b[j]), b at random initialisation (arXiv:1706.08840)",
    "forgetting": "mean_{j<T} (max_{l<T} R[l, j] - R[T, j]) (RWalk, Chaudhry et al. 2018, arXiv:1801.10112)",
    "learning_accuracy": "mean_j R[j, j]",
}


def acc(r: Matrix) -> float:
    """Average accuracy after the last experience."""
    return float(r[-1].mean())


def aia(r: Matrix) -> float:
    """Average incremental accuracy: after each experience the mean over those seen, averaged."""
    return float(np.mean([row[: i + 1].mean() for i, row in enumerate(r)]))


def bwt(r: Matrix) -> float | None:
    """Backward transfer; negative where later experiences did harm. None for one experience."""
    return float((r[-1] - r.diagonal())[:-1].mean()) if len(r) > 1 else None


def fwt(r: Matrix, b: NDArray[np.float64]) -> float | None:
    """Forward transfer: what is known of an experience before it is seen, above ``b`` [T], the accuracies at random
    initialisation. None for one experience."""
    return float((r.diagonal(1) - b[1:]).mean()) if len(r) > 1 else None


def forgetting(r: Matrix) -> float | None:
    """RWalk's: from the best that an experience was ever known, before the last one. None for one experience."""
    return float((_best(r, np.zeros(len(r), np.int64)) - r[-1])[:-1].mean()) if len(r) > 1 else None


def learning_accuracy(r: Matrix) -> float:
    """How well each experience was learned when it was there."""
    return float(r.diagonal().mean())


def class_forgetting(by_class: Matrix, first: NDArray[np.int64]) -> NDArray[np.float64]:
    """RWalk's formula class by class, [K]; NaN for a class that came last: it had no time to fade.

    ``by_class[i, c]`` is the accuracy on class c after experience i, ``first[c]`` the experience in which it came.
    """
    found = _best(by_class, first) - by_class[-1]
    return np.where(first < len(by_class) - 1, found, np.nan)


def _best(values: Matrix, first: NDArray[np.int64]) -> NDArray[np.float64]:
    """The largest value of each column from its first row to the last but one; NaN where there is none."""
    rows = np.arange(len(values))[:, None]
    inside = (rows >= first) & (rows < len(values) - 1)
    best: NDArray[np.float64] = np.where(inside, values, -np.inf).max(axis=0)
    return np.where(inside.any(axis=0), best, np.nan)


def summary(r: Matrix, b: NDArray[np.float64]) -> dict[str, Any]:
    """Every measure by name, with R and b. Raises DataError unless R is [T, T] and b [T], all of them shares of 1."""
    if r.ndim != 2 or r.shape[0] != r.shape[1] or b.shape != (len(r),) or not len(r):
        raise DataError(f"R must be [T, T] and b [T], not {list(r.shape)} and {list(b.shape)}")
    if not all(bool(((values >= 0) & (values <= 1)).all()) for values in (r, b)):
        raise DataError("accuracies must be numbers from 0 to 1")
    return {
        "acc": acc(r),
        "aia": aia(r),
        "bwt": bwt(r),
        "fwt": fwt(r, b),
        "forgetting": forgetting(r),
        "learning_accuracy": learning_accuracy(r),
        "r": r.tolist(),
        "random_accuracy": b.tolist(),
    }
