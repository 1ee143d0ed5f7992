"""Experiences are disjoint, cover everything, and which one an example is in depends on it alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.config import Stream
from fedkd.continual.stream import Timetable, assign, class_lists, make
from fedkd.data.sources import Examples
from fedkd.errors import ConfigError

KINDS = ("class", "domain", "task", "data")


def examples(n: int, classes: int = 6, seed: int = 0) -> Examples:
    random = np.random.default_rng(seed)
    return Examples(random.integers(0, 256, (n, 1, 4, 4), np.uint8), random.integers(0, classes, n), classes)


streams = st.builds(
    Stream,
    kind=st.sampled_from(KINDS),
    experiences=st.integers(1, 6),
    own_order=st.booleans(),
    transform=st.sampled_from(("permuted", "rotated", "drifting")),
)


@given(streams, st.integers(0, 60), st.integers(0, 5))
def test_experiences_are_disjoint_and_cover_all_examples(stream: Stream, n: int, seed: int) -> None:
    pool = examples(n)
    made = make(stream, pool, pool, seed)
    members = assign(stream, pool, seed)
    assert len(made) == stream.experiences and len(members) == n
    assert [len(experience.train) for experience in made] == np.bincount(members, minlength=len(made)).tolist()
    for experience in made:
        inside = np.flatnonzero(members == experience.number)
        assert np.array_equal(experience.train.y, pool.y[inside])
        assert set(experience.train.y.tolist()) <= set(experience.classes)


@given(streams, st.integers(1, 40), st.data())
def test_leaving_one_example_out_moves_no_other_one(stream: Stream, n: int, data: st.DataObject) -> None:
    pool, out = examples(n), data.draw(st.integers(0, n - 1))
    rest = np.delete(np.arange(n), out)
    members = assign(stream, pool, 3)
    assert np.array_equal(assign(stream, pool.take(rest), 3), members[rest])


@given(streams, st.integers(0, 3), st.sampled_from(("a", "b")))
def test_a_stream_is_a_function_of_seed_and_client(stream: Stream, seed: int, client: str) -> None:
    pool = examples(30)
    one, two = (make(stream, pool, pool, seed, client) for _ in range(2))
    for first, second in zip(one, two, strict=True):
        assert first.classes == second.classes and np.array_equal(first.train.x, second.train.x)
        assert np.array_equal(first.test.x, second.test.x)


def test_the_lists_of_classes_are_fixed_whatever_labels_are_there() -> None:
    stream, nobody = Stream(experiences=3), examples(0)
    made = make(stream, nobody, nobody, 0)
    assert [experience.classes for experience in made] == [(0, 1), (2, 3), (4, 5)]
    assert [experience.block for experience in made] == ["experience-1", "experience-2", "experience-3"]


def test_clients_may_have_orders_of_their_own() -> None:
    own = Stream(experiences=3, own_order=True)
    lists = {client: class_lists(own, 6, 0, client) for client in ("a", "b", "c", "d")}
    assert len({str(value) for value in lists.values()}) > 1
    for value in lists.values():
        assert sorted(label for part in value for label in part) == list(range(6))
    assert class_lists(Stream(experiences=2, order=(5, 4, 3, 2, 1, 0)), 6, 0) == [(5, 4, 3), (2, 1, 0)]


def test_only_a_task_is_told() -> None:
    pool = examples(20)
    told = {kind: {e.told for e in make(Stream(kind=kind, experiences=2), pool, pool, 0)} for kind in KINDS}
    assert told == {"class": {False}, "domain": {False}, "task": {True}, "data": {False}}


def test_a_hash_deals_data_out_about_evenly() -> None:
    counts = np.bincount(assign(Stream(kind="data", experiences=4), examples(4000), 0))
    assert counts.min() > 900  # 1000 expected, standard deviation 27


@pytest.mark.parametrize("transform", ["permuted", "rotated", "drifting"])
def test_domains_look_different_and_keep_labels_types_and_the_first_one(transform: str) -> None:
    pool = examples(50)
    made = make(Stream(kind="domain", experiences=3, transform=transform), pool, pool, 0)  # type: ignore[arg-type]
    assert np.array_equal(made[0].test.x, pool.x)
    for experience in made[1:]:
        assert experience.test.x.shape == pool.x.shape and experience.test.x.dtype == np.uint8
        assert np.array_equal(experience.test.y, pool.y) and not np.array_equal(experience.test.x, pool.x)
    assert not np.array_equal(made[1].test.x, made[2].test.x)


def test_a_permutation_moves_pixels_and_a_drift_takes_contrast_away() -> None:
    pool = examples(50)
    permuted = make(Stream(kind="domain", experiences=2), pool, pool, 0)[1].test.x
    assert np.array_equal(np.sort(permuted.reshape(50, -1)), np.sort(pool.x.reshape(50, -1)))
    drifted = make(Stream(kind="domain", experiences=2, transform="drifting"), pool, pool, 0)[1].test.x
    assert np.abs(drifted - (0.5 * pool.x.astype(float) + 0.25 * 255)).max() <= 1


@pytest.mark.parametrize(
    ("stream", "word"),
    [
        (Stream(experiences=7), "too few"),
        (Stream(experiences=2, order=(0, 1, 2)), "order"),
        (Stream(kind="domain", transform="rotated", experiences=2), "rotated"),
    ],
)
def test_a_stream_that_does_not_suit_the_examples_is_refused(stream: Stream, word: str) -> None:
    flat = Examples(np.zeros((6, 4), np.float32), np.arange(6), 6)
    with pytest.raises(ConfigError, match=word):
        make(stream, flat, flat, 0)


@pytest.mark.parametrize("change", [{"kind": "data", "order": (0, 1)}, {"order": (0, 1), "own_order": True}])
def test_settings_that_contradict_each_other_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="order"):
        Stream.model_validate(change)


def test_clients_join_late_leave_early_and_go_at_their_own_pace() -> None:
    stream = Stream(experiences=3, pace=(2, 1), joins=(1, 3), leaves=(0, 5))
    first, second, third = (Timetable.of(stream, client) for client in range(3))
    assert [first.experience(round, 3) for round in range(1, 8)] == [0, 0, 1, 1, 2, 2, 2]
    assert [second.experience(round, 3) for round in range(1, 8)] == [None, None, 0, 1, 2, None, None]
    assert third == first


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 12), st.integers(1, 5))
def test_nobody_goes_back_or_skips_an_experience(joins: int, pace: int, leaves: int, experiences: int) -> None:
    way = [Timetable(joins, leaves or None, pace).experience(round, experiences) for round in range(1, 40)]
    there = [number for number in way if number is not None]
    assert all(b - a in (0, 1) for a, b in pairwise(there)) and (not there or there[0] == 0)
    assert [number is not None for number in way] == [
        round >= joins and (not leaves or round <= leaves) for round in range(1, 40)
    ]
