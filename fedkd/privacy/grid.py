"""How finely privacy losses are discretised. Any choice is sound, because the discretisation is pessimistic."""

from __future__ import annotations

import math


def grid(entries: tuple[tuple[float, float, int], ...]) -> float:
    """Discretisation interval, a power of two, for (noise_multiplier, sample_rate, steps) entries.

    Connecting dots at an interval w adds at most w^2/4 of variance a step, hence about steps w^2 (1/8 + 1/(2 total))
    to an epsilon of a loss with standard deviation ``total``: kept below 0.1 % of a small epsilon and 0.002 of a large
    one. Where that allows it, w grows with the loss, so that the number of points stays near 10^5.
    """
    steps = sum(steps for _, _, steps in entries)
    total = math.sqrt(sum(steps * _deviation(z, rate) ** 2 for z, rate, steps in entries))
    accurate = 0.05 * min(1.0, total) * max(1.0, total / 50) / math.sqrt(steps)
    return 2.0 ** math.floor(math.log2(min(2.5e-4 * max(1.0, total), accurate)))


def _deviation(noise_multiplier: float, sample_rate: float) -> float:
    """Standard deviation of one step's privacy loss, roughly: q sqrt(e^(1/z^2) - 1) for much noise (the central limit
    of Dong, Roth & Su 2019, arXiv:1905.02383, section 5), the loss of an always sampled example for little."""
    if sample_rate == 1:
        return 1 / noise_multiplier
    sure = 1 / noise_multiplier + math.sqrt(sample_rate) / (2 * noise_multiplier**2)
    return min(sample_rate * math.sqrt(math.expm1(min(noise_multiplier**-2, 500.0))), sure)
