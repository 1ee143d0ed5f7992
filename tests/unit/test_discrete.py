from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fedkd.errors import PrivacyError
from fedkd.privacy.discrete import (
    LONGEST,
    MAX_VARIANCE,
    SMOOTHING,
    Words,
    below,
    bernoulli_exp,
    discrete_gaussian,
    variance_for,
)
from fedkd.privacy.noise import NoiseSource

KEY = bytes(range(32))
VARIANCES = st.one_of(st.integers(1, 50), st.integers(1, MAX_VARIANCE), st.sampled_from([10**4, MAX_VARIANCE]))


def stream(key: bytes = KEY) -> Words:
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return lambda n: np.frombuffer(cipher.update(bytes(8 * n)), "<u8")


def pmf(variance: int, reach: int) -> NDArray[np.float64]:
    weights = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * variance))
    return weights / weights.sum()


# --- the same algorithm, one draw at a time, in Python's integers ---


def slow_below(word: Callable[[], int], bound: int) -> int:
    while (drawn := word()) >= 2**64 - 2**64 % bound:
        pass
    return drawn % bound


def slow_fraction(word: Callable[[], int], numerator: int, denominator: int) -> bool:
    return next(k for k in itertools.count(1) if slow_below(word, denominator * k) >= numerator) % 2 == 1


def slow_bernoulli_exp(word: Callable[[], int], numerator: int, denominator: int) -> bool:
    whole, rest = divmod(numerator, denominator)
    return slow_fraction(word, rest, denominator) and all(slow_fraction(word, 1, 1) for _ in range(whole))


def slow_geometric(word: Callable[[], int], t: int) -> int:
    while True:
        u = slow_below(word, t)
        if slow_bernoulli_exp(word, u, t):
            break
    return u + t * next(v for v in itertools.count() if not slow_fraction(word, 1, 1))


def slow_discrete_gaussian(word: Callable[[], int], variance: int) -> int:
    w = math.isqrt(variance)
    while True:
        y, negative = slow_geometric(word, variance) // w, slow_below(word, 2) == 1
        if (y, negative) == (0, True):
            continue
        if slow_bernoulli_exp(word, (y - w) ** 2, 2 * variance):
            return -y if negative else y


@given(VARIANCES, st.binary(min_size=32, max_size=32))
@settings(max_examples=200, deadline=None)
def test_a_draw_is_what_unbounded_integers_would_give(variance: int, key: bytes) -> None:
    words, same = stream(key), stream(key)
    for _ in range(3):
        drawn = discrete_gaussian(words, 1, variance)
        assert drawn.tolist() == [slow_discrete_gaussian(lambda: int(same(1)[0]), variance)]


@given(st.integers(0, 2**62), st.integers(1, 2**41), st.binary(min_size=32, max_size=32))
@settings(max_examples=200, deadline=None)
def test_a_bit_is_what_unbounded_integers_would_give(numerator: int, denominator: int, key: bytes) -> None:
    words, same = stream(key), stream(key)
    bit = bernoulli_exp(words, np.array([numerator]), denominator)
    assert bit.tolist() == [slow_bernoulli_exp(lambda: int(same(1)[0]), numerator, denominator)]


# --- its distribution ---


@pytest.mark.parametrize("numerator, denominator", [(0, 7), (1, 1), (1, 3), (6, 7), (7, 2), (2**40 + 1, 2**40), (9, 2)])
def test_bits_have_probability_exp_of_minus_the_fraction(numerator: int, denominator: int) -> None:
    bits = bernoulli_exp(stream(), np.full(200_000, numerator), denominator)
    expected = math.exp(-numerator / denominator)
    assert stats.binomtest(int(bits.sum()), bits.size, expected).pvalue > 1e-3


