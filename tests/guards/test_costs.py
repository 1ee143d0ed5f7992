"""What is charged for released integers is what one unit of private data can change in them, against the noise on them.

Sensitivities are enumerated or searched on the integers that the mechanisms release; noise is measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedkd.aggregate.counts import Sum, Votes
from fedkd.aggregate.rule import Central
from fedkd.config import Aggregate, Policy
from fedkd.errors import PrivacyError
from fedkd.privacy.contract import Contract, draw_up
from fedkd.privacy.costs import GRID, cost_of, most
from fedkd.privacy.discrete import SMOOTHING
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.limits import Past
from fedkd.privacy.mechanisms import MECHANISMS
from fedkd.privacy.noise import NoiseSource
from fedkd.privacy.units import seen_by
from tests import builders

KEY = bytes(range(32))
AGGREGATES = {"dp_sgd": "mean", "gaussian": "mean", "sum": "sum", "votes": "confident_votes", "none": "mean"}


class Silence(NoiseSource):
    """No discrete noise, so that the integers themselves can be seen; notes what noise was asked for."""

    def __init__(self) -> None:
        super().__init__(KEY)
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def discrete_gaussian(self, shape: tuple[int, ...], variance: int) -> Any:
        self.asked.append((shape, variance))
        return np.zeros(shape, np.int64)


def policy(mechanism: str, **changes: Any) -> Policy:
    settings = {"epsilon": 3.0, "steps": 2, "nominal_examples": 20, "proxies": "0" * 64, "accept_low_utility": True}
    return Policy.model_validate({**settings, "mechanism": mechanism, **changes})


def contract(mechanism: str, queries: int, classes: int = 3, **changes: Any) -> Contract:
    offer = builders.offer(examples=queries, classes=classes, rounds=1, aggregate=AGGREGATES[mechanism])
    return draw_up(policy(mechanism, **changes), offer, Past())


def integers(mechanism: str, rows: np.ndarray, **changes: Any) -> np.ndarray:
    """What a client with these probabilities [students, queries, classes] would release, were there no noise."""
    agreed = contract(mechanism, rows.shape[1], rows.shape[2], **changes)
    made = MECHANISMS[mechanism](agreed)
    return made.release(made.bound(rows.astype(np.float32)), Silence()).rows.astype(np.int64)


def squared(difference: np.ndarray) -> int:
    return int((difference.astype(np.int64) ** 2).sum())


def sensitivities(mechanism: str, queries: int, **changes: Any) -> list[int]:
    """The squared sensitivity of each part, as the policy's cost has it."""
    cost = cost_of(mechanism, policy(mechanism, **changes), queries, AGGREGATES[mechanism])
    return [part.squared for part in cost.parts if part.squared is not None]


def choices(queries: int, classes: int) -> Iterator[np.ndarray]:
    """Every answer of one client that is sure of itself."""
    for labels in itertools.product(range(classes), repeat=queries):
        yield np.eye(classes)[list(labels)][None]


# -- sensitivity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 2, 3])
def test_a_client_that_comes_or_goes_changes_a_sum_by_the_root_of_the_queries(queries: int) -> None:
    moved = {squared(integers("sum", rows)) for rows in choices(queries, 3)}
    assert moved == set(sensitivities("sum", queries)) == {queries}


@pytest.mark.parametrize("queries", [1, 2])
def test_a_replaced_clients_answers_move_by_the_root_of_twice_the_queries_times_the_grid(queries: int) -> None:
    released = [integers("gaussian", rows) for rows in choices(queries, 3)]
    moved = {squared(a - b) for a in released for b in released}
    assert [max(moved)] == sensitivities("gaussian", queries) == [2 * queries * GRID**2]


probabilities = st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6).map(
    lambda numbers: np.array(numbers, np.float32).reshape(1, 2, 3)
)


@settings(max_examples=100, deadline=None)
@given(a=probabilities, b=probabilities)
@pytest.mark.parametrize("mechanism", ["gaussian", "sum"])
def test_no_two_clients_answers_differ_by_more(mechanism: str, a: np.ndarray, b: np.ndarray) -> None:
    one, other = (integers(mechanism, rows) for rows in (a, b))
    (limit,) = sensitivities(mechanism, 2)
    assert squared(one) <= limit and (mechanism == "sum" or squared(one - other) <= limit)


