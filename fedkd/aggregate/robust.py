"""Rules that a minority of clients cannot move far, whatever it sends: coordinate-wise, after Yin et al. 2018
(arXiv:1803.01498), who take them of gradients. They keep every client's rows until the end of the round."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.aggregate.rule import Central, OfProbabilities
from fedkd.aggregate.simplex import scaled
from fedkd.config import Aggregate
from fedkd.consensus import Consensus
from fedkd.wire import Rows

BLOCK = 2**22
"""So many values are put side by side at a time: the copy is small beside the rows themselves."""

Ordered = NDArray[np.float32]


@dataclass(frozen=True)
class Collected:
    """Every client's rows [queries, classes], as they came."""

    queries: int
    classes: int
    rows: Mapping[str, Rows] = field(default_factory=dict)


class _Coordinatewise(OfProbabilities):
    def __init__(self, centre: Callable[[Ordered], NDArray[np.float64]]) -> None:
        """``centre`` is that [values] of rising rows [values, clients]."""
        self._centre = centre

    def start(self, queries: int, classes: int, roster: Collection[str]) -> Collected:
        """Nothing collected yet."""
        return Collected(queries, classes)

    def fold(self, acc: Collected, client: str, rows: Rows) -> Collected:
        """Keep one client's checked rows. Raises ValueError for a client whose rows are there already."""
        if client in acc.rows:
            raise ValueError(f"{client} answers twice")
        return Collected(acc.queries, acc.classes, {**acc.rows, client: rows})

    def finish(self, acc: Collected, central: Central, features: NDArray[np.float32]) -> Consensus:
        """[queries, classes] probabilities; known are the queries on which something is left to scale."""
        return scaled(_by_coordinate(acc, self._centre))


class Median(_Coordinatewise):
    """The median of every class' probabilities over the clients, each row scaled to sum to one. A minority moves it no
    further than the range of the others."""

    def __init__(self, config: Aggregate) -> None:
        super().__init__(median)


class Trimmed(_Coordinatewise):
    """The mean of every class' probabilities without the smallest and the largest share of them, each row scaled to sum
    to one."""

    def __init__(self, config: Aggregate) -> None:
        super().__init__(partial(trimmed_mean, share=config.trim))


def median(ordered: Ordered) -> NDArray[np.float64]:
    """Of rising rows [values, clients]; of an even number of clients the mean of the two in the middle."""
    clients = ordered.shape[1]
    low, high = ordered[:, (clients - 1) // 2], ordered[:, clients // 2]
    middle: NDArray[np.float64] = (low.astype(np.float64) + high) / 2
    return middle


def trimmed_mean(ordered: Ordered, share: float) -> NDArray[np.float64]:
    """Of rising rows [values, clients] without this share of them at either end, rounded up to whole clients as long as
    one or two are left."""
    clients = ordered.shape[1]
    cut = min(math.ceil(share * clients - 1e-9), (clients - 1) // 2)
    # the order of equals changes no sum: what is added up is sorted
    left: NDArray[np.float64] = ordered[:, cut : clients - cut].mean(axis=1, dtype=np.float64)
    return left


def _by_coordinate(acc: Collected, centre: Callable[[Ordered], NDArray[np.float64]]) -> NDArray[np.float64]:
    """``centre`` over the clients of every entry, [queries, classes]. Raises ValueError when there are no clients."""
    if not acc.rows:
        raise ValueError("no answers to take together")
    every: list[NDArray[Any]] = [rows.reshape(-1) for rows in acc.rows.values()]
    values, step = acc.queries * acc.classes, max(1, BLOCK // len(every))
    result = np.empty(values, np.float64)
    for begin in range(0, values, step):
        block = np.stack([rows[begin : begin + step] for rows in every], axis=1).astype(np.float32)
        block += 0.0  # -0 becomes 0: which of the two comes first would depend on the order of arrival
        block.sort(axis=1)
        result[begin : begin + step] = centre(block)
    return result.reshape(acc.queries, acc.classes)
