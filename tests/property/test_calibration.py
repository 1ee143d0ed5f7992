"""Calibrated noise never overspends, and is no more than is needed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.errors import BudgetExceeded, PrivacyError
from fedkd.privacy.accounting import epsilon
from fedkd.privacy.calibration import MIN_NOISE, noise_multiplier
from fedkd.privacy.events import PrivacyEvent

FEW = settings(max_examples=6, deadline=None)
PASTS: list[tuple[PrivacyEvent, ...]] = [
    (),
    (PrivacyEvent("dp_sgd", 30.0, 1.0, 40),),
    (PrivacyEvent("dp_sgd", 5.0, 0.1, 50), PrivacyEvent("dp_sgd", 30.0, 1.0, 10)),
]


def check_tight(past: tuple[PrivacyEvent, ...], rate: float, steps: int, limit: float, delta: float) -> None:
    noise = noise_multiplier(past, rate, steps, limit, delta)
    assert noise == round(noise, 4)
    assert epsilon([*past, PrivacyEvent("dp_sgd", noise, rate, steps)], delta) <= limit
    if noise > MIN_NOISE:
        assert epsilon([*past, PrivacyEvent("dp_sgd", noise - 1e-4, rate, steps)], delta) > limit


@FEW
@given(st.sampled_from(PASTS), st.integers(1, 2000), st.floats(1.5, 12), st.sampled_from([1e-5, 1e-8]))
def test_full_batches_never_overspend_and_less_noise_would(
    past: tuple[PrivacyEvent, ...], steps: int, limit: float, delta: float
) -> None:
    check_tight(past, 1.0, steps, limit, delta)


@settings(max_examples=2, deadline=None)
@given(st.sampled_from(PASTS[:2]), st.floats(0.05, 0.3), st.integers(50, 300), st.floats(2, 4))
def test_sampled_batches_never_overspend_and_less_noise_would(
    past: tuple[PrivacyEvent, ...], rate: float, steps: int, limit: float
) -> None:
    check_tight(past, rate, steps, limit, 1e-5)


def test_a_finished_run_leaves_no_budget_for_another() -> None:
    noise = noise_multiplier((), 1.0, 100, 3.0, 1e-5)
    with pytest.raises(BudgetExceeded, match="is spent"):
        noise_multiplier([PrivacyEvent("dp_sgd", noise, 1.0, 100)], 1.0, 100, 3.0, 1e-5)


def test_a_run_cut_short_leaves_its_rest() -> None:
    noise = noise_multiplier((), 1.0, 100, 3.0, 1e-5)
    assert noise_multiplier([PrivacyEvent("dp_sgd", noise, 1.0, 50)], 1.0, 50, 3.0, 1e-5) <= noise + 1e-3


def test_unprotected_answers_leave_no_budget() -> None:
    with pytest.raises(BudgetExceeded):
        noise_multiplier([PrivacyEvent("none", 0.0, 1.0, 1)], 1.0, 1, math.inf, 1e-5)


def test_no_noise_fits_a_vanishing_limit() -> None:
    with pytest.raises(BudgetExceeded):
        noise_multiplier((), 1.0, 10**10, 0.01, 1e-10)


def test_a_schedule_that_delta_alone_would_pay_for_is_refused() -> None:
    with pytest.raises(PrivacyError, match="any noise would do"):
        noise_multiplier((), 0.001, 5, 1.0, 1e-2)


def test_past_of_another_unit_is_refused() -> None:
    both = [PrivacyEvent("dp_sgd", 5.0, 1.0, 1), PrivacyEvent("gaussian", 5.0, 1.0, 1, "client", "replace")]
    with pytest.raises(PrivacyError, match="two units"):
        noise_multiplier(both, 1.0, 1, 1.0, 1e-5)
