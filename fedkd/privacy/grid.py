"""How finely privacy losses are discretised. Any choice is sound, because the discretisation is pessimistic."""

from __future__ import annotations

import math


def grid(entries: tuple[tuple[float, float, int], ...]) -> float:
    """Discretisation interval, a power of two, for (noise_multiplier, sample_rate, steps) entries.

    An interval w adds up to w^2/4 of variance a step. Two bounds keep that below 1 % of the variance of the whole loss
    and the number of points near 2*10^5 for few steps and 200 sqrt(steps) for many, however small or large the loss.
    """
    steps = sum(steps for _, _, steps in entries)
    total = math.sqrt(sum(steps * _deviation(z, rate) ** 2 for z, rate, steps in entries))
    widest = min(2.5e-4 * max(1.0, total), 0.1 * total / math.sqrt(steps))
    return 2.0 ** math.floor(math.log2(widest))


def _deviation(noise_multiplier: float, sample_rate: float) -> float:
    """Standard deviation of one step's privacy loss, roughly: q sqrt(e^(1/z^2) - 1) for much noise (the central limit
    of Dong, Roth & Su 2019, arXiv:1905.02383, section 5), the loss of an always sampled example for little."""
    if sample_rate == 1:
        return 1 / noise_multiplier
    sure = 1 / noise_multiplier + math.sqrt(sample_rate) / (2 * noise_multiplier**2)
    return min(sample_rate * math.sqrt(math.expm1(min(noise_multiplier**-2, 500.0))), sure)
