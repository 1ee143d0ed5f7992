"""What every aggregation rule is: answers in, in any order; one consensus out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkd.config import Aggregate
from fedkd.consensus import Consensus
from fedkd.privacy.noise import NoiseSource
from fedkd.wire import Rows, check_rows


@dataclass(frozen=True)
class Central:
    """What a trusted aggregator adds: noise of these variances from ``noise``, on the votes of ``voters``."""

    variances: tuple[int, ...]
    noise: NoiseSource
    voters: int


Acc = TypeVar("Acc")


class Rule(Protocol[Acc]):
    """Folds answers in any order into the same bytes."""

    def __init__(self, config: Aggregate) -> None: ...

    def check(self, rows: Rows, queries: int, classes: int, voters: int) -> None:
        """Raises WireError for rows that the rule cannot take from a client with so many votes."""

    def start(self, queries: int, classes: int, roster: Collection[str]) -> Acc:
        """Nothing folded yet, of these clients."""

    def fold(self, acc: Acc, client: str, rows: Rows) -> Acc:
        """Add one client's checked rows."""

    def finish(self, acc: Acc, central: Central, features: NDArray[np.float32]) -> Consensus:
        """What the clients say together about queries with these public features [queries, d]."""


class OfProbabilities:
    """What rules have in common whose answers are probabilities."""

    def check(self, rows: Rows, queries: int, classes: int, voters: int) -> None:
        """Raises WireError for what is no probabilities."""
        check_rows(rows, queries, classes)
