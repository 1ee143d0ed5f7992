"""Who holds which examples: proxy set, tuning split, test part, and the clients of a simulation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkd.config import Partition
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
    partition: Partition,
    labels: NDArray[np.int64],
    clients: int,
    seed: int,
    ids: NDArray[np.int64] | None = None,
) -> list[Indices]:
    """Deal a private pool out to clients: one array of sorted positions in ``labels`` [n] for each.

    The arrays are disjoint and cover the pool; some may be empty. Kinds are called as in Flower Datasets.

    - ``iid`` shuffles into equal shares.
    - ``dirichlet`` splits every class by its own draw of client shares from Dirichlet(alpha), so that class mix and
      size differ: as Yurochkin et al. 2019 (arXiv:1905.12022); alpha has the meaning of Hsu et al. 2019
      (arXiv:1909.06335), who draw each client's class mix at equal sizes. Large alpha comes near ``iid``.
    - ``pathological`` gives each client ``classes_per_client`` classes, every class to equally many clients up to one,
      in equal shares: the quantity-based label imbalance of Li et al. 2022 (arXiv:2102.02079), no class left out.
    - ``shard`` sorts by class, cuts into ``shards_per_client`` equal runs a client, and deals these at random: McMahan
      et al. 2017 (arXiv:1602.05629), section 3.
    - ``size`` shuffles, and gives client i a share in proportion to i, i^2 or e^i, i = 1, 2, ...
    - ``natural_id`` keeps all examples of one id [n] together, and gives every client equally many ids up to one.

    Raises DataError where classes or ids do not suffice for the clients, or clients for the classes.
    """
    random = generator(seed, "partition", "deal")
    if partition.kind == "iid":
        return _sorted(np.array_split(random.permutation(len(labels)), clients))
    if partition.kind == "size":
        return _by_size(partition.growth, random.permutation(len(labels)), clients)
    if partition.kind == "shard":
        return _shards(labels, clients, partition.shards_per_client, random)
    if partition.kind == "dirichlet":
        owner = _dirichlet(labels, clients, partition.alpha, random)
    elif partition.kind == "pathological":
        owner = _few_classes(labels, clients, partition.classes_per_client, random)
    else:
        owner = _natural(ids, clients, random)
    bounds = np.searchsorted(np.sort(owner), np.arange(1, clients))
    return np.split(np.argsort(owner, kind="stable"), bounds)


def _sorted(parts: Iterable[Indices]) -> list[Indices]:
    return [np.sort(part) for part in parts]


def _dirichlet(labels: NDArray[np.int64], clients: int, alpha: float, random: np.random.Generator) -> Indices:
    """Every example's client."""
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(random.dirichlet(np.full(clients, alpha))) * len(members)
        # The last end may be a hair below len(members); rank < ends[i] decides, and the last client takes the rest.
        owner[members] = np.searchsorted(ends[:-1], np.arange(len(members)), side="right")
    return owner


def _by_size(growth: str, order: Indices, clients: int) -> list[Indices]:
    rank = np.arange(1, clients + 1, dtype=np.float64)
    # e^i is taken relative to the largest, which alone would overflow
    weights = {"linear": rank, "square": rank**2, "exponential": np.exp(rank - clients)}[growth]
    ends = np.floor(np.cumsum(weights / weights.sum())[:-1] * len(order)).astype(np.int64)
    return _sorted(np.split(order, ends))


def _shards(labels: NDArray[np.int64], clients: int, each: int, random: np.random.Generator) -> list[Indices]:
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    shards = np.array_split(order, clients * each)
    hands = np.split(random.permutation(len(shards)), clients)
    return _sorted(np.concatenate([shards[shard] for shard in hand]) for hand in hands)


def _few_classes(labels: NDArray[np.int64], clients: int, each: int, random: np.random.Generator) -> Indices:
    """Every example's client. A client's classes are the least taken so far, ties broken at random."""
    classes = np.unique(labels)
    if each > len(classes) or clients * each < len(classes):
        raise DataError(
            f"{clients} clients with {each} classes each cannot hold the {len(classes)} classes of the private pool",
            where="keys 'clients' and 'partition.classes_per_client'",
            fix="choose at most as many classes a client as there are, and enough for every class to have a client",
        )
    taken = np.zeros(len(classes), np.int64)
    holders: list[list[int]] = [[] for _ in classes]
    for client in range(clients):
        order = random.permutation(len(classes))
        for chosen in order[np.argsort(taken[order], kind="stable")][:each]:
            taken[chosen] += 1
            holders[chosen].append(client)
    owner = np.empty(len(labels), np.int64)
    for label, held in zip(classes, holders, strict=True):
        members = random.permutation(np.flatnonzero(labels == label))
        for client, part in zip(held, np.array_split(members, len(held)), strict=True):
            owner[part] = client
    return owner


def _natural(ids: NDArray[np.int64] | None, clients: int, random: np.random.Generator) -> Indices:
    """Every example's client."""
    known, whose = np.unique(np.zeros(0, np.int64) if ids is None else ids, return_inverse=True)
    if len(known) < clients:
        raise DataError(
            f"the private pool has examples of {len(known)} ids, too few for {clients} clients",
            where="keys 'clients' and 'partition.column'",
            fix=f"choose at most {len(known)} clients, or a column with more ids",
        )
    client_of = np.empty(len(known), np.int64)
    for client, part in enumerate(np.array_split(random.permutation(len(known)), clients)):
        client_of[part] = client
    return np.asarray(client_of[whose])


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
