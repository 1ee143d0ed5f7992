"""What every accountant must do."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace

import pytest

from fedkd.errors import PrivacyError
from fedkd.privacy.accounting import Accountant, ClosedForm, Pld
from fedkd.privacy.blocks import by_block
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.filters import RenyiFilter, first_choice
from fedkd.privacy.opacus_prv import Prv

DELTA = 1e-5


class AccountantContract(ABC):
    accountant: Accountant
    event = PrivacyEvent("dp_sgd", 2.0, 0.1, 20)

    @abstractmethod
    def exact_to(self) -> float:
        """How far two equal compositions may differ."""

    def spent(self, *events: PrivacyEvent) -> float:
        return self.accountant.spent(events, DELTA).epsilon

    def test_nothing_costs_nothing(self) -> None:
        assert self.spent() == 0

    def test_says_who_computed_it_and_with_which_version(self) -> None:
        spent = self.accountant.spent([self.event], DELTA)
        assert (spent.accountant, spent.delta) == (self.accountant.name, DELTA)
        assert any(letter.isdigit() for letter in spent.accountant)

    def test_more_steps_cost_more(self) -> None:
        assert 0 < self.spent(self.event) < self.spent(replace(self.event, steps=2 * self.event.steps))

    def test_less_noise_costs_more(self) -> None:
        assert self.spent(self.event) < self.spent(replace(self.event, noise_multiplier=1.5))

    def test_a_smaller_delta_costs_more(self) -> None:
        assert self.spent(self.event) < self.accountant.spent([self.event], 1e-7).epsilon

    def test_merged_events_cost_the_same_as_unmerged(self) -> None:
        half = replace(self.event, steps=self.event.steps // 2)
        assert self.spent(half, half) == pytest.approx(self.spent(self.event), abs=self.exact_to())

    def test_order_does_not_matter(self) -> None:
        other = replace(self.event, noise_multiplier=3.0)
        assert self.spent(self.event, other) == self.spent(other, self.event)

    def test_composition_is_at_most_the_sum(self) -> None:
        other = replace(self.event, noise_multiplier=3.0)
        assert self.spent(self.event, other) <= self.spent(self.event) + self.spent(other)

    def test_one_event_without_protection_makes_everything_infinite(self) -> None:
        for bare in (replace(self.event, mechanism="none"), replace(self.event, noise_multiplier=0.0)):
            assert math.isinf(self.spent(self.event, bare))

    def test_units_are_never_put_into_one_number(self) -> None:
        full = replace(self.event, sample_rate=1.0)
        for other in (replace(full, unit="client"), replace(full, adjacency="replace")):
            with pytest.raises(PrivacyError, match="two units"):
                self.spent(self.event, other)

    @pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, 1e-30, math.nan])
    def test_refuses_a_delta_that_it_cannot_account_for(self, delta: float) -> None:
        with pytest.raises(PrivacyError, match="delta"):
            self.accountant.spent([self.event], delta)


class TestPld(AccountantContract):
    accountant = Pld()

    def exact_to(self) -> float:
        return 0.0

    def test_epsilon_is_rounded_up_to_four_decimals(self) -> None:
        assert self.spent(self.event) == round(self.spent(self.event), 4)


class TestPrv(AccountantContract):
    accountant = Prv()

    def exact_to(self) -> float:
        return 0.0

    def test_agrees_with_pld_on_a_mixed_history(self) -> None:
        mixed = (self.event, PrivacyEvent("dp_sgd", 10.0, 1.0, 5), PrivacyEvent("dp_sgd", 1.0, 0.01, 100))
        assert 0 <= self.spent(*mixed) - Pld().spent(mixed, DELTA).epsilon <= 0.02

    def test_refuses_what_opacus_cannot_compute(self) -> None:
        with pytest.raises(PrivacyError, match="Opacus cannot compute"):
            self.spent(PrivacyEvent("dp_sgd", 0.02, 1.0, 1))


class TestClosedForm(AccountantContract):
    accountant = ClosedForm()
    event = PrivacyEvent("dp_sgd", 5.0, 1.0, 20)

    def exact_to(self) -> float:
        return 1e-9

    def test_refuses_sampled_batches(self) -> None:
        with pytest.raises(PrivacyError, match="full batches"):
            self.spent(PrivacyEvent("dp_sgd", 5.0, 0.5, 1))


class TestRenyiFilter(AccountantContract):
    accountant = RenyiFilter(8.0)

    def exact_to(self) -> float:
        return 1e-4

    def test_is_never_below_the_tight_composition(self) -> None:
        assert self.spent(self.event) >= Pld().spent([self.event], DELTA).epsilon

    def test_its_order_serves_the_first_contract_best(self) -> None:
        best = first_choice([self.event], DELTA)
        others = [RenyiFilter(order).spent([self.event], DELTA).epsilon for order in (2.0, 4.0, 16.0, 64)]
        assert best.spent([self.event], DELTA).epsilon <= min(others)


class TestBlocks:
    early = PrivacyEvent("dp_sgd", 5.0, 1.0, 20, blocks=("early",))
    late = PrivacyEvent("dp_sgd", 8.0, 1.0, 20, blocks=("late",))

    def test_an_example_pays_for_its_own_block_only(self) -> None:
        assert by_block([self.early, self.late]) == {"all": [], "early": [self.early], "late": [self.late]}

    def test_an_event_on_all_blocks_is_paid_in_each(self) -> None:
        everywhere = PrivacyEvent("dp_sgd", 4.0, 1.0, 1)
        assert by_block([self.early, everywhere]) == {"all": [everywhere], "early": [self.early, everywhere]}

    @pytest.mark.parametrize("mechanism", ["gaussian", "sum", "votes", "none"])
    def test_only_dp_sgd_composes_in_parallel(self, mechanism: str) -> None:
        other = replace(self.early, mechanism=mechanism)
        assert by_block([other, self.late]) == {"all": [other], "late": [other, self.late]}

    def test_naming_no_block_means_all_of_them(self) -> None:
        everywhere = replace(self.early, blocks=())
        assert by_block([everywhere, self.late])["late"] == [everywhere, self.late]

    def test_a_block_that_nothing_has_touched_pays_for_what_touches_all(self) -> None:
        assert by_block([self.late], also="new")["new"] == []
