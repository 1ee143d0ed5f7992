"""Lower bounds are above the truth no more often than they may be, and move with what was seen as they should."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedkd.privacy.accounting import gaussian_epsilon
from fedkd.privacy.audit import (
    Errors,
    Evidence,
    Guesses,
    Scores,
    choose_guesser,
    choose_rule,
    judge,
    one_run_delta,
    paired_bounds,
)
from fedkd.privacy.noise_audit import correlation, distance, lags, most_correlated, normal_cdf, pairs, shortfall

ALPHA, DELTA, TIMES = 0.05, 1e-5, 100


def too_often(exceeded: int, times: int, alpha: float = ALPHA) -> bool:
    """Whether a bound that is exceeded with probability alpha would so often be so once in 10^6 tests."""
    return stats.binom.sf(exceeded - 1, times, alpha) < 1e-6


# -- never above the truth more often than allowed ---------------------------------------------------------------------


@pytest.mark.parametrize("mu", [0.0, 0.5, 2.0])
def test_paired_bounds_of_a_gaussian_stay_below_its_epsilon(mu: float) -> None:
    random, truth = np.random.default_rng(1), gaussian_epsilon(mu, DELTA)
    above = np.zeros(2, int)
    for _ in range(TIMES):
        # other statistics, which show nothing, are there to tempt the choice
        negative, positive = random.normal(size=(2, 80, 6))
        (_, plain), (_, gaussian) = paired_bounds(negative, positive + mu * np.eye(6)[2], DELTA)
        above += [plain(ALPHA) > truth, gaussian(ALPHA) > truth]
    assert not too_often(above[0], TIMES) and not too_often(above[1], TIMES)


def test_rules_chosen_on_what_is_counted_would_be_found_out() -> None:
    """That the test above can fail: with the trials that chose counted again, it does."""
    random, above = np.random.default_rng(2), 0
    for _ in range(TIMES):
        negative, positive = random.normal(size=(2, 80, 6))
        rule = choose_rule(negative, positive, lambda errors: errors.mu(ALPHA))
        above += float(rule.errors(negative, positive).mu(ALPHA)) > 0
    assert too_often(above, TIMES)


def test_trials_that_are_counted_do_not_choose_the_rule() -> None:
    negative, positive = np.random.default_rng(3).normal(size=(2, 400, 2))
    positive[:100, 0] += 4.0  # what tells the releases apart among those that choose
    positive[100:, 1] += 4.0  # and among those that are counted
    (_, plain), (_, gaussian) = paired_bounds(negative, positive, DELTA)
    assert plain(ALPHA) == gaussian(ALPHA) == 0


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 0.0), (1.0, 0.01)])
def test_one_run_bounds_of_randomised_response_stay_below_its_epsilon(epsilon: float, delta: float) -> None:
    """Each coin comes out right with probability e^eps / (1 + e^eps); with probability delta it is shown bare."""
    random, m = np.random.default_rng(3), 300

    @lru_cache
    def bound(right: int) -> float:
        return Guesses(m, m, right).epsilon(ALPHA, delta)

    rate = delta + (1 - delta) / (1 + np.exp(-epsilon))
    above = sum(bound(int(right)) > epsilon for right in random.binomial(m, rate, 1000))
    assert not too_often(above, 1000)


def test_one_run_bounds_of_gaussian_canaries_stay_below_their_epsilon() -> None:
    random, mu, m, above = np.random.default_rng(4), 1.0, 200, 0
    delta = one_run_delta(DELTA, m)
    for _ in range(TIMES):
        runs = []
        for _ in range(2):
            included = random.random(m) < 0.5
            runs.append((random.normal(size=(m, 2)) + mu * included[:, None] * [1, 0], included))
        guesses = choose_guesser(*runs[0], delta).guess(*runs[1])
        above += guesses.epsilon(ALPHA, delta) > gaussian_epsilon(mu, delta)
    assert not too_often(above, TIMES)


@pytest.mark.parametrize(
    "bound",
    [
        lambda x: shortfall(x, 1.0, ALPHA) - 1,
        lambda x: distance(x, normal_cdf(1.0), ALPHA),
        lambda x: correlation(pairs({"a": x[:100], "b": x[100:200], "c": x[200:]}), ALPHA),
        lambda x: correlation(lags(x, (1, 2, 5)), ALPHA),
    ],
    ids=["size", "shape", "streams", "coordinates"],
)
def test_bounds_on_right_noise_find_fault_no_more_often_than_allowed(bound: Callable[[Scores], float]) -> None:
    random = np.random.default_rng(5)
    assert not too_often(sum(bound(random.normal(size=300)) > 0 for _ in range(400)), 400)


# -- and close to it where there is enough to see ----------------------------------------------------------------------


def test_many_paired_releases_of_a_gaussian_show_most_of_its_epsilon() -> None:
    negative, positive = np.random.default_rng(6).normal(size=(2, 40_000, 1))
    _, (_, gaussian) = paired_bounds(negative, positive + 1.0, DELTA)
    assert 0.9 * gaussian_epsilon(1.0, DELTA) < gaussian(1e-4) < gaussian_epsilon(1.0, DELTA)


def test_a_difference_in_noise_alone_is_found() -> None:
    negative, positive = np.random.default_rng(7).normal(size=(2, 400, 30))
    spread = [np.square(x).sum(axis=1, keepdims=True) for x in (negative, 0.5 * positive)]
    _, (_, gaussian) = paired_bounds(*spread, DELTA)
    assert gaussian(1e-4) > 8


def test_noise_that_is_too_small_of_another_shape_or_shared_is_found() -> None:
    x, y = np.random.default_rng(8).normal(size=(2, 5000))
    assert 1.3 < shortfall(x / np.sqrt(2), 1.0, 1e-4) < np.sqrt(2)
    assert shortfall(np.zeros(5), 1.0, 1e-4) == np.inf
    assert distance(np.sqrt(3) * np.random.default_rng(9).uniform(-1, 1, 5000), normal_cdf(1.0), 1e-4) > 0.02
    streams = {"a": x, "b": y, "c": (x + y) / np.sqrt(2)}
    assert 0.6 < correlation(pairs(streams), 1e-4) < 0.71
    assert most_correlated(pairs({"a": x, "b": y, "a again": x})) == "a and a again"
    assert correlation(pairs({"a": np.zeros(9), "b": np.zeros(9)}), 1e-4) > 0.9  # streams of nothing are alike


# -- monotone ----------------------------------------------------------------------------------------------------------

COUNTS = st.integers(0, 60)


@given(fp=COUNTS, fn=COUNTS, delta=st.sampled_from([0.0, 1e-5, 0.1]))
@settings(deadline=None, max_examples=50)
def test_more_errors_less_confidence_and_a_larger_delta_never_show_more(fp: int, fn: int, delta: float) -> None:
    errors = Errors(fp, 61, fn, 61)
    for more in (Errors(fp + 1, 61, fn, 61), Errors(fp, 61, fn + 1, 61)):
        if fp + fn + 1 <= 61:  # beyond, a test that is always wrong would show as much as one that is always right
            assert float(more.epsilon(ALPHA, delta)) <= float(errors.epsilon(ALPHA, delta)) + 1e-12
        assert float(more.mu(ALPHA)) <= float(errors.mu(ALPHA)) + 1e-12
    assert float(errors.epsilon(0.01, delta)) <= float(errors.epsilon(0.05, delta)) + 1e-12
    assert float(errors.epsilon(ALPHA, delta + 0.01)) <= float(errors.epsilon(ALPHA, delta)) + 1e-12
    assert float(errors.mu(0.01)) <= float(errors.mu(0.05)) + 1e-12


@given(right=st.integers(0, 99), delta=st.sampled_from([0.0, 1e-6, 1e-4]))
@settings(deadline=None, max_examples=50)
def test_one_more_right_guess_never_shows_less(right: int, delta: float) -> None:
    one, more = (Guesses(100, 100, n).epsilon(ALPHA, delta) for n in (right, right + 1))
    assert one <= more + 1e-7
    assert Guesses(100, 100, right).epsilon(0.01, delta) <= one + 1e-7
    assert Guesses(100, 100, right).epsilon(ALPHA, delta + 1e-3) <= one + 1e-7
    assert Guesses(200, 100, right).epsilon(ALPHA, delta) <= one + 1e-7  # abstaining is not free where there is delta


# -- the family --------------------------------------------------------------------------------------------------------


def test_bounds_hold_together_at_the_confidence_of_the_family() -> None:
    asked: list[float] = []
    evidence = [
        Evidence(str(n), "epsilon", 1.0, "nobody", lambda alpha: asked.append(alpha) or 0.0, {}) for n in range(20)
    ]
    findings = judge(evidence, 0.99)
    assert asked == pytest.approx([0.01 / 20] * 20)
    assert all(finding.confidence == pytest.approx(1 - 0.01 / 20) for finding in findings)


def test_a_finding_says_bound_confidence_threat_model_and_claim_and_never_that_it_holds() -> None:
    (found,) = judge([Evidence("a", "epsilon at delta 1e-05", 3.0, "sees all", lambda alpha: 0.4, {})], 0.999)
    assert found.sentence == (
        "lower bound 0.4 on epsilon at delta 1e-05 at confidence 0.999, threat model: sees all; claim 3"
    )
    assert not found.refutes


@pytest.mark.parametrize(("bound", "refutes"), [(2.999, False), (3.0, False), (3.001, True)])
def test_only_a_bound_above_its_claim_refutes_it(bound: float, refutes: bool) -> None:
    (found,) = judge([Evidence("a", "epsilon", 3.0, "sees all", lambda alpha: bound, {})], 0.999)
    assert found.refutes is refutes
