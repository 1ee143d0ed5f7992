"""What discrete Gaussian noise hides, computed from its probabilities, against the Gaussian that it is charged as."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism
from numpy.typing import NDArray
from scipy.special import softmax

from fedkd.privacy.accounting import gaussian_delta
from fedkd.privacy.discrete import SMOOTHING

SHIFTS = [(1,), (2,), (7,), (1, -1), (1, 1, 1, 1), (3, 0, -2), (5, 1, -1, 2)]
EPSILONS = (0.0, 0.1, 0.5, 1.0, 3.0, 8.0)


def exact_delta(variance: int, shift: tuple[int, ...], epsilon: float) -> float:
    """delta(epsilon) of N_Z(0, variance)^d against itself moved by an integer vector.

    The privacy loss of y is (|shift|^2 - 2 <shift, y>) / (2 variance), so <shift, y> is all that matters, whose
    distribution is a convolution. Sums of positive terms over 16 deviations: what is left out is below 1e-50.
    """
    reach = math.ceil(16 * math.sqrt(variance))
    one = softmax(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * variance))
    law: NDArray[np.float64] = np.ones(1)
    for step in (abs(step) for step in shift if step):
        spread = np.zeros(2 * reach * step + 1)
        spread[::step] = one
        law = np.convolve(law, spread)
    products = np.arange(law.size) - law.size // 2
    loss = (2 * products + sum(step**2 for step in shift)) / (2 * variance)
    return float(law @ np.maximum(-np.expm1(epsilon - loss), 0.0))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("variance", [4, 5, 9, 30, 100, 1000])
def test_the_discrete_gaussian_hides_what_a_slightly_narrower_gaussian_hides(
    variance: int, shift: tuple[int, ...]
) -> None:
    mu = math.hypot(*shift) / math.sqrt(variance - SMOOTHING)
    for epsilon in EPSILONS:
        assert exact_delta(variance, shift, epsilon) <= gaussian_delta(mu, epsilon) * (1 + 1e-9) + 1e-40


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("variance", [25, 100, 1000])
def test_charged_at_its_own_variance_it_is_off_by_little(variance: int, shift: tuple[int, ...]) -> None:
    norm, deviation = math.hypot(*shift), math.sqrt(variance)
    excess = [
        exact_delta(variance, shift, epsilon) - gaussian_delta(norm / deviation, epsilon)
        for epsilon in np.linspace(0, 8, 81)
    ]
    # A sum in place of an integral errs most where the integrand has its kink half-way between two integers: by 1/24 of
    # its slope there, which is |shift| / variance times a density of at most 1 / (sqrt(2 pi) deviation).
    assert max(excess) <= 1.01 * norm / (24 * math.sqrt(2 * math.pi) * deviation**3)


def test_without_smoothing_the_charge_would_be_too_small_somewhere() -> None:
    excess = [exact_delta(4, (1,), epsilon) - gaussian_delta(1 / 2, epsilon) for epsilon in np.linspace(0, 3, 301)]
    assert max(excess) > 1e-4


@pytest.mark.parametrize("variance, shift", [(25, 1), (25, 3), (400, 1), (400, 3)])
def test_the_exact_delta_is_that_of_another_implementation(variance: int, shift: int) -> None:
    other = from_discrete_gaussian_mechanism(
        math.sqrt(variance), shift, value_discretization_interval=1e-5, pessimistic_estimate=True
    )
    for epsilon in (0.1, 0.5, 1.0):
        exact = exact_delta(variance, (shift,), epsilon)
        assert other.get_delta_for_epsilon(epsilon) == pytest.approx(exact, rel=1e-3, abs=1e-12)
