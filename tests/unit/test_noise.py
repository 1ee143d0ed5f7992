import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from fedkd.privacy.noise import NoiseSource, fresh_key, simulation_key

KEY = bytes(range(32))


def test_the_same_key_gives_the_same_noise_and_another_key_another() -> None:
    one, two, other = (NoiseSource(key).normal((100,), 1.0) for key in (KEY, KEY, fresh_key()))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_noise_is_normal_with_the_given_deviation() -> None:
    sample = NoiseSource(KEY).normal((200_000,), 2.5)
    assert stats.kstest(sample / 2.5, "norm").pvalue > 0.001
    assert abs(sample.std() / 2.5 - 1) < 0.01


def test_noise_is_finite_at_both_ends_of_the_grid() -> None:
    source = NoiseSource(KEY)
    assert np.isfinite(source.normal((1_000_000,), 1.0)).all()


def test_noise_and_sampling_do_not_shift_each_other() -> None:
    plain, mixed = NoiseSource(KEY), NoiseSource(KEY)
    mixed.poisson(12345, 0.5)
    assert np.array_equal(plain.normal((50,), 1.0), mixed.normal((50,), 1.0))


def test_noise_is_not_repeated_within_a_reservation() -> None:
    source = NoiseSource(KEY)
    assert not np.array_equal(source.normal((50,), 1.0), source.normal((50,), 1.0))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_poisson_sampling_takes_each_example_at_its_rate(rate: float) -> None:
    source = NoiseSource(KEY)
    sizes = [len(source.poisson(1000, rate)) for _ in range(300)]
    assert abs(np.mean(sizes) / (1000 * rate) - 1) < 0.1
    assert stats.ks_2samp(sizes, stats.binom.rvs(1000, rate, size=3000, random_state=0)).pvalue > 0.001


def test_rate_one_takes_everything_and_no_data_gives_an_empty_sample() -> None:
    assert NoiseSource(KEY).poisson(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert len(NoiseSource(KEY).poisson(0, 0.5)) == 0


def test_simulation_keys_differ_by_client_run_round_and_seed() -> None:
    keys = {simulation_key(s, c, r, n) for s in (0, 1) for c in "ab" for r in "xy" for n in (1, 2)}
    assert len(keys) == 16


def test_the_keystream_is_chacha20_as_published() -> None:
    # RFC 8439, appendix A.1, test vector 1: zero key, zero nonce, counter 0
    zero = Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), mode=None).encryptor().update(bytes(16))
    assert zero.hex() == "76b8e0ada0f13d90405d6ae55386bd28"
