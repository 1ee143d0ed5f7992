"""The discrete Gaussian N_Z(0, variance): probability proportional to exp(-x^2 / (2 variance)) on the integers.

The exact sampler of Canonne, Kamath & Steinke 2020 (arXiv:2004.00010, algorithms 1 to 3): uniform integers in, integers
out, no floating point between, so that nothing of Mironov 2012 (doi:10.1145/2382196.2382264) applies. How long a draw
takes depends on what is drawn, hence not for a place where others can time a single one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import PrivacyError

Integers = NDArray[np.int64]
Words = Callable[[int], NDArray[np.uint64]]
"""Gives the next n uniform 64-bit words."""

MAX_VARIANCE = 2**40
"""Up to it, the arithmetic below stays within 63 bits (see ``discrete_gaussian``)."""

LONGEST = 1024
"""Runs of successes of probability 1/e are cut here: a draw in which one is cut has probability e^-1024 < 10^-444."""

SMOOTHING = 3
"""N_Z(0, v) hides as much as the continuous N(0, v - SMOOTHING), in any number of dimensions and under composition.

Let X ~ N(0, v - s), and round X to the integer y with probability g(y - X) / sum_j g(j - X), g(u) = exp(-u^2 / 2s). As
X + n for an integer n is rounded by what it is, this is post-processing of the Gaussian mechanism. By Poisson's formula
the sum is sqrt(2 pi s) (1 + 2 sum_k e^(-2 pi^2 s k^2) cos(2 pi k X)), so y has the probability of N_Z(0, v) up to a
factor within 1 +- 4 e^(-2 pi^2 s) (Peikert 2010, doi:10.1007/978-3-642-14623-7_5, theorem 3.1). With s = 3 that is
8e-26 for every coordinate: over N of them epsilon grows by 2e-25 N and delta by a factor 1 + 1e-25 N.
"""


def variance_for(noise_multiplier: float, squared_sensitivity: int) -> int:
    """The smallest variance that may be charged as a continuous Gaussian of this noise multiplier, on integers of which
    neighbours differ by at most sqrt(squared_sensitivity) in L2. Raises PrivacyError above MAX_VARIANCE."""
    variance = math.ceil(Fraction(noise_multiplier) ** 2 * squared_sensitivity) + SMOOTHING
    if variance > MAX_VARIANCE:
        raise PrivacyError(
            f"noise of deviation {math.sqrt(variance):.0f} is more than is drawn exactly ({math.isqrt(MAX_VARIANCE)})",
            fix="choose a coarser grid, or ask fewer examples",
        )
    return variance


def discrete_gaussian(words: Words, n: int, variance: int) -> Integers:
    """n independent draws of N_Z(0, variance). Raises ValueError for a variance outside [1, MAX_VARIANCE], TypeError
    for one that is no integer.

    Algorithm 3 with a proposal exp(-|y| w / variance), w = floor(sqrt(variance)), instead of exp(-|y| / (w + 1)): the
    probability to accept is then exp(-(|y| - w)^2 / (2 variance)), whose terms stay small. Indeed variance / w^2 <= 3,
    and |y| <= (LONGEST + 1) variance / w, so that (|y| - w)^2 <= 3 (LONGEST + 1)^2 variance < 2^22 MAX_VARIANCE = 2^62.
    """
    variance = operator.index(variance)  # a Python integer: products of it with the counter k cannot wrap
    if not 1 <= variance <= MAX_VARIANCE:
        raise ValueError(f"the variance of discrete noise is an integer in [1, {MAX_VARIANCE}]")
    w = math.isqrt(variance)

    def attempt(size: int) -> tuple[Integers, NDArray[np.bool_]]:
        y = discrete_laplace(words, size, w, variance)
        return y, bernoulli_exp(words, (np.abs(y) - w) ** 2, 2 * variance)

    return _accepted(attempt, n)


def discrete_laplace(words: Words, n: int, s: int, t: int) -> Integers:
    """n independent integers of probability proportional to exp(-|y| s / t), for t <= MAX_VARIANCE (algorithm 2).

    Magnitudes before the division by s are at most (LONGEST + 1) t < 2^51.
    """

    def attempt(size: int) -> tuple[Integers, NDArray[np.bool_]]:
        y = _geometric(words, size, t) // s
        negative = below(words, 2, size) == 1
        return np.where(negative, -y, y), ~(negative & (y == 0))  # else zero would be drawn twice as often

    return _accepted(attempt, n)


def _geometric(words: Words, n: int, t: int) -> Integers:
    """n independent x >= 0 of probability proportional to exp(-x / t): x = u + t v."""

    def attempt(size: int) -> tuple[Integers, NDArray[np.bool_]]:
        u = below(words, t, size)
        return u, bernoulli_exp(words, u, t)

    return _accepted(attempt, n) + t * _run(words, np.full(n, LONGEST))


def _accepted(attempt: Callable[[int], tuple[Integers, NDArray[np.bool_]]], n: int) -> Integers:
    """n values, each drawn again until its attempt is accepted."""
    drawn, left = np.zeros(n, np.int64), np.arange(n)
    while left.size:
        values, accepted = attempt(left.size)
        drawn[left] = values
        left = left[~accepted]
    return drawn


def bernoulli_exp(words: Words, numerator: Integers, denominator: int) -> NDArray[np.bool_]:
    """Independent bits, each one with probability exp(-numerator / denominator), numerator >= 0 (algorithm 1)."""
    whole, rest = np.divmod(numerator, denominator)
    yes = _bernoulli_exp_fraction(words, rest, denominator)
    at = np.flatnonzero(yes & (whole > 0))
    yes[at] = _run(words, whole[at]) == whole[at]
    return yes


def _run(words: Words, most: Integers) -> Integers:
    """How often in a row a bit of probability 1/e comes out one, counted up to ``most``."""
    length, left = np.zeros_like(most), np.flatnonzero(most > 0)
    while left.size:
        left = left[_bernoulli_exp_fraction(words, np.ones(left.size, np.int64), 1)]
        length[left] += 1
        left = left[length[left] < most[left]]
    return length


def _bernoulli_exp_fraction(words: Words, numerator: Integers, denominator: int) -> NDArray[np.bool_]:
    """As ``bernoulli_exp`` for numerators in [0, denominator]: the parity of how many bits of probability
    numerator / (k denominator), k = 1, 2, ..., come out one before the first zero."""
    yes, left = np.ones(numerator.size, np.bool_), np.arange(numerator.size)
    k = 0
    while left.size:
        k += 1
        left = left[below(words, denominator * k, left.size) < numerator[left]]
        yes[left] ^= True
    return yes


def below(words: Words, bound: int, n: int) -> Integers:
    """n independent uniform integers in [0, bound), bound <= 2^63 (OverflowError): words that would favour the smaller
    ones are drawn again."""
    if bound > 2**63:
        raise OverflowError("the bound of a uniform integer is above 2^63")
    largest = np.uint64(2**64 - 1 - 2**64 % bound)
    drawn = words(n).copy()
    while (again := np.flatnonzero(drawn > largest)).size:
        drawn[again] = words(again.size)
    return (drawn % np.uint64(bound)).astype(np.int64)
