"""From noisy sums to probabilities: post-processing of what has been released."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.aggregate.ridge import Ridge
from fedkd.aggregate.simplex import hard, projected


def denoised(features: NDArray[np.float32], sums: NDArray[Any], total: float, *, ridge: bool) -> NDArray[np.float32]:
    """Probabilities [q, k] of sums [q, k] whose rows add up to ``total`` but for noise.

    With ``ridge`` the first choice of what the public features [q, d] explain, as a one-hot row; without, the nearest
    point of the simplex.
    """
    return hard(Ridge(features)(sums)) if ridge else projected(sums, total)
