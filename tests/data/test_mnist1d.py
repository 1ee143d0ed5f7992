from pathlib import Path

import numpy as np
import pytest

from fedkd.config import Data
from fedkd.data import mnist1d
from fedkd.data.sources import load

# Of the 5,000 examples of the published file, mnist1d_data.pkl of github.com/greydanus/mnist1d: the standard deviation
# of every fourth number, mean and standard deviation of the numbers of every class, and the mean product of two
# numbers 1, 2, 3, 5, 10 and 20 places apart.
SPREAD = [1.1069, 1.0896, 1.0990, 1.0311, 1.0278, 1.0097, 1.0285, 0.9914, 0.7752, 0.8342]
CLASS_MEAN = [0.471, -0.097, 0.035, 0.333, -0.127, 0.000, -0.383, 0.168, -0.253, -0.146]
CLASS_SPREAD = [1.196, 0.873, 0.835, 1.009, 0.881, 0.838, 1.191, 0.877, 1.000, 0.899]
PRODUCTS = {1: 0.815, 2: 0.533, 3: 0.351, 5: 0.200, 10: 0.066, 20: -0.091}


@pytest.fixture(scope="module")
def many() -> tuple[np.ndarray, np.ndarray]:
    made = mnist1d.make(50_000, 1)
    return np.concatenate([made["x"], made["x_test"]])[:, 0], np.concatenate([made["y"], made["y_test"]])


def test_the_default_has_four_thousand_examples_and_one_thousand_to_test(tmp_path: Path) -> None:
    train, test = load(Data(source="mnist1d"), tmp_path)
    assert test is not None
    assert (train.x.shape, test.x.shape, train.x.dtype) == ((4000, 1, 40), (1000, 1, 40), np.float32)
    assert (np.bincount(np.concatenate([train.y, test.y])) == 500).all()


def test_examples_are_a_function_of_their_seed(tmp_path: Path) -> None:
    one, two, other = (load(Data(source="mnist1d", size=50, seed=seed), tmp_path)[0] for seed in (1, 1, 2))
    assert (one.x == two.x).all() and (one.y == two.y).all()
    assert (one.x != other.x).any()


def test_all_numbers_have_mean_zero_and_standard_deviation_one(many) -> None:
    assert (many[0].mean(), many[0].std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))


def test_every_place_and_every_class_spreads_as_in_the_published_file(many) -> None:
    x, y = many
    assert x.std(axis=0)[::4] == pytest.approx(SPREAD, rel=0.03)
    assert [x[y == label].std() for label in range(10)] == pytest.approx(CLASS_SPREAD, rel=0.02)
    assert [x[y == label].mean() for label in range(10)] == pytest.approx(CLASS_MEAN, abs=0.015)


def test_neighbours_are_related_as_in_the_published_file(many) -> None:
    x, _ = many
    assert {lag: (x[:, lag:] * x[:, :-lag]).mean() for lag in PRODUCTS} == pytest.approx(PRODUCTS, abs=0.01)


def test_templates_begin_at_zero_and_have_a_sixth_of_unit_spread() -> None:
    templates = mnist1d.templates()
    assert templates.shape == (10, 12)
    assert (templates[:, 0] == 0).all()
    assert templates.std(axis=1) == pytest.approx(np.full(10, 1 / 6))
