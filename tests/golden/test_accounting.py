"""Epsilons known from other implementations, and from the exact formula."""

from __future__ import annotations

import itertools
import math

import pytest

from fedkd.privacy.accounting import ClosedForm, Pld, curve, gaussian_delta, gaussian_epsilon
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.filters import first_choice
from fedkd.privacy.opacus_prv import Prv


def steps(z: float, q: float, n: int) -> PrivacyEvent:
    return PrivacyEvent("dp_sgd", z, q, n)


MNIST = steps(1.0, 256 / 6000, 468)


def test_one_gaussian_is_exact() -> None:
    assert ClosedForm().spent([steps(5, 1, 1)], 1e-5).epsilon == pytest.approx(0.72552, abs=1e-5)


def test_pld_of_one_gaussian_is_the_exact_epsilon_rounded_up() -> None:
    assert Pld().spent([steps(5, 1, 1)], 1e-5).epsilon == 0.7256


def test_pld_of_a_sampled_run() -> None:
    assert Pld().spent([MNIST], 1e-5).epsilon == pytest.approx(6.101, abs=5e-4)


def test_prv_of_a_sampled_run() -> None:
    assert Prv().spent([MNIST], 1e-5).epsilon == pytest.approx(6.111, abs=5e-4)


def test_pld_of_a_sampled_run_and_gaussians() -> None:
    assert Pld().spent([MNIST, steps(10, 1, 20)], 1e-5).epsilon == pytest.approx(6.459, abs=1e-3)


def test_pld_is_below_the_renyi_bound() -> None:
    run = [steps(1.5, 0.04, 2250)]
    assert Pld().spent(run, 1e-5).epsilon == pytest.approx(6.7688, abs=1e-3)
    assert Pld().spent(run, 1e-5).epsilon < 7.32911


def test_a_hundred_gaussians() -> None:
    # the Renyi bound of this composition is 14.132
    assert Pld().spent([steps(4, 1, 100)], 1e-5).epsilon == pytest.approx(13.207, abs=1e-3)


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-10])
def test_pld_never_reports_less_than_the_exact_epsilon(mu: float, delta: float) -> None:
    exact = gaussian_epsilon(mu, delta)
    reported = Pld().spent([steps(1 / mu, 1, 1)], delta).epsilon
    assert exact <= reported <= exact + 2e-4 * max(1.0, exact)


@pytest.mark.parametrize("mu", [1e-3, 1.0, 30.0, 300.0])
def test_the_closed_form_and_its_inverse_agree_where_exponentials_overflow(mu: float) -> None:
    epsilon = gaussian_epsilon(mu, 1e-5)
    assert gaussian_delta(mu, epsilon) == pytest.approx(1e-5, rel=1e-5)


def test_many_tiny_steps_are_not_blurred_by_the_grid() -> None:
    # at a fixed interval of 1e-4 this would be 0.1058
    tiny = [steps(10, 0.001, 100_000)]
    assert Pld().spent(tiny, 1e-5).epsilon <= 0.0975


def test_the_curve_falls() -> None:
    points = curve([MNIST])
    assert all(high[1] > low[1] and high[0] < low[0] for high, low in itertools.pairwise(points))
    assert not any(math.isinf(epsilon) for epsilon, _ in points)


FLOWERS = [(4.0, 6000, 6000, 100), (1.0, 256, 6000, 468), (1.5, 40, 1000, 50)]  # noise, sample, population, releases


@pytest.mark.parametrize(("z", "sample", "population", "n"), FLOWERS)
def test_flowers_accountant_is_the_renyi_bound_of_the_same_events(
    z: float, sample: int, population: int, n: int
) -> None:
    from flwr.serverapp import GaussianPrivacyEvent, PrivacyConfig
    from flwr.supercore.privacy_accounting import NeighboringRelation, SamplingMethod
    from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant

    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    flower = RdpAccountant(PrivacyConfig(1e-5, population, relation, SamplingMethod.POISSON))
    flower.compose(GaussianPrivacyEvent(z, sample, population), count=n)
    events = [steps(z, sample / population, n)]
    assert flower.get_epsilon(1e-5) == pytest.approx(first_choice(events, 1e-5).spent(events, 1e-5).epsilon, rel=0.02)
    assert Pld().spent(events, 1e-5).epsilon < flower.get_epsilon(1e-5)


def test_the_filter_of_a_sampled_run() -> None:
    run = [steps(1.5, 0.04, 2250)]
    assert first_choice(run, 1e-5).spent(run, 1e-5).epsilon == pytest.approx(7.32911, abs=2e-3)
