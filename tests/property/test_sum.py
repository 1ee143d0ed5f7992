from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.aggregate.sum import MODULUS, Integers, ModularSum, Shares, check_room, exact, finish, fold, share, start
from fedkd.errors import ConfigError, PrivacyError
from fedkd.privacy.integers import on_grid, one_hot
from fedkd.privacy.noise import NoiseSource

KEY = bytes(range(32))
SEEDS, CLIENTS = st.integers(0, 2**32 - 1), st.integers(1, 20)


def answers(seed: int, clients: int, grid: int = 2**16) -> dict[str, Integers]:
    random = np.random.default_rng(seed)
    return {f"c{n}": on_grid(random.dirichlet(np.ones(4), size=7), grid) for n in range(clients)}


def total(shares: dict[str, Shares], roster: list[str] | None = None) -> ModularSum:
    acc = start(7, 4, shares if roster is None else roster)
    for client, rows in shares.items():
        acc = fold(acc, client, rows)
    return acc


@given(SEEDS, CLIENTS)
@settings(max_examples=30, deadline=None)
def test_shares_in_any_order_give_the_same_bytes(seed: int, clients: int) -> None:
    sent = {name: share(rows) for name, rows in answers(seed, clients).items()}
    orders = [list(sent), list(reversed(sent)), list(np.random.default_rng(seed).permutation(list(sent)))]
    found = {finish(total({c: sent[c] for c in order}), NoiseSource(KEY), 10**6).tobytes() for order in orders}
    assert len(found) == 1


@given(SEEDS, CLIENTS)
@settings(max_examples=30, deadline=None)
def test_the_sum_is_the_sum_and_its_noise_is_that_of_one_draw(seed: int, clients: int) -> None:
    rows = answers(seed, clients)
    acc, plain = total({name: share(r) for name, r in rows.items()}), sum(rows.values())
    assert np.array_equal(exact(acc), plain)
    assert np.array_equal(
        finish(acc, NoiseSource(KEY), 10**6) - plain, NoiseSource(KEY).discrete_gaussian((7, 4), 10**6)
    )


@given(SEEDS, st.integers(2, 8))
@settings(max_examples=20, deadline=None)
def test_masks_that_cancel_leave_no_trace(seed: int, clients: int) -> None:
    # what secure aggregation will send: every two clients share a mask, which one adds and the other subtracts
    random = np.random.default_rng(seed)
    rows = answers(seed, clients)
    masked = {name: r.copy() for name, r in rows.items()}
    names = sorted(rows)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            mask = random.integers(0, MODULUS, (7, 4))
            masked[one] += mask
            masked[other] -= mask
    hidden, plain = (total({name: share(r) for name, r in each.items()}) for each in (masked, rows))
    assert hidden.residues.tobytes() == plain.residues.tobytes()


def test_a_client_counts_once_and_only_if_it_is_on_the_roster() -> None:
    rows = share(one_hot(np.eye(4)[[0, 1, 2, 3, 0, 1, 2]]))
    acc = total({"a": rows}, roster=["a", "b", "c"])
    for client in ("a", "stranger"):
        with pytest.raises(PrivacyError, match=r"once(.|\n)*" + client):
            fold(acc, client, rows)
    assert acc.summed == {"a"} and acc.missing == {"b", "c"}


def test_a_share_has_the_shape_and_type_of_the_sum() -> None:
    acc = start(7, 4, ["a"])
    for rows in (np.zeros((7, 3), np.uint32), np.zeros((1, 4), np.uint32), np.zeros((7, 4), np.int64)):
        with pytest.raises(ValueError, match="a share is"):
            fold(acc, "a", rows)  # type: ignore[arg-type]


def test_noise_wraps_with_the_sum_it_is_added_to() -> None:
    acc = fold(start(1, 2, ["a"]), "a", share(np.array([[MODULUS // 2 - 1, -MODULUS // 2]])))
    noised = np.stack([finish(acc, NoiseSource(bytes([n] * 32)), 2**40) for n in range(20)])
    assert noised.min() >= -MODULUS // 2 and noised.max() < MODULUS // 2
    assert (noised < 0).any() and (noised > 0).any()


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_negative_sums_come_back_negative(seed: int) -> None:
    low, high = -MODULUS // 2, MODULUS // 2
    rows = np.random.default_rng(seed).integers(low, high, (7, 4))
    rows[0, :2] = low, high - 1
    assert np.array_equal(exact(total({"a": share(rows)})), rows)


def test_sums_that_would_wrap_are_refused_before_anything_is_asked() -> None:
    check_room(1000, 2**16, 2**40)
    check_room(2**20, 1, 10**4)
    with pytest.raises(ConfigError, match="overflow"):
        check_room(2**15, 2**16, 1)
    with pytest.raises(ConfigError, match="coarser"):
        check_room(1020, 2**21, 2**40)
