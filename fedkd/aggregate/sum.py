"""The sum of clients' integers modulo 2^32, and the noise that the aggregator adds to it once.

Sums modulo m are all that secure aggregation asks of its parties (Bonawitz et al. 2017, doi:10.1145/3133956.3133982):
there a share is a client's rows plus masks that cancel over the roster, but for those of clients that drop out. Today a
share is the rows themselves, and the aggregator, which sees them, is trusted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import ConfigError, PrivacyError
from fedkd.privacy.noise import NoiseSource

MODULUS = 2**32
Integers = NDArray[np.int64]
Shares = NDArray[np.uint32]
"""Integers modulo MODULUS."""

DEVIATIONS = 10
"""Room is left for noise of so many standard deviations: one number in 10^22 is beyond."""


@dataclass(frozen=True)
class ModularSum:
    """Shares [examples, classes] added up over the clients ``summed``; those of ``missing`` may still come."""

    residues: Shares
    summed: frozenset[str]
    missing: frozenset[str]


def start(examples: int, classes: int, roster: Iterable[str]) -> ModularSum:
    """Nothing summed yet, of a roster that is fixed before the first share comes."""
    return ModularSum(np.zeros((examples, classes), np.uint32), frozenset(), frozenset(roster))


def share(rows: Integers) -> Shares:
    """What a client sends of its rows [examples, classes]."""
    return (rows % MODULUS).astype(np.uint32)


def fold(total: ModularSum, client: str, rows: Shares) -> ModularSum:
    """Add one client's share; in any order the result is the same. Raises PrivacyError for a client that is not on the
    roster or is in the sum already: the noise is sized for clients that count once."""
    if client not in total.missing:
        raise PrivacyError("a client is summed once, and only if it is on the round's roster", where=client)
    if rows.dtype != np.uint32 or rows.shape != total.residues.shape:
        raise ValueError(f"a share is uint32 {total.residues.shape}, not {rows.dtype} {rows.shape}")
    residues = total.residues + rows  # numpy's uint32 wraps at MODULUS
    return replace(total, residues=residues, summed=total.summed | {client}, missing=total.missing - {client})


def exact(total: ModularSum) -> Integers:
    """The sum itself, [examples, classes]: private, for a mechanism that adds its own noise."""
    return _centred(total.residues.astype(np.int64))


def finish(total: ModularSum, noise: NoiseSource, variance: int) -> Integers:
    """The sum with discrete Gaussian noise of an integer ``variance``, [examples, classes].

    Noise is added modulo MODULUS and the result centred then: it stays post-processing of the noised integers even if
    they should wrap, where a wrapped sum that was centred first would have no sensitivity.
    """
    return _centred((total.residues + noise.discrete_gaussian(total.residues.shape, variance)) % MODULUS)


def check_room(clients: int, grid: int, variance: int) -> None:
    """Raises ConfigError if the sum of so many rows on the grid, with its noise, may not fit between -m/2 and m/2."""
    if clients * grid + DEVIATIONS * variance**0.5 >= MODULUS // 2:
        raise ConfigError(
            f"{clients} clients on a grid of {grid} with noise of deviation {variance**0.5:.0f} overflow 32 bits",
            fix="choose a coarser grid",
        )


def _centred(residues: Integers) -> Integers:
    return np.where(residues < MODULUS // 2, residues, residues - MODULUS)
