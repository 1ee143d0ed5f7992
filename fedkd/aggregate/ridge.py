"""Noisy sums regressed on public features: what the features explain is kept, what they do not is mostly noise.

Features are public and the sums have been released: all of this is post-processing, the choice of the penalty included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

PENALTIES = 10.0 ** (np.arange(-36, 19) / 6)
"""Tried for every fit, in units of the largest squared singular value of the features."""

CONSTANT = 0.2
"""The constant that stands beside the features, over their mean norm. It is penalised as they are: without a constant
classes would have to be equally frequent, and without a penalty a class that the noise favours would win everywhere."""


class Ridge:
    """Ridge regression (Hoerl & Kennard 1970, doi:10.1080/00401706.1970.10488634), its features decomposed once."""

    def __init__(self, features: NDArray[Any]) -> None:
        """Features [q, d] of the examples that were asked. Raises ValueError if they are not finite, or all equal."""
        wide = features.astype(np.float64)
        if not np.isfinite(wide).all() or (wide == wide[:1]).all():
            raise ValueError("features must be finite, and not all equal")
        centred = wide - wide.mean(axis=0)
        constant = CONSTANT * np.linalg.norm(centred, axis=1).mean()
        columns = np.column_stack([centred, np.full(len(centred), constant)])
        with threadpool_limits(1, "blas"):  # sums are split among threads: their number must not change the last bits
            self._basis, singular, _ = np.linalg.svd(columns, full_matrices=False)
        self._squares = singular**2

    def __call__(self, sums: NDArray[Any]) -> NDArray[np.float64]:
        """Scores [q, k] for noisy sums [q, k]: how far each class is estimated to be ahead of the row's mean.

        The mean itself is left out: it is public, but for its noise, as the rows of every client add up to the grid.
        """
        ahead = sums.astype(np.float64)
        ahead -= ahead.mean(axis=1, keepdims=True)
        with threadpool_limits(1, "blas"):
            along = self._basis.T @ ahead
            kept = self._squares / (self._squares + self._penalty(ahead, along))
            return self._basis @ (kept[:, None] * along)

    def _penalty(self, ahead: NDArray[np.float64], along: NDArray[np.float64]) -> float:
        """By generalised cross-validation (Golub, Heath & Wahba 1979, doi:10.1080/00401706.1979.10489751): of the
        PENALTIES with |residuals|^2 / (1 - tr H / q)^2 least, H the map from sums to scores, the largest."""
        penalties = PENALTIES[::-1] * self._squares[0]
        lost = penalties[:, None] / (self._squares + penalties[:, None])  # [penalties, directions]
        outside = max(float((ahead**2).sum() - (along**2).sum()), 0.0)
        residuals = outside + lost**2 @ (along**2).sum(axis=1)
        q, directions = self._basis.shape
        freedom = (q - directions + lost.sum(axis=1)) / q
        return float(penalties[np.argmin(residuals / freedom**2)])