@pytest.mark.parametrize("queries", [1, 2])
def test_a_moved_vote_changes_two_counts_and_the_largest_by_one(queries: int) -> None:
    """Of each query: every query is charged as a release of its own."""
    others = np.random.default_rng(0).integers(0, 3, (queries, 3))
    released = [integers("votes", rows) for rows in choices(queries, 3)]
    pairs = [(others + a, others + b) for a in released for b in released]
    counts = max(squared(row) for a, b in pairs for row in a - b)
    largest = max(int(np.abs(a.max(axis=1) - b.max(axis=1)).max()) for a, b in pairs)
    assert [largest**2, counts] == sensitivities("votes", queries) == [1, 2]
    assert {event.steps for event in contract("votes", queries).events} == {queries}


def test_one_record_moves_the_vote_of_its_own_shard_alone() -> None:
    random = np.random.default_rng(1)
    rows = random.dirichlet([1] * 3, size=(5, 4))
    other = rows.copy()
    other[2] = random.dirichlet([1] * 3, size=4)
    a, b = (integers("votes", some, shards=5) for some in (rows, other))
    assert a.sum(axis=1).tolist() == b.sum(axis=1).tolist() == [5] * 4
    assert max(squared(row) for row in a - b) <= 2
    assert {event.unit for event in contract("votes", 4, shards=5).events} == {"example"}


@pytest.mark.parametrize("mechanism", ["gaussian", "sum", "votes"])
def test_the_bound_that_a_mechanism_states_is_the_one_that_is_charged(mechanism: str) -> None:
    agreed = contract(mechanism, 4)
    bounded = MECHANISMS[mechanism](agreed).bound(np.eye(3, dtype=np.float32)[[0, 1, 2, 0]][None])
    whole = sensitivities(mechanism, 4)[-1] * (4 if mechanism == "votes" else 1)
    assert bounded.sensitivity == pytest.approx(math.sqrt(whole))


# -- what is charged --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    mechanism=st.sampled_from(["gaussian", "sum", "votes"]),
    queries=st.integers(1, 10_000),
    noise=st.floats(0.01, 400),
    ratio=st.floats(0.1, 10),
)
def test_noise_on_integers_is_never_less_than_what_is_charged(
    mechanism: str, queries: int, noise: float, ratio: float
) -> None:
    cost = cost_of(mechanism, policy(mechanism, noise_ratio=ratio), queries, AGGREGATES[mechanism])
    events, variances = cost.events(noise), cost.variances(noise)
    assert len(events) == len(variances) == len(cost.parts)
    for event, variance, part in zip(events, variances, cost.parts, strict=True):
        smooth = variance - SMOOTHING
        assert event.noise_multiplier**2 * part.squared <= smooth * (1 + 1e-12)
        assert smooth < event.noise_multiplier**2 * part.squared * (1 + 1e-12) + 1, "and hardly more"


def test_every_query_that_is_asked_pays_for_the_threshold_and_for_an_answer() -> None:
    """Papernot et al. 2018, section 4: alpha / (2 sigma1^2) of Renyi DP for the one, alpha / sigma2^2 for the other."""
    test, answer = contract("votes", 4).events
    assert (test.steps, answer.steps) == (4, 4)
    assert test.noise_multiplier / answer.noise_multiplier == pytest.approx(3.0 * math.sqrt(2))
    offer = builders.offer(aggregate="votes")
    assert len(draw_up(policy("votes"), offer, Past()).events) == 1


@pytest.mark.parametrize(
    ("mechanism", "unit", "adjacency"),
    [
        ("dp_sgd", "example", "add_remove"),
        ("gaussian", "client", "replace"),
        ("sum", "client", "add_remove"),
        ("votes", "client", "replace"),
    ],
)
def test_events_name_the_unit_and_the_adjacency_of_their_sensitivity(mechanism: str, unit: str, adjacency: str) -> None:
    assert {(e.unit, e.adjacency, e.mechanism) for e in contract(mechanism, 4).events} == {(unit, adjacency, mechanism)}


