import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.config import Partition
from fedkd.data.partition import carve_test, cut, deal, fingerprints
from fedkd.data.sources import Examples, as_float
from fedkd.errors import DataError

seeds = st.integers(0, 2**63 - 1)
labels = st.lists(st.integers(0, 4), max_size=60).map(lambda y: np.array(y, np.int64))


@given(st.integers(2, 50), st.integers(0, 50), st.integers(1, 50), seeds)
def test_splits_never_overlap_and_cover_the_pool(proxy: int, tune: int, private: int, seed: int) -> None:
    n = proxy + tune + private
    splits = cut(n, proxy, tune, seed)
    assert [len(splits.proxy), len(splits.tune), len(splits.private)] == [proxy, tune, private]
    assert sorted([*splits.proxy, *splits.tune, *splits.private]) == list(range(n))


@given(st.integers(2, 20), st.integers(0, 20), seeds)
def test_the_proxy_set_does_not_depend_on_the_tuning_split(proxy: int, tune: int, seed: int) -> None:
    assert (cut(60, proxy, tune, seed).proxy == cut(60, proxy, 0, seed).proxy).all()


def test_another_seed_cuts_another_proxy_set() -> None:
    assert (cut(1000, 50, 0, 1).proxy == cut(1000, 50, 0, 1).proxy).all()
    assert (cut(1000, 50, 0, 1).proxy != cut(1000, 50, 0, 2).proxy).any()


def test_too_few_examples_name_the_keys() -> None:
    with pytest.raises(DataError) as caught:
        cut(500, 400, 100, 0)
    assert "proxy.size" in caught.value.where and "proxy.tune_size" in caught.value.where


partitions = st.builds(
    Partition,
    kind=st.sampled_from(["iid", "dirichlet", "pathological", "shard", "size", "natural_id"]),
    alpha=st.floats(1e-6, 1e6),
    classes_per_client=st.integers(1, 5),
    shards_per_client=st.integers(1, 4),
    growth=st.sampled_from(["linear", "square", "exponential"]),
)
FEW = np.arange(1000, dtype=np.int64) ** 2 % 7


@given(partitions, labels, st.integers(1, 70), seeds)
def test_every_example_is_dealt_to_exactly_one_client(partition: Partition, y, clients: int, seed: int) -> None:
    ids = np.arange(len(y)) * 7 % 31
    try:
        hands = deal(partition, y, clients, seed, ids)
    except DataError:
        too_few_ids = partition.kind == "natural_id" and len(set(ids)) < clients
        classes, each = len(set(y)), partition.classes_per_client
        assert too_few_ids or (partition.kind == "pathological" and not each <= classes <= each * clients)
        return
    assert len(hands) == clients
    assert sorted(np.concatenate(hands)) == list(range(len(y)))
    assert all((np.diff(hand) > 0).all() for hand in hands)
    again = deal(partition, y, clients, seed, ids)
    assert all((one == two).all() for one, two in zip(hands, again, strict=True))


@pytest.mark.parametrize(
    ("kind", "seed", "expected"),
    [
        ("iid", 0, "edba3957bd412a08"),
        ("iid", 7, "a6d82e148432b4b2"),
        ("dirichlet", 0, "262a7e2549eb2d9f"),
        ("dirichlet", 7, "8e8c2ca7854bec57"),
    ],
)
def test_iid_and_dirichlet_deal_what_the_first_version_dealt(kind: str, seed: int, expected: str) -> None:
    hands = deal(Partition(kind=kind), FEW, 6, seed)
    assert hashlib.sha256(b"|".join(hand.astype("<i8").tobytes() for hand in hands)).hexdigest()[:16] == expected


def test_iid_hands_are_equal_in_size() -> None:
    assert {len(hand) for hand in deal(Partition(), np.zeros(103, np.int64), 10, 0)} == {10, 11}


