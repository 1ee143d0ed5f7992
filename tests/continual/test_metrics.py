"""The measures against values computed by hand, and against avalanche-lib where the formulas are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedkd.continual import metrics
from fedkd.errors import DataError
from fedkd.report import continual as plots

R = np.array([[0.90, 0.20, 0.10, 0.05], [0.95, 0.80, 0.30, 0.15], [0.60, 0.85, 0.70, 0.40], [0.50, 0.65, 0.75, 0.90]])
B = np.array([0.10, 0.12, 0.08, 0.11])

BY_HAND = {
    "acc": (0.50 + 0.65 + 0.75 + 0.90) / 4,
    "aia": (0.90 + (0.95 + 0.80) / 2 + (0.60 + 0.85 + 0.70) / 3 + 0.70) / 4,
    "bwt": ((0.50 - 0.90) + (0.65 - 0.80) + (0.75 - 0.70)) / 3,
    "fwt": ((0.20 - 0.12) + (0.30 - 0.08) + (0.40 - 0.11)) / 3,
    "forgetting": ((0.95 - 0.50) + (0.85 - 0.65) + (0.70 - 0.75)) / 3,  # the best before the last, not the first
    "learning_accuracy": (0.90 + 0.80 + 0.70 + 0.90) / 4,
}

# avalanche-lib 0.6.0: BWT, ForwardTransfer, Forgetting (first minus last, so minus BWT) and Accuracy of
# avalanche.evaluation.metrics, updated with R[j, j] and b[j] as initial values and R[T, j] and R[j-1, j] as later ones,
# result_key averaged over the experiences of our formulas; Accuracy on 100 made predictions an experience.
AVALANCHE = {"bwt": -0.16666666666666666, "fwt": 0.19666666666666668, "acc": 0.7}
AVALANCHE_FORGETTING = 0.16666666666666666

matrices = st.integers(2, 6).flatmap(lambda t: arrays(np.float64, (t, t), elements=st.floats(0, 1)))


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_each_measure_is_what_one_gets_by_hand(name: str) -> None:
    assert metrics.summary(R, B)[name] == pytest.approx(BY_HAND[name], abs=1e-12)
    assert name in metrics.FORMULAS


@pytest.mark.parametrize("name", sorted(AVALANCHE))
def test_avalanche_agrees_where_the_formula_is_the_same(name: str) -> None:
    assert metrics.summary(R, B)[name] == pytest.approx(AVALANCHE[name], abs=1e-12)


def test_avalanches_forgetting_is_another_formula() -> None:
    assert metrics.bwt(R) == pytest.approx(-AVALANCHE_FORGETTING, abs=1e-12)
    assert metrics.forgetting(R) == pytest.approx(0.2, abs=1e-12)


def test_one_experience_has_no_transfer_and_no_forgetting() -> None:
    found = metrics.summary(np.array([[0.8]]), np.array([0.1]))
    assert (found["bwt"], found["fwt"], found["forgetting"]) == (None, None, None)
    assert found["acc"] == found["aia"] == found["learning_accuracy"] == 0.8


@given(matrices)
def test_forgetting_is_at_least_what_was_lost_since_it_was_learned(r: np.ndarray) -> None:
    found, lost = metrics.forgetting(r), metrics.bwt(r)
    assert found is not None and lost is not None and found >= -lost - 1e-12


@given(matrices)
def test_a_learner_that_never_changes_an_accuracy_forgets_nothing(r: np.ndarray) -> None:
    constant = np.repeat(r[:1], len(r), axis=0)
    assert metrics.forgetting(constant) == metrics.bwt(constant) == 0
    assert metrics.acc(constant) == pytest.approx(metrics.learning_accuracy(constant))


def test_forgetting_of_a_class_counts_from_the_experience_in_which_it_came() -> None:
    by_class = np.array([[0.9, 0.0, 0.5, 0.0], [0.7, 0.8, 0.6, 0.0], [0.6, 0.9, 0.4, 0.7]])
    found = metrics.class_forgetting(by_class, np.array([0, 1, 0, 2]))
    np.testing.assert_allclose(found, [0.3, -0.1, 0.2, np.nan], atol=1e-12)


@pytest.mark.parametrize(
    ("r", "b"), [(R[:3], B), (R, B[:2]), (R + 0.2, B), (np.full((2, 2), np.nan), B[:2]), (np.zeros((0, 0)), B[:0])]
)
def test_what_is_no_matrix_of_accuracies_is_refused(r: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(DataError):
        metrics.summary(r, b)


def test_the_plots_are_made_without_colour(tmp_path: Path) -> None:
    from matplotlib.image import imread

    plots.draw(R.tolist(), "golden", tmp_path)
    for name in ("r.png", "experiences.png"):
        pixels = imread(tmp_path / name)[..., :3]
        assert np.ptp(pixels, axis=-1).max() < 0.02 and np.ptp(pixels) > 0.9
