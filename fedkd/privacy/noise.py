"""Keyed noise: a stream cipher under a key of its own for every reservation.

Normals come from the inverse CDF of 53-bit uniforms in float64. This is not hardened against attacks on floating-point
noise (Mironov 2012, doi:10.1145/2382196.2382264); the report says so. Discrete Gaussians are drawn without any.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from scipy.special import ndtri

from fedkd.privacy.discrete import discrete_gaussian
from fedkd.rng import derive_bytes

KEY_BYTES = 32


def fresh_key() -> bytes:
    """256 bits from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


def simulation_key(seed: int, client: str, run: str, round: int) -> bytes:
    """A reproducible key. It gives no guarantee, and every report of it says so."""
    return derive_bytes(seed, "noise", client, run, round)


class NoiseSource:
    """ChaCha20 under ``key``: a stream each for noise, sampling, seeds and discrete noise, so that no one's length
    shifts another."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a noise key has {KEY_BYTES} bytes")
        labels = (b"noise\0\0\0", b"sampling", b"torch\0\0\0", b"discrete")
        self._noise, self._sampling, self._torch, self._discrete = (_stream(key, label) for label in labels)

    def normal(self, shape: tuple[int, ...], std: float) -> NDArray[np.float64]:
        """Independent N(0, std^2) of the given shape."""
        return ndtri(self._noise.uniform(math.prod(shape))).reshape(shape) * std  # type: ignore[no-any-return]

    def discrete_gaussian(self, shape: tuple[int, ...], variance: int) -> NDArray[np.int64]:
        """Independent integers N_Z(0, variance) of the given shape, exactly. Raises ValueError for a variance that is
        outside [1, discrete.MAX_VARIANCE]."""
        return discrete_gaussian(self._discrete.words, math.prod(shape), variance).reshape(shape)

    def seed(self) -> int:
        """For the dropout masks of private examples, which must be as secret as the noise: whoever knew them could tell
        by the other examples' masks that one has gone."""
        return int.from_bytes(self._torch.bytes(8), "little") >> 1

    def poisson(self, n: int, rate: float) -> NDArray[np.intp]:
        """Indices of a Poisson sample: each of n examples by itself with probability ``rate``. May be empty."""
        if rate >= 1:
            return np.arange(n)
        return np.flatnonzero(self._sampling.uniform(n) < rate)


class _stream:
    def __init__(self, key: bytes, label: bytes) -> None:
        # 16 bytes: a 64-bit block counter that starts at zero, then the label
        self._encryptor = Cipher(algorithms.ChaCha20(key, bytes(8) + label), mode=None).encryptor()

    def bytes(self, n: int) -> bytes:
        """The next n bytes of the key stream."""
        return self._encryptor.update(bytes(n))

    def words(self, n: int) -> NDArray[np.uint64]:
        """n uniform 64-bit words, the same on every machine. Read-only."""
        return np.frombuffer(self.bytes(8 * n), dtype="<u8").astype(np.uint64, copy=False)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """n uniforms in the open interval (0, 1), on the midpoints of a grid of 2^-53."""
        words = self.words(n)
        # the top 53 bits, shifted by half a step: never 0 and never 1, where the inverse CDF is infinite
        return np.minimum((words >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54, 1 - 2.0**-53)
