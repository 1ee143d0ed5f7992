"""Is noise as large as it is said to be, of the shape it is said to have, and independent? Lower bounds on how far from
it, for any sampler; see ``audit`` for what ``alpha`` means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import chi2, kstwo, norm

Sample = NDArray[np.float64]
Cdf = Callable[[Sample], Sample]


def normal_cdf(std: float) -> Cdf:
    """Of N(0, std^2)."""
    return partial(norm.cdf, scale=std)


def discrete_gaussian_cdf(variance: float) -> Cdf:
    """Of the discrete Gaussian on the integers, whose probabilities are proportional to exp(-x^2 / (2 variance))
    (Canonne, Kamath & Steinke 2020, arXiv:2004.00010, definition 1)."""
    reach = math.ceil(12 * math.sqrt(variance)) + 1  # beyond it lies less than 1e-30
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * variance))
    total = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
    return lambda x: total[np.clip(np.floor(x) + reach + 1, 0, 2 * reach + 1).astype(int)]


def shortfall(sample: Sample, std: float, alpha: float) -> float:
    """Lower bound on ``std`` over the true standard deviation of centred Gaussian noise, since the sum of its squares
    over the true variance is chi-squared. 1 means that no less noise was found than is claimed; infinite: no noise."""
    squares = float(np.square(sample, dtype=np.float64).sum())
    return std * math.sqrt(chi2.ppf(alpha, sample.size) / squares) if squares else math.inf


def distance(sample: Sample, cdf: Cdf, alpha: float) -> float:
    """Lower bound on the Kolmogorov distance between the sample's distribution and ``cdf``, by the exact distribution
    of its empirical value (Kolmogorov 1933); for noise with ties the bound is smaller than it might be."""
    values, counts = np.unique(sample, return_counts=True)
    reached = np.cumsum(counts) / sample.size
    before = np.concatenate([[0.0], reached[:-1]])
    at, below = cdf(values), cdf(np.nextafter(values, -math.inf))
    found = float(max(np.abs(reached - at).max(), np.abs(before - below).max()))
    return max(0.0, found - float(kstwo.isf(alpha, sample.size)))


def pairs(streams: Mapping[str, Sample]) -> dict[str, tuple[Sample, Sample]]:
    """Every two of several equally long streams of noise, by the names of both."""
    return {f"{a} and {b}": (streams[a], streams[b]) for a, b in combinations(streams, 2)}


def lags(stream: Sample, steps: Sequence[int], name: str = "noise") -> dict[str, tuple[Sample, Sample]]:
    """A stream beside itself, some coordinates further."""
    return {f"{name} and itself {lag} further": (stream[:-lag], stream[lag:]) for lag in steps}


def correlation(compared: Mapping[str, tuple[Sample, Sample]], alpha: float) -> float:
    """Lower bound on the largest |correlation| of all pairs together, by Fisher's transform of each, z = atanh r, whose
    standard deviation is 1 / sqrt(n - 3) (Fisher 1921)."""
    level = -float(ndtri(alpha / (2 * len(compared))))
    bounds = [math.tanh(_fisher(*both) - level / math.sqrt(len(both[0]) - 3)) for both in compared.values()]
    return max(0.0, *bounds)


def most_correlated(compared: Mapping[str, tuple[Sample, Sample]]) -> str:
    """The name of the pair with the largest |correlation|."""
    return max(compared, key=lambda name: _fisher(*compared[name]))


def _fisher(one: Sample, two: Sample) -> float:
    """atanh |r|; streams that do not vary at all are alike."""
    one, two = one - one.mean(), two - two.mean()
    size = math.sqrt(float(one @ one) * float(two @ two))
    found = abs(float(one @ two)) / size if size else 1.0
    return math.atanh(min(found, 1 - 1e-15))
