"""Rules of one-hot votes, on whose sum a trusted aggregator puts noise once."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from fedkd.aggregate import sum as modular
from fedkd.aggregate.denoise import denoised
from fedkd.aggregate.rule import Central
from fedkd.aggregate.sum import ModularSum
from fedkd.aggregate.votes import confident_gnmax, gnmax
from fedkd.config import Aggregate
from fedkd.consensus import Consensus
from fedkd.wire import Rows, check_votes


class _Counts:
    def __init__(self, config: Aggregate) -> None:
        self._config = config

    def check(self, rows: Rows, queries: int, classes: int, voters: int) -> None:
        """Raises WireError for what is not so many votes a query."""
        check_votes(rows, queries, classes, voters)

    def start(self, queries: int, classes: int, roster: Collection[str]) -> ModularSum:
        """Nothing summed yet, of a roster."""
        return modular.start(queries, classes, roster)

    def fold(self, acc: ModularSum, client: str, rows: Rows) -> ModularSum:
        """Add one client's checked votes. Raises PrivacyError for a client that counts already, or is not expected."""
        return modular.fold(acc, client, modular.share(rows.astype(np.int64)))


class Sum(_Counts):
    """Every query's counts with discrete Gaussian noise, denoised with the public features."""

    def finish(self, acc: ModularSum, central: Central, features: NDArray[np.float32]) -> Consensus:
        """[queries, classes] probabilities, all known."""
        (variance,) = central.variances
        modular.check_room(central.voters, 1, variance)
        sums = modular.finish(acc, central.noise, variance)
        rows = denoised(features, sums, len(acc.summed), ridge=self._config.denoise)
        return Consensus(rows, np.ones(len(rows), np.bool_))


class Votes(_Counts):
    """Every query's noisy first choice (GNMax), with a threshold only where enough clients agree (Confident-GNMax)."""

    def finish(self, acc: ModularSum, central: Central, features: NDArray[np.float32]) -> Consensus:
        """One-hot rows [queries, classes]; known are the queries that were answered."""
        tally, threshold = modular.exact(acc), self._config.threshold
        if threshold is None:
            labels = gnmax(tally, central.noise, *central.variances)
            answered = np.ones(len(labels), np.bool_)
        else:
            least = math.ceil(threshold * central.voters)
            answered, labels = confident_gnmax(tally, central.noise, least, *central.variances)
        rows = np.zeros(tally.shape, np.float32)
        rows[answered, labels[answered]] = 1.0
        return Consensus(rows, answered)
