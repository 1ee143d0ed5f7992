"""The mean of probabilities, exact: folded in 64-bit fixed point, so that the order of arrival cannot matter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkd.aggregate.denoise import denoised
from fedkd.aggregate.rule import Central
from fedkd.config import Aggregate
from fedkd.consensus import Consensus
from fedkd.privacy.costs import GRID
from fedkd.wire import Rows, check_noised, check_rows

SCALE = 2**40  # a probability of a float16 or float32 codec in fixed point; 2^23 clients fit into an int64
MAX_CLIENTS = 2**22


@dataclass(frozen=True)
class Accumulator:
    """Sums of ``count`` clients' rows [queries, classes]: ``total`` in units of 1/SCALE, and ``noised``, of answers
    with noise, in units of their grid."""

    total: NDArray[np.int64]
    noised: NDArray[np.int64]
    count: int
    with_noise: int = 0


class Mean:
    """Average of the clients' probabilities; rows of the result sum to one.

    Clients of the mechanism ``gaussian`` send integers on a grid, with noise: their sum is kept apart, and as soon as
    there is one the average is denoised.
    """

    def __init__(self, config: Aggregate) -> None:
        self._denoise = config.denoise

    def check(self, rows: Rows, queries: int, classes: int, voters: int) -> None:
        """Raises WireError for what is neither probabilities nor noised integers."""
        (check_noised if rows.dtype == np.int32 else check_rows)(rows, queries, classes)

    def start(self, queries: int, classes: int, roster: Collection[str]) -> Accumulator:
        """Nothing folded yet."""
        return Accumulator(np.zeros((queries, classes), np.int64), np.zeros((queries, classes), np.int64), 0)

    def fold(self, acc: Accumulator, client: str, rows: Rows) -> Accumulator:
        """Add one client's validated rows."""
        if acc.count >= MAX_CLIENTS:
            raise OverflowError("more clients than 64-bit fixed point holds")
        if rows.dtype == np.int32:
            return Accumulator(acc.total, acc.noised + rows, acc.count + 1, acc.with_noise + 1)
        fixed = np.rint(rows.astype(np.float64) * SCALE).astype(np.int64)
        return Accumulator(acc.total + fixed, acc.noised, acc.count + 1, acc.with_noise)

    def finish(self, acc: Accumulator, central: Central, features: NDArray[np.float32]) -> Consensus:
        """[queries, classes] probabilities, all known."""
        if not acc.count:
            raise ValueError("no answers to average")
        known = np.ones(len(acc.total), np.bool_)
        rows = acc.total.astype(np.float64)
        if acc.with_noise:
            sums = rows / SCALE + acc.noised / GRID
            return Consensus(denoised(features, sums, acc.count, ridge=self._denoise), known)
        return Consensus((rows / rows.sum(axis=1, keepdims=True)).astype(np.float32), known)
