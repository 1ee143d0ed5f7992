from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fedkd.aggregate.ridge import CONSTANT, PENALTIES, Ridge
from fedkd.aggregate.simplex import hard, projected


def problem(q: int = 400, d: int = 12, k: int = 5, noise: float = 0.0) -> tuple[NDArray, NDArray, NDArray]:
    """Features, sums that follow them, and the sums with noise."""
    random = np.random.default_rng(0)
    features = random.normal(size=(q, d)) / np.arange(1, d + 1) + 3
    sums = 20 + (features - features.mean(axis=0)) @ random.normal(size=(d, k)) * 10 + random.normal(size=(q, k))
    return features, sums, sums + noise * random.normal(size=(q, k))


def by_hand(features: NDArray, sums: NDArray, penalty: float) -> tuple[NDArray, float]:
    """Scores by the normal equations, and the criterion of cross-validation by the definition."""
    centred = features - features.mean(axis=0)
    columns = np.column_stack([centred, np.full(len(centred), CONSTANT * np.linalg.norm(centred, axis=1).mean())])
    hat = columns @ np.linalg.solve(columns.T @ columns + penalty * np.eye(columns.shape[1]), columns.T)
    ahead = sums - sums.mean(axis=1, keepdims=True)
    scores = hat @ ahead
    return scores, float(((ahead - scores) ** 2).sum() / (1 - np.trace(hat) / len(sums)) ** 2)


@pytest.mark.parametrize("noise", [0.0, 5.0, 100.0])
def test_scores_are_the_ridge_regression_whose_penalty_cross_validation_prefers(noise: float) -> None:
    features, _, noisy = problem(noise=noise)
    centred = features - features.mean(axis=0)
    columns = np.column_stack([centred, np.full(len(centred), CONSTANT * np.linalg.norm(centred, axis=1).mean())])
    largest = np.linalg.norm(columns, 2) ** 2
    tried = [by_hand(features, noisy, penalty * largest) for penalty in PENALTIES]
    best = min(tried, key=lambda one: one[1])[0]
    assert np.allclose(Ridge(features)(noisy), best, atol=1e-8 * np.abs(noisy).max())


def test_noise_is_taken_off_and_what_the_features_explain_is_kept() -> None:
    features, sums, noisy = problem(noise=30.0)
    scores = Ridge(features)(noisy)
    ahead = sums - sums.mean(axis=1, keepdims=True)
    assert np.linalg.norm(scores - ahead) < 0.4 * np.linalg.norm(noisy - noisy.mean(axis=1, keepdims=True) - ahead)
    assert (scores.argmax(axis=1) == sums.argmax(axis=1)).mean() > (noisy.argmax(axis=1) == sums.argmax(axis=1)).mean()


def test_a_class_that_is_more_frequent_stays_ahead() -> None:
    features, sums, _ = problem()
    scores = Ridge(features)(sums + np.array([30, 0, 0, 0, 0]))
    assert np.allclose(scores.mean(axis=0)[0], 24, atol=2)


def test_of_nothing_but_noise_little_is_left() -> None:
    features, _, _ = problem(q=1000)
    noise = np.random.default_rng(1).normal(size=(1000, 5)) * 100
    assert np.linalg.norm(Ridge(features)(noise)) < 0.1 * np.linalg.norm(noise)


def test_more_features_than_examples_are_no_trouble() -> None:
    features, _, noisy = problem(q=30, d=80, noise=5.0)
    assert np.isfinite(Ridge(features)(noisy)).all()
    same = Ridge(np.column_stack([features, features, np.zeros((30, 3))]))(noisy)  # columns that depend on others
    assert np.allclose(same, Ridge(np.column_stack([features, features]))(noisy), atol=1e-6)


def test_the_number_of_blas_threads_is_not_felt() -> None:
    random = np.random.default_rng(0)
    features, sums = random.normal(size=(1200, 300)).astype(np.float32), random.integers(0, 500, (1200, 10))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            found.append(Ridge(features)(sums).tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("features", [np.ones((5, 3)), np.full((5, 3), np.nan), np.array([[0.0], [np.inf]])])
def test_features_that_tell_nothing_are_refused(features: NDArray) -> None:
    with pytest.raises(ValueError, match="features must be"):
        Ridge(features)


# --- rows ---


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.floats(0.5, 1e6))
@settings(max_examples=50, deadline=None)
def test_projected_rows_are_the_nearest_probabilities(seed: int, k: int, total: float) -> None:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(6, k)) * total * random.choice([0.1, 1.0, 10.0])
    rows = projected(scores, total).astype(np.float64)
    assert (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-6)
    # the nearest point p of a convex set: (x - p) . (y - p) <= 0 for its every corner y
    slack = np.einsum("qk,qjk->qj", scores / total - rows, np.eye(k)[None] - rows[:, None])
    assert slack.max() <= 1e-5 * (1 + np.abs(scores / total).max())


def test_probabilities_stay_themselves_and_a_constant_changes_nothing() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(4), size=10)
    assert np.allclose(projected(rows * 50, 50), rows, atol=1e-6)
    assert np.allclose(projected(rows * 50 - 12.5, 50), rows, atol=1e-6)
    assert projected(np.array([[5, 900, -40]]), 10).tolist() == [[0, 1, 0]]


def test_hard_rows_have_one_class() -> None:
    assert hard(np.array([[1, 7, 7], [-3, -5, -9]])).tolist() == [[0, 1, 0], [1, 0, 0]]