@given(labels, st.integers(1, 20), st.integers(1, 5), seeds)
def test_pathological_clients_have_their_number_of_classes_in_equal_shares(y, clients: int, each: int, seed) -> None:
    y = np.concatenate([y, np.repeat(np.arange(5), 40)])  # enough of every class for everybody
    if clients * each < 5:
        with pytest.raises(DataError, match="cannot hold the 5 classes"):
            deal(Partition(kind="pathological", classes_per_client=each), y, clients, seed)
        return
    hands = deal(Partition(kind="pathological", classes_per_client=each), y, clients, seed)
    counts = np.array([np.bincount(y[hand], minlength=5) for hand in hands])
    assert ((counts > 0).sum(axis=1) == each).all()
    holders = (counts > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    for of_class in counts.T:
        assert np.ptp(of_class[of_class > 0]) <= 1


def test_pathological_clients_differ_in_their_classes() -> None:
    y = np.arange(1000, dtype=np.int64) % 10
    hands = deal(Partition(kind="pathological", classes_per_client=2), y, 20, 0)
    assert len({tuple(np.unique(y[hand])) for hand in hands}) > 10


def test_shards_are_equal_runs_of_the_examples_sorted_by_class() -> None:
    y = np.arange(1200, dtype=np.int64) % 10
    hands = deal(Partition(kind="shard", shards_per_client=2), y, 60, 0)
    assert {len(hand) for hand in hands} == {20}
    assert max(len(np.unique(y[hand])) for hand in hands) == 2  # 12 shards of 10 in each class, none across
    assert len({len(np.unique(y[hand])) for hand in hands}) == 2  # some clients draw two shards of one class


@pytest.mark.parametrize(("growth", "sizes"), [("linear", [100, 200, 300, 400]), ("square", [33, 133, 300, 534])])
def test_sizes_grow_with_the_clients_number(growth: str, sizes: list[int]) -> None:
    hands = deal(Partition(kind="size", growth=growth), np.zeros(1000, np.int64), 4, 0)
    assert [len(hand) for hand in hands] == sizes


def test_exponential_sizes_have_one_ratio_and_do_not_overflow() -> None:
    hands = deal(Partition(kind="size", growth="exponential"), np.zeros(100_000, np.int64), 1000, 0)
    sizes = [len(hand) for hand in hands[-4:]]
    assert [large / small for small, large in pairwise(sizes)] == pytest.approx([np.e] * 3, rel=1e-2)


def test_examples_of_one_id_are_one_clients() -> None:
    ids = np.arange(500, dtype=np.int64) % 23
    hands = deal(Partition(kind="natural_id"), np.zeros(500, np.int64), 5, 0, ids)
    held = [set(ids[hand]) for hand in hands]
    assert sum(map(len, held)) == len(set.union(*held)) == 23
    assert {len(one) for one in held} == {4, 5}


@pytest.mark.parametrize("ids", [None, np.zeros(50, np.int64)])
def test_too_few_ids_name_the_keys(ids) -> None:
    with pytest.raises(DataError, match="too few for 2 clients") as caught:
        deal(Partition(kind="natural_id"), np.zeros(50, np.int64), 2, 0, ids)
    assert "partition.column" in caught.value.where


def skew(alpha: float) -> float:
    """Mean share of a client's most common class, over clients that hold something."""
    y = np.arange(5000, dtype=np.int64) % 10
    counts = [np.bincount(y[hand], minlength=10) for hand in deal(Partition(kind="dirichlet", alpha=alpha), y, 10, 7)]
    return float(np.mean([count.max() / count.sum() for count in counts if count.sum()]))


def test_a_small_alpha_makes_clients_differ_and_a_large_one_does_not() -> None:
    assert skew(0.05) > 0.5 > 0.3 > skew(1.0) * 0.5 > skew(1e5) * 0.5
    assert skew(1e5) == pytest.approx(0.1, abs=0.01)


def test_another_seed_deals_other_hands() -> None:
    y = np.zeros(100, np.int64)
    assert (deal(Partition(), y, 2, 0)[0] != deal(Partition(), y, 2, 1)[0]).any()


@given(st.integers(2, 80), st.floats(0.01, 0.99), seeds)
def test_a_carved_test_part_takes_its_share_and_nothing_twice(n: int, fraction: float, seed: int) -> None:
    pool = Examples(np.arange(n, dtype=np.float32)[:, None], np.zeros(n, np.int64), 1)
    if not 0 < round(n * fraction) < n:
        with pytest.raises(DataError, match="nothing"):
            carve_test(pool, fraction, seed)
        return
    train, test = carve_test(pool, fraction, seed)
    assert len(test) == round(n * fraction)
    assert sorted([*train.x[:, 0], *test.x[:, 0]]) == list(range(n))


def test_an_image_has_one_fingerprint_as_bytes_and_as_floats() -> None:
    x = np.random.default_rng(0).integers(0, 256, (5000, 1, 2, 2)).astype(np.uint8)
    x[:256, 0, 0, 0] = np.arange(256)
    assert (fingerprints(x) == fingerprints(as_float(x))).all()
    assert (fingerprints(x) == fingerprints((x / 255.0).astype(np.float32))).all()
    assert fingerprints(x).shape == (5000,) and fingerprints(x[:0]).shape == (0,)


def test_only_equal_examples_share_a_fingerprint() -> None:
    x = np.array([[0.0, 1], [-0.0, 1], [1, 0], [0, 1 + 1e-6]], np.float32)
    assert np.isin(fingerprints(x), fingerprints(x[:1])).tolist() == [True, True, False, False]