def test_a_summed_client_that_is_replaced_moves_by_root_two_as_much() -> None:
    """So that the sum's noise counts for less in a column of replaced clients, and for an example."""
    released = [integers("sum", rows) for rows in choices(2, 3)]
    replaced = max(squared(a - b) for a in released for b in released)
    ratio = math.sqrt(replaced / sensitivities("sum", 2)[0])
    (event,) = contract("sum", 2).events
    (example,) = seen_by("example", [event])
    moved, _ = seen_by("client", [event, replace(event, mechanism="votes", adjacency="replace")])
    assert event.noise_multiplier / example.noise_multiplier == pytest.approx(ratio)
    assert event.noise_multiplier / moved.noise_multiplier == pytest.approx(ratio)


def test_a_lost_round_is_charged_for_all_that_it_may_have_been() -> None:
    every = policy("dp_sgd", also=["gaussian", "sum", "votes"], min_noise=2.0, noise_ratio=0.5, max_answers=5)
    events = most(every, 9)
    assert [(e.mechanism, e.steps, e.noise_multiplier) for e in events] == [
        ("dp_sgd", 2, 2.0),
        ("gaussian", 1, 2.0),
        ("sum", 1, 2.0),
        ("votes", 5, pytest.approx(2.0)),
        ("votes", 5, pytest.approx(2.0 * math.sqrt(2))),
    ]
    assert {event.blocks for event in events} == {("all",)}
    assert most(policy("votes", min_noise=2.0), 9)[0].steps == 9
    assert most(policy("none"), 9) == (PrivacyEvent("none", 0.0, 1.0, 1),)
    earlier = PrivacyEvent("dp_sgd", 3.0, 0.5, 100, blocks=("2026",))
    assert most(policy("sum", min_noise=2.0), 9, [earlier, earlier])[1:] == (replace(earlier, blocks=("all",)),)
    for unclear in (policy("dp_sgd"), policy("votes", min_noise=1.0, proxies=("0" * 64, "1" * 64))):
        with pytest.raises(PrivacyError):
            most(unclear, 9)


# -- what is drawn ----------------------------------------------------------------------------------------------------


def assert_variance(draws: np.ndarray, variance: int) -> None:
    """Whether draws of the mean 0 have that variance: their squares add up to about a chi-square variable."""
    total = float((draws.astype(np.float64) ** 2).sum() / variance)
    tail = min(stats.chi2.cdf(total, draws.size), stats.chi2.sf(total, draws.size))
    assert tail > 1e-6


def test_answers_carry_noise_of_the_contracts_variance() -> None:
    agreed = contract("gaussian", 6000)
    made, rows = MECHANISMS["gaussian"](agreed), np.full((1, 6000, 3), 1 / 3, np.float32)
    bounded = made.bound(rows)
    noised = made.release(bounded, NoiseSource(KEY)).rows
    assert_variance(noised - bounded.rows, agreed.variances[0])
    assert np.array_equal(made.release(bounded, NoiseSource(KEY)).rows, noised)


def test_the_aggregator_adds_the_contracts_noise_to_a_sum() -> None:
    queries = 6000
    agreed = contract("sum", queries)
    rule = Sum(Aggregate(kind="sum", denoise=False))
    source = Silence()
    acc = rule.fold(rule.start(queries, 3, ["a"]), "a", np.tile(np.array([1, 0, 0], np.uint8), (queries, 1)))
    rule.finish(acc, Central(agreed.variances, source, 1), np.zeros((queries, 1), np.float32))
    assert source.asked == [((queries, 3), agreed.variances[0])]
    assert_variance(NoiseSource(KEY).discrete_gaussian((queries, 3), agreed.variances[0]), agreed.variances[0])


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_the_aggregator_adds_the_contracts_noises_to_votes(threshold: float | None) -> None:
    agreed = contract("votes", 5)
    variances = agreed.variances if threshold else agreed.variances[1:]
    rule, source = Votes(Aggregate(kind="votes", threshold=threshold)), Silence()
    rule.finish(rule.start(5, 3, ["a"]), Central(variances, source, 1), np.zeros((5, 1), np.float32))
    test = [((5,), variances[0])] if threshold else []
    assert source.asked == [*test, ((5, 3), variances[-1])]


def test_rounds_and_clients_do_not_share_discrete_noise() -> None:
    drawn = {NoiseSource(bytes([n]) * 32).discrete_gaussian((20,), 10**6).tobytes() for n in range(8)}
    assert len(drawn) == 8
