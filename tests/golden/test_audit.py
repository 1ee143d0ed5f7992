"""Bounds of an audit against values that others have published, and against other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedkd.privacy.accounting import gaussian_delta, gaussian_epsilon
from fedkd.privacy.audit import Errors, Guesses, upper_limit
from fedkd.privacy.noise_audit import discrete_gaussian_cdf, distance, shortfall


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (17, 500), (499, 500)])
@pytest.mark.parametrize("alpha", [0.05, 1e-4])
def test_the_limit_of_a_rate_is_scipys_clopper_pearson(k: int, n: int, alpha: float) -> None:
    theirs = stats.binomtest(k, n).proportion_ci(confidence_level=1 - 2 * alpha, method="exact").high
    assert float(upper_limit(k, n, alpha)) == pytest.approx(theirs, rel=1e-9)


def test_five_hundred_faultless_trials_show_an_epsilon_of_4_54_at_99_percent() -> None:
    # Jagielski, Ullman & Oprea 2020 (arXiv:2006.07709): the most that 500 trials on each side can show
    assert float(Errors(0, 500, 0, 500).epsilon(0.01, 0.0)) == pytest.approx(4.54, abs=0.005)


def test_error_rates_of_a_gaussian_give_back_its_mu() -> None:
    # FPR and FNR of the test at x > 0.4 of N(0, 1) against N(1, 1), so often counted that the limits are close
    n = 10**12
    errors = Errors(round(n * stats.norm.sf(0.4)), n, round(n * stats.norm.cdf(0.4 - 1)), n)
    assert float(errors.mu(1e-4)) == pytest.approx(1.0, abs=1e-4)
    # Dong, Roth & Su 2019 (arXiv:1905.02383), corollary 1: 1-GDP is (1, Phi(-0.5) - e Phi(-1.5))-DP
    assert gaussian_delta(1.0, 1.0) == pytest.approx(stats.norm.cdf(-0.5) - math.e * stats.norm.cdf(-1.5), rel=1e-12)
    assert gaussian_epsilon(1.0, gaussian_delta(1.0, 1.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("m", [1, 10, 1000])
def test_guesses_that_are_all_right_show_the_logit_of_the_root_of_alpha(m: int) -> None:
    # without delta the bound is where (e^eps / (1 + e^eps))^m = alpha
    rate = 0.01 ** (1 / m)
    expected = max(0.0, math.log(rate / (1 - rate)))
    assert Guesses(m, m, m).epsilon(0.01, 0.0) == pytest.approx(expected, abs=2e-6)


def as_published(m: int, r: int, v: int, eps: float, delta: float) -> float:
    """The p-value as the appendix of Steinke, Nasr & Jagielski 2023 (arXiv:2305.08846) describes it, term by term."""
    q = 1 / (1 + math.exp(-eps))
    largest = total = 0.0
    for i in range(1, v + 1):
        total += float(stats.binom.pmf(v - i, r, q))
        largest = max(largest, total / i)
    return min(1.0, float(stats.binom.sf(v - 1, r, q)) + largest * delta * 2 * m)


@pytest.mark.parametrize(
    ("m", "r", "v"), [(100, 100, 100), (1000, 600, 600), (1000, 200, 150), (5000, 100, 97), (8, 4, 0)]
)
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_the_p_value_of_guesses_is_the_published_one(m: int, r: int, v: int, delta: float) -> None:
    for eps in (0.0, 0.5, 2.0, 4.0, 8.0):
        assert Guesses(m, r, v).p_value(eps, delta) == pytest.approx(as_published(m, r, v, eps, delta), rel=1e-6)


def test_the_chi_squared_bound_is_that_of_the_textbook() -> None:
    sample = np.array([0.5, -1.0, 2.0, 0.0])  # the sum of squares is 5.25
    assert shortfall(sample, 1.0, 0.05) == pytest.approx(math.sqrt(0.710723 / 5.25), rel=1e-5)  # quantile: any table


def test_a_sample_is_apart_from_a_distribution_where_scipys_test_rejects() -> None:
    sample = np.random.default_rng(0).normal(0.2, 1.0, 300)
    p = stats.kstest(sample, "norm").pvalue
    assert distance(sample, stats.norm.cdf, p * 1.01) > 0 == distance(sample, stats.norm.cdf, p * 0.99)


@pytest.mark.parametrize("variance", [1.0, 40.0])
def test_the_discrete_gaussian_is_that_of_its_definition(variance: float) -> None:
    at = np.arange(-200, 201)
    mass = np.exp(-(at**2) / (2 * variance))
    mass /= mass.sum()
    cdf = discrete_gaussian_cdf(variance)
    for x in (-7.5, -1.0, 0.0, 0.999, 3.0, 1e9, -1e9):
        assert float(cdf(np.array(x))) == pytest.approx(mass[at <= x].sum(), abs=1e-12)
