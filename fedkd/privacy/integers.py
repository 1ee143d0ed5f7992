"""Answers as integers, so that their sensitivity is exact and sums are the same in every order.

A row is non-negative and adds up to a public ``grid``. Its L2 norm is then at most grid, and two rows a, b differ by
at most sqrt(2) grid, as |a - b|^2 <= |a|^2 + |b|^2. Over q rows: sqrt(q) grid when a client comes or goes, sqrt(2 q)
grid when its answers are replaced.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import PrivacyError

MAX_GRID = 2**31 - 1
"""Largest that a client's row may add up to: more would not be told from a negative number modulo 2^32."""


def on_grid(rows: NDArray[Any], grid: int) -> NDArray[np.int64]:
    """Probabilities [q, k], up to a factor in each row, as integers that add up to ``grid``, each within 1 of its
    share of it.

    By largest remainder: shares are rounded down, and what is left goes to those that lost most, the first of equals
    first. Raises PrivacyError where rows are no probabilities, ValueError for a grid outside [1, MAX_GRID].
    """
    if not 1 <= grid <= MAX_GRID:
        raise ValueError(f"a grid is in [1, {MAX_GRID}]")
    wide = np.asarray(rows, np.float64)
    total = wide.sum(axis=1, keepdims=True)
    if not (np.isfinite(wide).all() and (wide >= 0).all() and (total > 0).all()):
        raise PrivacyError("answers that are no probabilities cannot be put on a grid")
    shares = wide / total * grid
    floors = np.floor(shares)
    fixed = floors.astype(np.int64)
    order = np.argsort(floors - shares, axis=1, kind="stable")  # stable: equal remainders stay in column order
    left = grid - fixed.sum(axis=1, keepdims=True)
    np.put_along_axis(fixed, order, np.take_along_axis(fixed, order, 1) + (np.arange(wide.shape[1]) < left), 1)
    return checked(fixed, grid)


def one_hot(rows: NDArray[Any]) -> NDArray[np.int64]:
    """A vote for each of the rows [q, k]: 1 at the largest entry, the first of equals. On the grid 1."""
    votes = np.zeros(rows.shape, np.int64)
    np.put_along_axis(votes, rows.argmax(axis=1, keepdims=True), 1, axis=1)
    return votes


def checked(rows: NDArray[np.int64], grid: int) -> NDArray[np.int64]:
    """The rows, if they are what the sensitivity is computed for: integers >= 0 that add up to ``grid`` in each row.
    Raises PrivacyError otherwise; nothing that is charged by the grid may pass without."""
    if not (rows.dtype == np.int64 and (rows >= 0).all() and (rows <= grid).all() and (rows.sum(axis=1) == grid).all()):
        raise PrivacyError(f"integer answers must not be negative and must add up to {grid} in each row")
    return rows
