"""The rules' formulas, and how many clients can be bad before a rule gives way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.aggregate import RULES, robust
from fedkd.aggregate.robust import median, trimmed_mean
from fedkd.aggregate.rule import Central
from fedkd.config import Aggregate
from fedkd.consensus import Consensus
from fedkd.privacy.noise import NoiseSource

SEEDS, QUERIES, CLASSES = st.integers(0, 2**32 - 1), 5, 4


def consensus(kind: str, answers: list[Any], **settings_: Any) -> Consensus:
    rule: Any = RULES[kind](Aggregate.model_validate({"kind": kind, **settings_}))
    acc = rule.start(*answers[0].shape, ())
    for index, rows in enumerate(answers):
        acc = rule.fold(acc, f"client-{index}", rows)
    return rule.finish(acc, Central((), NoiseSource(bytes(32)), 1), np.zeros((len(answers[0]), 2), np.float32))


def rows(*values: list[float]) -> Any:
    return np.array(values, np.float32)


def some(random: np.random.Generator, clients: int) -> list[Any]:
    return [random.dirichlet(np.ones(CLASSES), size=QUERIES).astype(np.float32) for _ in range(clients)]


# -- formulas --------------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 9), st.floats(0.05, 10))
@settings(max_examples=30, deadline=None)
def test_entropy_reduction_is_the_softmax_of_the_mean_of_probabilities(seed: int, clients: int, t: float) -> None:
    answers = some(np.random.default_rng(seed), clients)
    raised = np.exp(np.mean(answers, axis=0, dtype=np.float64) / t)
    found = consensus("entropy", answers, temperature=t).rows
    assert np.allclose(found, raised / raised.sum(axis=1, keepdims=True), atol=1e-6)


def test_entropy_reduction_reduces_the_entropy() -> None:
    def entropy(p: Any) -> float:
        return float(-(p * np.log(p)).sum())

    answers = [rows([0.5, 0.3, 0.2])]
    assert entropy(consensus("entropy", answers).rows) < entropy(answers[0])


@given(SEEDS, st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_confidence_weights_rows_by_their_variance(seed: int, clients: int) -> None:
    answers = some(np.random.default_rng(seed), clients)
    weights = np.stack([a.astype(np.float64).var(axis=1) for a in answers])
    expected = (weights[:, :, None] * np.stack(answers)).sum(axis=0) / weights.sum(axis=0)[:, None]
    assert np.allclose(consensus("confidence", answers).rows, expected, atol=1e-5)


def test_a_client_that_does_not_know_has_no_say_in_the_confidence_rule() -> None:
    sure, unsure = rows([0.7, 0.3]), rows([0.5, 0.5])
    assert np.allclose(consensus("confidence", [sure, unsure, unsure]).rows, sure)


def test_where_nobody_has_a_preference_the_confidence_rule_knows_nothing() -> None:
    found = consensus("confidence", [rows([0.5, 0.5], [1, 0])] * 3)
    assert found.known.tolist() == [False, True] and np.allclose(found.rows, [[0.5, 0.5], [1, 0]])


def test_the_majority_counts_first_choices_and_shares_between_equals() -> None:
    answers = [rows([0.4, 0.3, 0.3]), rows([0.4, 0.3, 0.3]), rows([0, 1, 0])]
    assert consensus("majority", answers).rows.tolist() == [[1, 0, 0]]
    assert consensus("majority", [answers[0], answers[2]]).rows.tolist() == [[0.5, 0.5, 0]]


@given(SEEDS, st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_the_median_is_numpys_of_every_entry_scaled(seed: int, clients: int) -> None:
    answers = some(np.random.default_rng(seed), clients)
    middle = np.median(np.stack(answers).astype(np.float64), axis=0)
    assert np.allclose(consensus("median", answers).rows, middle / middle.sum(axis=1, keepdims=True), atol=1e-6)


@given(SEEDS, st.integers(1, 20), st.floats(0, 0.49))
@settings(max_examples=50, deadline=None)
def test_the_trimmed_mean_leaves_out_whole_clients_at_both_ends(seed: int, clients: int, share: float) -> None:
    ordered = np.sort(np.random.default_rng(seed).random((7, clients)).astype(np.float32), axis=1)
    cut = min(int(np.ceil(share * clients - 1e-9)), (clients - 1) // 2)
    assert np.allclose(trimmed_mean(ordered, share), ordered[:, cut : clients - cut].mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("clients", "share", "cut"), [(10, 0.2, 2), (30, 0.1, 3), (5, 0.2, 1), (4, 0.2, 1), (2, 0.4, 0)]
)
def test_a_share_is_rounded_up_to_whole_clients(clients: int, share: float, cut: int) -> None:
    ordered = np.arange(clients, dtype=np.float32)[None] ** 2
    assert trimmed_mean(ordered, share) == pytest.approx(ordered[0, cut : clients - cut].mean())


def test_medians_that_leave_nothing_are_not_known() -> None:
    found = consensus("median", list(np.eye(3, dtype=np.float32)[:, None]))
    assert found.known.tolist() == [False]


def test_large_rounds_are_taken_in_blocks_without_changing_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = some(np.random.default_rng(0), 7)
    whole = {kind: consensus(kind, answers).rows.tobytes() for kind in ("median", "trimmed")}
    monkeypatch.setattr(robust, "BLOCK", 21)
    assert whole == {kind: consensus(kind, answers).rows.tobytes() for kind in whole}


# -- breakdown -------------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(0, 6), st.data())
@settings(max_examples=50, deadline=None)
def test_a_minority_moves_no_median_out_of_the_range_of_the_others(seed: int, bad: int, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    honest = random.random((8, bad + 1 + data.draw(st.integers(0, 3)))).astype(np.float32)
    lies = random.choice(np.array([0.0, 1.0, 0.5], np.float32), size=(8, bad))
    found = median(np.sort(np.concatenate([honest, lies], axis=1), axis=1))
    assert (found >= honest.min(axis=1)).all() and (found <= honest.max(axis=1)).all()


@given(SEEDS, st.integers(2, 20), st.floats(0, 0.45))
@settings(max_examples=50, deadline=None)
def test_liars_within_the_trimmed_share_stay_in_the_range_of_the_others(seed: int, clients: int, trim: float) -> None:
    random = np.random.default_rng(seed)
    bad = min(int(trim * clients), (clients - 1) // 2)
    honest = random.random((8, clients - bad)).astype(np.float32)
    lies = random.choice(np.array([0.0, 1.0], np.float32), size=(8, bad))
    found = trimmed_mean(np.sort(np.concatenate([honest, lies], axis=1), axis=1), trim)
    assert (found >= honest.min(axis=1) - 1e-6).all() and (found <= honest.max(axis=1) + 1e-6).all()


@pytest.mark.parametrize("kind", ["majority", "median", "trimmed"])
def test_two_of_five_liars_do_not_change_what_three_say_alike(kind: str) -> None:
    truth, lie = rows([0.75, 0.25, 0.0]), rows([0.0, 0.0, 1.0])
    found = consensus(kind, [truth] * 3 + [lie] * 2, trim=0.4).rows
    assert np.allclose(found, [[1, 0, 0]] if kind == "majority" else truth, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "entropy", "confidence"])
def test_the_same_two_liars_win_where_all_are_added_up(kind: str) -> None:
    truth, lie = rows([0.4, 0.35, 0.25]), rows([0.0, 0.0, 1.0])
    assert consensus(kind, [truth] * 3 + [lie] * 2).rows.argmax() == 2


def test_a_majority_of_liars_wins_everywhere() -> None:
    truth, lie = rows([0.75, 0.25, 0.0]), rows([0.0, 0.0, 1.0])
    assert all(consensus(k, [truth] * 2 + [lie] * 3).rows.argmax() == 2 for k in ("majority", "median", "trimmed"))


@pytest.mark.parametrize("kind", ["median", "trimmed"])
def test_a_client_counts_once(kind: str) -> None:
    rule: Any = RULES[kind](Aggregate.model_validate({"kind": kind}))
    acc = rule.fold(rule.start(1, 2, ()), "a", rows([1, 0]))
    with pytest.raises(ValueError, match="answers twice"):
        rule.fold(acc, "a", rows([1, 0]))