@pytest.mark.parametrize("variance", [1, 2, 3, 4, 7, 10, 100, 399])
def test_draws_have_the_probabilities_of_the_discrete_gaussian(variance: int) -> None:
    drawn = discrete_gaussian(stream(), 200_000, variance)
    reach = math.ceil(8 * math.sqrt(variance))
    seen = np.bincount(drawn + reach, minlength=2 * reach + 1)
    expected = pmf(variance, reach) * drawn.size
    common = expected >= 10
    seen = np.append(seen[common], seen[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(seen, expected).pvalue > 1e-3


@pytest.mark.parametrize("variance", [10**4, 10**9, MAX_VARIANCE])
def test_many_draws_of_a_large_variance_are_normal_up_to_their_tails(variance: int) -> None:
    drawn = discrete_gaussian(stream(), 400_000, variance) / math.sqrt(variance)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 4 / math.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / drawn.size)
    for quantile in (1e-2, 1e-3, 1e-4):
        beyond = int((np.abs(drawn) > stats.norm.isf(quantile / 2)).sum())
        assert stats.binomtest(beyond, drawn.size, quantile).pvalue > 1e-3
    assert np.abs(drawn).max() < 6.5


@pytest.mark.parametrize("bound", [1, 2, 3, 10**6 + 3, 2**41 * 3, 2**63])
def test_uniform_integers_stay_below_their_bound_and_are_uniform(bound: int) -> None:
    drawn = below(stream(), bound, 100_000)
    assert drawn.min() >= 0 and int(drawn.max()) < bound
    assert bound < 4 or stats.kstest((drawn + 0.5) / bound, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("bound", [3, 5])
def test_words_that_would_favour_small_integers_are_drawn_again(bound: int) -> None:
    # 2^64 is 1 modulo 3 and modulo 5: the largest word alone is refused
    source = iter([[2**64 - 1, 2**64 - 2], [7]])
    drawn = below(lambda n: np.array(next(source), np.uint64), bound, 2)
    assert drawn.tolist() == [7 % bound, (2**64 - 2) % bound]


# --- limits ---


@given(VARIANCES)
def test_the_longest_run_stays_within_64_bits(variance: int) -> None:
    w = math.isqrt(variance)
    farthest = ((LONGEST + 1) * variance - 1) // w
    assert max(farthest, w) ** 2 < 2**62 and (LONGEST + 1) * variance < 2**51


@pytest.mark.parametrize("variance", [0, -1, MAX_VARIANCE + 1])
def test_a_variance_out_of_range_is_refused(variance: int) -> None:
    with pytest.raises(ValueError, match="variance"):
        NoiseSource(KEY).discrete_gaussian((1,), variance)


def test_a_variance_is_an_integer() -> None:
    with pytest.raises(TypeError):
        NoiseSource(KEY).discrete_gaussian((1,), 2.5)  # type: ignore[arg-type]
    same = [NoiseSource(KEY).discrete_gaussian((9,), variance) for variance in (100, np.int64(100))]  # type: ignore[list-item]
    assert np.array_equal(*same)


# --- what it may be charged as


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 1.4142, 28.3, 500.0])
@pytest.mark.parametrize("squared", [1, 2, 1000, 2 * 1000 * 2**10])
def test_the_variance_is_the_smallest_that_may_be_charged_so(noise_multiplier: float, squared: int) -> None:
    variance = variance_for(noise_multiplier, squared)
    assert variance - 1 - SMOOTHING < Fraction(noise_multiplier) ** 2 * squared <= variance - SMOOTHING


def test_noise_that_cannot_be_drawn_is_refused() -> None:
    assert variance_for(1.0, MAX_VARIANCE - SMOOTHING) == MAX_VARIANCE
    with pytest.raises(PrivacyError, match="coarser"):
        variance_for(1.0, MAX_VARIANCE - SMOOTHING + 1)


# --- as a stream of the noise source ---


def test_the_same_key_and_calls_give_the_same_integers() -> None:
    one, two = NoiseSource(KEY), NoiseSource(KEY)
    for shape in ((3, 4), (0,), (), (50,)):
        first = one.discrete_gaussian(shape, 10**4)
        assert first.shape == shape and first.dtype == np.int64
        assert np.array_equal(first, two.discrete_gaussian(shape, 10**4))
    assert not np.array_equal(
        one.discrete_gaussian((50,), 10**4), NoiseSource(bytes(32)).discrete_gaussian((50,), 10**4)
    )


def test_discrete_noise_shifts_no_other_stream() -> None:
    plain, mixed = NoiseSource(KEY), NoiseSource(KEY)
    mixed.discrete_gaussian((100,), 7)
    assert np.array_equal(plain.normal((50,), 1.0), mixed.normal((50,), 1.0))
    assert np.array_equal(plain.poisson(50, 0.5), mixed.poisson(50, 0.5)) and plain.seed() == mixed.seed()
    mixed = NoiseSource(KEY)
    mixed.normal((100,), 1.0)
    assert np.array_equal(NoiseSource(KEY).discrete_gaussian((50,), 7), mixed.discrete_gaussian((50,), 7))


def test_every_stream_of_a_key_has_its_own_words() -> None:
    source = NoiseSource(KEY)
    streams = (source._noise, source._sampling, source._torch, source._discrete)
    assert len({stream.words(1)[0] for stream in streams}) == len(streams)


def test_what_a_key_draws_is_pinned() -> None:
    assert NoiseSource(KEY).discrete_gaussian((8,), 10**4).tolist() == [-204, 13, -180, 55, 21, 101, -7, -84]
