"""How much noise a schedule needs, given what has been spent already."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from scipy.optimize import brentq

from fedkd.errors import BudgetExceeded, PrivacyError
from fedkd.privacy.accounting import (
    REPORTED,
    History,
    checked,
    gaussian_epsilon,
    history,
    normal,
    pld_epsilon,
    round_up,
)
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.filters import RenyiFilter, renyi_epsilon

Shape = tuple[tuple[float, float, int], ...]
"""A schedule up to its noise: (noise multiplier in units of the one sought, sample_rate, steps)."""

MIN_NOISE, MAX_NOISE = 0.1, 1e4
"""Less noise is never returned, however large the limit; more is never tried."""

GRAIN = 10**4
"""Noise multipliers are multiples of 1/GRAIN."""

USEFUL = 0.01
"""Less of the limit than this is not worth an answer that would be nothing but noise."""


def noise_multiplier(
    past: Sequence[PrivacyEvent],
    sample_rate: float,
    steps: int,
    epsilon: float,
    delta: float,
    by: RenyiFilter | None = None,
) -> float:
    """The smallest noise multiplier, rounded up to 1/GRAIN, whose ``steps`` after ``past`` report at most ``epsilon``.

    What holds is the reported epsilon of all events together (PLD, or the filter ``by``; rounded up). Raises
    BudgetExceeded if the past has left less than ``USEFUL`` of the limit or no noise up to MAX_NOISE fits, PrivacyError
    for events or a delta that cannot be accounted for and for a schedule that delta alone pays for, ValueError for a
    schedule that is none.
    """
    return calibrate(past, ((1.0, sample_rate, steps),), epsilon, delta, by)


def calibrate(
    past: Sequence[PrivacyEvent], shape: Shape, epsilon: float, delta: float, by: RenyiFilter | None = None
) -> float:
    """As ``noise_multiplier``, for a schedule of several kinds of step whose noises keep their proportions."""
    if not all(scale > 0 and 0 < rate <= 1 and steps >= 1 for scale, rate, steps in shape):
        raise ValueError("sample_rate must be in (0, 1] and steps at least 1")
    if sum(rate * steps for _, rate, steps in shape) <= delta:
        # an example is so rarely sampled that releasing it bare would be "private": delta = k/n protects nobody
        raise PrivacyError("steps x sample_rate is below delta: any noise would do", fix="choose a smaller delta")
    return _calibrate(history(past), shape, epsilon, checked(delta), by)


@lru_cache(maxsize=4096)
def _calibrate(past: History | None, shape: Shape, epsilon: float, delta: float, by: RenyiFilter | None) -> float:
    composed = pld_epsilon if by is None else partial(renyi_epsilon, order=by.order)
    spent = composed(past, delta)
    if past is None or spent > (1 - USEFUL) * epsilon:
        raise _exceeded(spent, epsilon)
    # the largest reportable epsilon within the limit: rounding up must not carry a finer limit over
    target = math.floor(epsilon * REPORTED) / REPORTED

    def excess(noise: float) -> float:
        more = tuple((noise * scale, rate, steps) for scale, rate, steps in shape)
        return composed(normal((*past, *more)), delta) - target

    low, high = _bracket(excess, _guess(past, shape, target, delta))
    if excess(high) > 0:
        raise BudgetExceeded(
            f"noise of {MAX_NOISE:g} times the clip is not enough for epsilon {epsilon:g} over this schedule",
            fix="take fewer steps or rounds, or raise the policy's limit",
        )
    noise = brentq(excess, low, high, xtol=0.2 / GRAIN, rtol=1e-8) if excess(low) > 0 else low
    return _smallest(lambda k: round_up(excess(k / GRAIN) + target) <= epsilon, math.ceil(noise * GRAIN)) / GRAIN


def _guess(past: History, shape: Shape, epsilon: float, delta: float) -> float:
    """Noise by the central limit: mu^2 = steps q^2 (e^(1/z^2) - 1) for subsampled Gaussians (Bu et al. 2020,
    arXiv:1911.11607, theorem 5), steps/z^2 for full batches. Only where the search starts: never what is returned."""
    spent = sum(n * (z**-2 if q == 1 else q**2 * math.expm1(min(z**-2, 500.0))) for z, q, n in past)
    mu2 = _mu(epsilon, delta) ** 2 - spent
    if mu2 <= 0:
        return 10.0
    if len(shape) == 1 and shape[0][1] < 1:
        _, rate, steps = shape[0]
        inverse = math.log1p(mu2 / (steps * rate**2))
    else:
        inverse = mu2 / sum(steps * rate**2 / scale**2 for scale, rate, steps in shape)
    return min(max(1 / math.sqrt(inverse), MIN_NOISE), MAX_NOISE)


def _mu(epsilon: float, delta: float) -> float:
    low, high = 1e-9, 2 * math.sqrt(epsilon) + 10
    return float(brentq(lambda mu: gaussian_epsilon(mu, delta) - epsilon, low, high, xtol=1e-12))


def _bracket(excess: Callable[[float], float], guess: float) -> tuple[float, float]:
    """Noise that is too little and noise that is enough, near ``guess``, or a bound of the range."""
    low = high = guess
    stride = 1.02
    while excess(high) > 0 and high < MAX_NOISE:
        low, high, stride = high, min(high * stride, MAX_NOISE), stride**2
    while excess(low) <= 0 and low > MIN_NOISE:
        high, low, stride = low, max(low / stride, MIN_NOISE), stride**2
    return low, high


def _smallest(fits: Callable[[int], bool], start: int) -> int:
    """The smallest multiple of 1/GRAIN that fits, from a start within a few of it."""
    while not fits(start):
        start += 1
    while start > MIN_NOISE * GRAIN and fits(start - 1):
        start -= 1
    return start


def _exceeded(spent: float, epsilon: float) -> BudgetExceeded:
    return BudgetExceeded(
        f"epsilon {round_up(spent):g} of {epsilon:g} is spent, and too little is left for this schedule",
        fix="what has been released cannot be taken back: raise the policy's limit, or stop answering",
    )
