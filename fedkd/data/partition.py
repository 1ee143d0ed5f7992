"""Who holds which examples: proxy set, tuning split, test part, and the clients of a simulation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedkd.data.sources import Examples, Pixels, as_float
from fedkd.errors import DataError
from fedkd.rng import generator

Indices = NDArray[np.int64]
_CHUNK = 4096  # examples that are in memory as float32 at a time


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint, sorted indices [size] into one pool; together they are the whole pool."""

    proxy: Indices
    tune: Indices
    private: Indices


def cut(n: int, proxy_size: int, tune_size: int, seed: int) -> Splits:
    """Cut a pool of n examples: first the proxy set, then the tuning split; what is left is private.

    The proxy set does not depend on ``tune_size``. Raises DataError when no private example would be left.
    """
    if proxy_size + tune_size >= n:
        raise DataError(
            f"{n} examples are too few for {proxy_size} proxies, {tune_size} for tuning, and private ones",
            where="keys 'proxy.size' and 'proxy.tune_size'",
            fix="make one of them smaller",
        )
    order = generator(seed, "partition", "cut").permutation(n)
    proxy, tune, private = np.split(order, [proxy_size, proxy_size + tune_size])
    return Splits(np.sort(proxy), np.sort(tune), np.sort(private))


def deal(
    kind: Literal["iid", "dirichlet"], labels: NDArray[np.int64], clients: int, alpha: float, seed: int
) -> list[Indices]:
    """Deal a private pool out to clients: one array of sorted positions in ``labels`` [n] for each.

    The arrays are disjoint and cover the pool; some may be empty. ``iid`` shuffles into equal shares. ``dirichlet``
    splits every class by its own draw of client shares from Dirichlet(alpha), so that class mix and size
    differ: as Yurochkin et al. 2019 (arXiv:1905.12022); alpha has the meaning of Hsu et al. 2019 (arXiv:1909.06335),
    who draw each client's class mix at equal sizes. Large alpha comes near ``iid``.
    """
    random = generator(seed, "partition", "deal")
    if kind == "iid":
        return [np.sort(part) for part in np.array_split(random.permutation(len(labels)), clients)]
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(random.dirichlet(np.full(clients, alpha))) * len(members)
        # The last end may be a hair below len(members); rank < ends[i] decides, and the last client takes the rest.
        owner[members] = np.searchsorted(ends[:-1], np.arange(len(members)), side="right")
    bounds = np.searchsorted(np.sort(owner), np.arange(1, clients))
    return np.split(np.argsort(owner, kind="stable"), bounds)


def carve_test(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """(train, test) of a source without a test part; both keep the source's order. Raises DataError if one is empty."""
    size = round(len(examples) * fraction)
    if not 0 < size < len(examples):
        raise DataError(
            f"{fraction} of {len(examples)} examples leaves nothing to test on, or nothing to train on",
            where="key 'data.test_fraction'",
            fix="choose a share strictly between 0 and 1, or give the source a test part",
        )
    order = generator(seed, "partition", "test").permutation(len(examples))
    return examples.take(np.sort(order[size:])), examples.take(np.sort(order[:size]))


def fingerprints(x: Pixels) -> NDArray[np.bytes_]:
    """SHA-256 of every example of x [n, *shape] in hexadecimal, as bytes of width 64 [n]; compare with np.isin.

    Hashed as float32, so that an image has one fingerprint as uint8 and as uint8 / 255.
    """
    return np.array(list(_digests(x)), dtype="S64")


def _digests(x: Pixels) -> Iterator[str]:
    for start in range(0, len(x), _CHUNK):
        rows = as_float(x[start : start + _CHUNK]) + np.float32(0)  # + 0 makes one zero of 0.0 and -0.0
        for row in np.ascontiguousarray(rows, "<f4"):
            yield hashlib.sha256(row.tobytes()).hexdigest()
