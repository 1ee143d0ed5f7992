from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkd.errors import PrivacyError
from fedkd.privacy.integers import MAX_GRID, checked, on_grid, one_hot

GRIDS = st.one_of(st.integers(1, 64), st.integers(1, MAX_GRID), st.sampled_from([2**10, 2**16, MAX_GRID]))


def probabilities(seed: int, q: int, k: int) -> NDArray[np.float64]:
    """Rows of every kind: spread, concentrated, one-hot, uniform, and as a codec leaves them."""
    random = np.random.default_rng(seed)
    rows = random.dirichlet(np.full(k, random.choice([1e-3, 0.1, 1.0, 100.0])), size=q)
    rows = np.where(random.random((q, 1)) < 0.2, 1 / k, np.where(random.random((q, 1)) < 0.2, np.eye(k)[0], rows))
    return rows.astype(random.choice([np.float16, np.float32, np.float64]))


SEEDS, ROWS, COLUMNS = st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(2, 40)


@given(SEEDS, SEEDS, ROWS, COLUMNS, GRIDS)
@settings(max_examples=80, deadline=None)
def test_two_clients_answers_differ_by_at_most_the_sensitivity(one: int, two: int, q: int, k: int, grid: int) -> None:
    a, b = (on_grid(probabilities(seed, q, k), grid).astype(object) for seed in (one, two))  # exact integers of Python
    assert ((a - b) ** 2).sum() <= 2 * q * grid**2
    assert (a**2).sum() <= q * grid**2


def test_the_sensitivity_is_reached_and_cannot_be_smaller() -> None:
    a, b = on_grid(np.eye(2)[[0, 0, 0]], 1000), on_grid(np.eye(2)[[1, 1, 1]], 1000)
    assert math.isclose(np.linalg.norm(a - b), math.sqrt(2 * 3) * 1000)
    assert math.isclose(np.linalg.norm(a), math.sqrt(3) * 1000)


@given(SEEDS, ROWS, COLUMNS, GRIDS)
@settings(max_examples=80, deadline=None)
def test_rows_add_up_to_the_grid_and_stay_within_one_of_their_shares(seed: int, q: int, k: int, grid: int) -> None:
    rows = probabilities(seed, q, k)
    fixed = on_grid(rows, grid)
    assert fixed.dtype == np.int64 and (fixed.sum(axis=1) == grid).all() and (fixed >= 0).all()
    wide = rows.astype(np.float64)
    shares = wide / wide.sum(axis=1, keepdims=True) * grid
    assert np.abs(fixed - shares).max() <= 1 + 1e-6


def test_what_is_left_goes_to_the_largest_remainders_and_among_equals_to_the_first() -> None:
    assert on_grid(np.full((1, 4), 0.25), 10).tolist() == [[3, 3, 2, 2]]
    assert on_grid(np.array([[0.5, 0.26, 0.24]]), 10).tolist() == [[5, 3, 2]]
    assert on_grid(np.array([[0.1, 0.1, 0.8]]), 1).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("row", [[np.nan, 1.0], [np.inf, 1.0], [-0.1, 1.1], [0.0, 0.0]])
def test_rows_that_are_no_probabilities_are_refused(row: list[float]) -> None:
    with pytest.raises(PrivacyError, match="no probabilities"):
        on_grid(np.array([row, [0.5, 0.5]]), 100)


@pytest.mark.parametrize("grid", [0, -5, MAX_GRID + 1])
def test_a_grid_is_within_its_range(grid: int) -> None:
    with pytest.raises(ValueError, match="grid"):
        on_grid(np.array([[0.5, 0.5]]), grid)


@pytest.mark.parametrize(
    "rows",
    [
        np.array([[5, 6]]),
        np.array([[5, 10, -5]]),
        np.array([[2**62, 2**62, 2**62, 2**62 + 10]]),  # adds up to 10 modulo 2^64
        np.array([[5.0, 5.0]]),
    ],
)
def test_integers_that_were_not_paid_for_are_refused(rows: NDArray[np.int64]) -> None:
    with pytest.raises(PrivacyError, match="add up"):
        checked(rows, 10)


@given(SEEDS, ROWS, COLUMNS)
@settings(max_examples=30, deadline=None)
def test_a_vote_is_for_the_largest_entry(seed: int, q: int, k: int) -> None:
    rows = probabilities(seed, q, k)
    votes = one_hot(rows)
    assert checked(votes, 1) is votes
    assert (votes.argmax(axis=1) == rows.argmax(axis=1)).all()
    assert one_hot(np.array([[0.2, 0.4, 0.4]])).tolist() == [[0, 1, 0]]
