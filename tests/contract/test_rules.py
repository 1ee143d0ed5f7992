"""What every aggregation rule must do, whatever it makes of the answers."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from fedkd.aggregate import RULES
from fedkd.aggregate.rule import Central
from fedkd.config import Aggregate
from fedkd.consensus import Consensus
from fedkd.errors import WireError
from fedkd.privacy.noise import NoiseSource
from fedkd.wire import Rows, quantise

QUERIES, CLASSES = 6, 4
FEATURES = np.random.default_rng(0).normal(size=(QUERIES, 3)).astype(np.float32)


def dirichlet(random: np.random.Generator, concentration: float = 0.5) -> Rows:
    return quantise(random.dirichlet(np.full(CLASSES, concentration), size=QUERIES), "float16")


class RuleContract(ABC):
    kind: str
    variances: tuple[int, ...] = ()
    keys: dict[str, Any] = {}  # noqa: RUF012

    @abstractmethod
    def answers(self, random: np.random.Generator) -> Rows:
        """What one honest client may send."""

    def consensus(self, answers: Iterable[tuple[str, Rows]]) -> Consensus:
        every = list(answers)
        rule: Any = RULES[self.kind](Aggregate.model_validate({"kind": self.kind, **self.keys}))
        acc = rule.start(QUERIES, CLASSES, [client for client, _ in every])
        for client, rows in every:
            rule.check(rows, QUERIES, CLASSES, 1)
            acc = rule.fold(acc, client, rows)
        return rule.finish(acc, Central(self.variances, NoiseSource(bytes(32)), len(every)), FEATURES)

    @pytest.mark.parametrize(("seed", "clients"), [(0, 1), (1, 2), (2, 3), (3, 8), (4, 9)])
    def test_the_order_of_arrival_changes_no_byte(self, seed: int, clients: int) -> None:
        random = np.random.default_rng(seed)
        answers = [(f"client-{i}", self.answers(random)) for i in range(clients)]
        shuffled = [answers[i] for i in random.permutation(clients)]
        for other in (answers[::-1], shuffled):
            assert self.consensus(other).rows.tobytes() == self.consensus(answers).rows.tobytes()

    @pytest.mark.parametrize(("seed", "clients"), [(0, 1), (1, 2), (2, 3), (3, 8), (4, 9)])
    def test_a_known_row_is_a_row_of_probabilities(self, seed: int, clients: int) -> None:
        random = np.random.default_rng(seed)
        found = self.consensus((f"client-{i}", self.answers(random)) for i in range(clients))
        assert found.rows.dtype == np.float32 and found.rows.shape == (QUERIES, CLASSES)
        assert (found.rows >= 0).all()
        assert np.allclose(found.rows[found.known].sum(axis=1), 1, atol=1e-5)

    def test_what_all_clients_say_alike_is_the_consensus_first_choice(self) -> None:
        rows = self.answers(np.random.default_rng(1))
        found = self.consensus((f"client-{i}", rows) for i in range(40))
        first = rows.argmax(axis=1)
        assert found.known.all() and (found.rows.argmax(axis=1) == first).all()

    def test_rows_of_another_shape_or_range_are_refused(self) -> None:
        rule: Any = RULES[self.kind](Aggregate.model_validate({"kind": self.kind, **self.keys}))
        good = self.answers(np.random.default_rng(1))
        rule.check(good, QUERIES, CLASSES, 1)
        for bad in (good[1:], good[:, 1:], good * 2, good * 0, good.astype(np.int64)):
            with pytest.raises(WireError):
                rule.check(bad, QUERIES, CLASSES, 1)


class OfProbabilities(RuleContract):
    def answers(self, random: np.random.Generator) -> Rows:
        return dirichlet(random)

    def test_a_zero_with_a_sign_changes_no_byte(self) -> None:
        rows = np.zeros((QUERIES, CLASSES), np.float32)
        rows[:, 0] = 1
        signed = rows.copy()
        signed[:, 1:] = -0.0
        orders = itertools.permutations([rows, rows, signed])
        assert len({self.consensus(zip("abc", order, strict=True)).rows.tobytes() for order in orders}) == 1


class TestMean(OfProbabilities):
    kind = "mean"


class TestEntropy(OfProbabilities):
    kind = "entropy"


class TestConfidence(OfProbabilities):
    kind = "confidence"


class TestMajority(OfProbabilities):
    kind = "majority"


class TestMedian(OfProbabilities):
    kind = "median"


class TestTrimmed(OfProbabilities):
    kind = "trimmed"


class _OfVotes(RuleContract):
    def answers(self, random: np.random.Generator) -> Rows:
        return np.eye(CLASSES, dtype=np.uint8)[random.integers(CLASSES, size=QUERIES)]


class TestSum(_OfVotes):
    kind = "sum"
    variances = (1,)
    keys = {"denoise": False}  # noqa: RUF012


class TestVotes(_OfVotes):
    kind = "votes"
    variances = (1,)


def test_every_rule_is_under_contract() -> None:
    tested = {one.kind for base in (OfProbabilities, _OfVotes) for one in base.__subclasses__()}
    assert tested == set(RULES)
