import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.sampled_from(["iid", "dirichlet"]), labels, st.integers(1, 70), st.floats(1e-6, 1e6), seeds)
def test_every_example_is_dealt_to_exactly_one_client(kind, y, clients: int, alpha: float, seed: int) -> None:
    hands = deal(kind, y, clients, alpha, seed)
    assert len(hands) == clients
    assert sorted(np.concatenate(hands)) == list(range(len(y)))
    assert all((np.diff(hand) > 0).all() for hand in hands)
    again = deal(kind, y, clients, alpha, seed)
    assert all((one == two).all() for one, two in zip(hands, again, strict=True))


def test_iid_hands_are_equal_in_size() -> None:
    assert {len(hand) for hand in deal("iid", np.zeros(103, np.int64), 10, 0.5, 0)} == {10, 11}


def skew(alpha: float) -> float:
    """Mean share of a client's most common class, over clients that hold something."""
    y = np.arange(5000, dtype=np.int64) % 10
    counts = [np.bincount(y[hand], minlength=10) for hand in deal("dirichlet", y, 10, alpha, 7)]
    return float(np.mean([count.max() / count.sum() for count in counts if count.sum()]))


def test_a_small_alpha_makes_clients_differ_and_a_large_one_does_not() -> None:
    assert skew(0.05) > 0.5 > 0.3 > skew(1.0) * 0.5 > skew(1e5) * 0.5
    assert skew(1e5) == pytest.approx(0.1, abs=0.01)


def test_another_seed_deals_other_hands() -> None:
    y = np.zeros(100, np.int64)
    assert (deal("iid", y, 2, 1.0, 0)[0] != deal("iid", y, 2, 1.0, 1)[0]).any()


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
