"""The mean of probabilities, exact: folded in 64-bit fixed point, so that the order of arrival cannot matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedkd.wire import Rows

SCALE = 2**40  # a probability of a float16 or float32 codec in fixed point; 2^23 clients fit into an int64
MAX_CLIENTS = 2**22


@dataclass(frozen=True)
class Accumulator:
    """Sum of ``count`` clients' rows, [examples, classes], in units of 1/SCALE."""

    total: NDArray[np.int64]
    count: int


class Aggregator(Protocol):
    """Folds answers in any order into the same bytes."""

    def start(self, examples: int, classes: int) -> Accumulator: ...

    def fold(self, acc: Accumulator, rows: Rows) -> Accumulator: ...

    def finish(self, acc: Accumulator) -> NDArray[np.float32]: ...


class Mean:
    """Average of the clients' probabilities; rows of the result sum to one."""

    def start(self, examples: int, classes: int) -> Accumulator:
        """Nothing folded yet."""
        return Accumulator(np.zeros((examples, classes), np.int64), 0)

    def fold(self, acc: Accumulator, rows: Rows) -> Accumulator:
        """Add one client's validated rows."""
        if acc.count >= MAX_CLIENTS:
            raise OverflowError("more clients than 64-bit fixed point holds")
        fixed = np.rint(rows.astype(np.float64) * SCALE).astype(np.int64)
        return Accumulator(acc.total + fixed, acc.count + 1)

    def finish(self, acc: Accumulator) -> NDArray[np.float32]:
        """[examples, classes] probabilities."""
        if not acc.count:
            raise ValueError("no answers to average")
        rows = acc.total.astype(np.float64)
        mean: NDArray[np.float32] = (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)
        return mean


AGGREGATORS: dict[str, type[Aggregator]] = {"mean": Mean}
