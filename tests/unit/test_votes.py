from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedkd.aggregate.votes import UNANSWERED, confident_gnmax, gnmax
from fedkd.privacy.noise import NoiseSource

KEY = bytes(range(32))


@given(st.integers(2, 30), st.integers(2, 10), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_one_client_moves_the_largest_count_by_one_and_the_counts_by_their_sensitivity(
    n: int, k: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    votes = random.integers(0, k, n)
    moved = np.append(votes[1:], random.integers(0, k))
    before, after, gone = (np.bincount(each, minlength=k) for each in (votes, moved, votes[1:]))
    for other, squared in ((after, 2), (gone, 1)):
        assert abs(before.max() - other.max()) <= 1
        assert ((before - other) ** 2).sum() <= squared


def test_a_clear_majority_wins_and_a_close_one_wins_with_its_probability() -> None:
    clear = np.tile([0, 250, 0, 0], (1000, 1))
    assert (gnmax(clear, NoiseSource(KEY), 40**2) == 1).mean() > 0.99
    close = np.tile([130, 120], (20_000, 1))
    wins = int((gnmax(close, NoiseSource(KEY), 40**2) == 0).sum())
    # the difference of two noises has variance 2 * 40^2; a tie, which continuous noise has not, goes to the first
    expected = stats.norm.cdf(10.5 / (40 * math.sqrt(2)))
    assert stats.binomtest(wins, len(close), expected).pvalue > 1e-3


def test_both_counts_carry_noise_of_the_full_variance() -> None:
    tally = np.zeros((20_000, 3), np.int64)
    labels = gnmax(tally, NoiseSource(KEY), 10**8)
    assert stats.chisquare(np.bincount(labels)).pvalue > 1e-3


@pytest.mark.parametrize("largest, threshold", [(200, 200), (250, 200), (100, 200)])
def test_queries_are_answered_with_the_probability_of_the_noisy_test(largest: int, threshold: int) -> None:
    tally = np.tile([largest, 250 - largest, 0], (20_000, 1))
    answered, labels = confident_gnmax(tally, NoiseSource(KEY), threshold, 150**2, 40**2)
    expected = stats.norm.cdf((max(largest, 250 - largest) - threshold + 0.5) / 150)
    assert stats.binomtest(int(answered.sum()), len(tally), expected).pvalue > 1e-3
    assert np.array_equal(labels == UNANSWERED, ~answered)


def test_the_test_and_the_answer_have_noises_of_their_own() -> None:
    tally = np.tile([125, 125], (20_000, 1))
    answered, labels = confident_gnmax(tally, NoiseSource(KEY), 125, 40**2, 40**2)
    assert stats.binomtest(int((labels[answered] == 0).sum()), int(answered.sum()), 0.505).pvalue > 1e-3


def test_the_same_key_gives_the_same_answers() -> None:
    tally = np.random.default_rng(0).multinomial(250, [0.4, 0.3, 0.3], size=500)
    (one, first), (two, second) = (confident_gnmax(tally, NoiseSource(KEY), 100, 30**2, 20**2) for _ in range(2))
    assert np.array_equal(one, two) and np.array_equal(first, second)
    other, _ = confident_gnmax(tally, NoiseSource(bytes(32)), 100, 30**2, 20**2)
    assert not np.array_equal(other, one)


def test_no_queries_give_no_answers() -> None:
    answered, labels = confident_gnmax(np.zeros((0, 3), np.int64), NoiseSource(KEY), 1, 1, 1)
    assert answered.shape == labels.shape == (0,)
