"""Rules that add up what every client says: exact in fixed point, so that the order of arrival cannot matter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.aggregate.mean import MAX_CLIENTS, SCALE
from fedkd.aggregate.rule import Central, OfProbabilities
from fedkd.aggregate.simplex import scaled
from fedkd.config import Aggregate
from fedkd.consensus import Consensus
from fedkd.wire import Rows


@dataclass(frozen=True)
class Total:
    """Rows [queries, classes] of ``count`` clients, in units of 1/SCALE."""

    rows: NDArray[np.int64]
    count: int


class _Added(OfProbabilities):
    def __init__(self, config: Aggregate) -> None:
        self._config = config

    def start(self, queries: int, classes: int, roster: Collection[str]) -> Total:
        """Nothing added yet."""
        return Total(np.zeros((queries, classes), np.int64), 0)

    def fold(self, acc: Total, client: str, rows: Rows) -> Total:
        """Add one client's checked rows."""
        if acc.count >= MAX_CLIENTS:
            raise OverflowError("more clients than 64-bit fixed point holds")
        share = np.rint(self._share(rows.astype(np.float64)) * SCALE).astype(np.int64)
        return Total(acc.rows + share, acc.count + 1)

    def _share(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is added for one client's probabilities [queries, classes]: non-negative, at most 1."""
        return rows


class Entropy(_Added):
    """Entropy reduction averaging: softmax of the mean of probabilities over T, which sharpens it for T below about
    1/2 (Itahara et al. 2020, arXiv:2008.06180, who take T = 0.1)."""

    def finish(self, acc: Total, central: Central, features: NDArray[np.float32]) -> Consensus:
        """[queries, classes] probabilities, all known."""
        mean = acc.rows / (SCALE * acc.count)
        raised = np.exp((mean - mean.max(axis=1, keepdims=True)) / self._config.temperature)
        return scaled(raised)


class Confidence(_Added):
    """Mean of probabilities, each client's row weighted by the variance of its entries: nothing for a uniform row, most
    for a one-hot one. After Cho et al. 2022 (arXiv:2204.12703), who take the variance of logits."""

    def _share(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        weighted: NDArray[np.float64] = rows * rows.var(axis=1, keepdims=True)
        return weighted

    def finish(self, acc: Total, central: Central, features: NDArray[np.float32]) -> Consensus:
        """[queries, classes] probabilities; known are the queries on which somebody has a preference."""
        return scaled(acc.rows)


class Majority(_Added):
    """One vote a client, for its first choice; all mass on the class with most votes, or equal shares on equals."""

    def _share(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        votes = np.zeros(rows.shape)
        np.put_along_axis(votes, rows.argmax(axis=1, keepdims=True), 1.0, axis=1)
        return votes

    def finish(self, acc: Total, central: Central, features: NDArray[np.float32]) -> Consensus:
        """[queries, classes] probabilities, all known."""
        first: NDArray[Any] = acc.rows == acc.rows.max(axis=1, keepdims=True)
        return scaled(first)
