"""A plan says before a run what an agent would calibrate and a ledger would charge."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.errors import BudgetExceeded, ConfigError, PrivacyError
from fedkd.privacy.accounting import epsilon, gaussian_epsilon
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.limits import Past
from fedkd.privacy.units import seen_by
from fedkd.report.plain import render_text
from fedkd.report.plan_content import plan_document, plan_figure, plan_record
from fedkd.report.planning import Schedule, over_rounds, plan, warnings, what_if
from fedkd.report.plots import draw_lines
from tests.exports import agreed

DP_SGD = Schedule(steps=10)
SCHEDULES: dict[str, Schedule] = {
    "dp_sgd": DP_SGD,
    "gaussian": Schedule("gaussian", answers=100),
    "sum": Schedule("sum", answers=100, clients=50),
    "votes": Schedule("votes", answers=100, threshold=True),
}


def spent(schedule: Schedule, noise: float, rounds: int) -> float:
    """By the accountant itself, of the events of a round again and again."""
    events = [event for _ in range(rounds) for event in schedule.cost.events(noise)]
    return epsilon(seen_by(schedule.cost.unit, events), schedule.delta)


# -- what is worked out ------------------------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0.5, 10), st.integers(1, 40))
def test_noise_from_a_plan_reports_at_most_epsilon(mechanism: str, limit: float, rounds: int) -> None:
    found = plan(SCHEDULES[mechanism], limit, None, rounds)
    assert spent(found.schedule, found.noise, rounds) == found.epsilon <= limit


@pytest.mark.parametrize("mechanism", sorted(SCHEDULES))
def test_noise_from_a_plan_is_what_an_agent_would_put_into_its_contract(mechanism: str) -> None:
    settings = {"steps": 10} if mechanism == "dp_sgd" else {}
    contract = agreed(mechanism=mechanism, epsilon=4.0, rounds=3, **settings)
    found = plan(SCHEDULES[mechanism], 4.0, None, 3)
    assert found.schedule.cost.events(found.noise) == contract.events


def test_noise_after_a_ledgers_past_is_what_an_agent_would_put_into_its_next_contract() -> None:
    first = agreed(epsilon=2.0, steps=10)
    past = Past(tuple(first.schedule(1)), 1, tuple(first.schedule(2)))
    found = plan(Schedule(steps=10, past=past), 3.0, None, 2)
    assert found.noise > plan(DP_SGD, 3.0, None, 2).noise
    assert epsilon([*first.schedule(1), PrivacyEvent("dp_sgd", found.noise, 1.0, 20)], 1e-5) == found.epsilon <= 3.0


def test_epsilon_of_one_gaussian_is_the_exact_one() -> None:
    found = plan(Schedule(steps=1), None, 5.0, 1)
    assert found.asked == "epsilon"
    assert gaussian_epsilon(1 / 5, 1e-5) <= found.epsilon <= gaussian_epsilon(1 / 5, 1e-5) + 2e-4


@pytest.mark.parametrize("limit", [1.0, 3.0])
def test_one_round_more_than_planned_would_not_fit(limit: float) -> None:
    found = plan(DP_SGD, limit, 20.0, None)
    assert found.epsilon <= limit < DP_SGD.epsilon(20.0, found.rounds + 1)


def test_a_run_has_no_more_rounds_than_a_configuration_admits() -> None:
    assert plan(Schedule(steps=1), 50.0, 1000.0, None).rounds == 10_000


def test_the_limits_of_blocks_together_and_of_the_client_hold_too() -> None:
    past = Past((PrivacyEvent("dp_sgd", 20.0, 1.0, 10, blocks=("spring",)),), 1)
    alone = plan(Schedule(steps=10, block="summer", past=past), 2.0, None, 2)
    together = plan(Schedule(steps=10, block="summer", past=past, lifetime_limit=2.0), 2.0, None, 2)
    assert alone.noise == plan(DP_SGD, 2.0, None, 2).noise < together.noise
    with pytest.raises(BudgetExceeded, match="bounds nothing for one client"):
        plan(Schedule(steps=10, client_limit=5.0), 2.0, None, 2)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [(None, None, None), (3.0, None, None), (3.0, 5.0, 2)])
def test_just_one_of_the_three_is_worked_out(known: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="two of epsilon, noise and rounds"):
        plan(DP_SGD, *known)


@pytest.mark.parametrize(
    ("schedule", "known", "message"),
    [
        (DP_SGD, (0.001, None, 10_000), "not enough"),
        (DP_SGD, (1.0, 1.0, None), "not one round fits"),
        (DP_SGD, (0.0, None, 1), "above 0"),
        (DP_SGD, (math.inf, None, 1), "finite"),
        (DP_SGD, (None, 0.01, 1), "between 0.1 and 10000"),
        (Schedule(delta=0.0), (3.0, None, 1), "delta"),
        (Schedule(steps=1, sample_rate=1e-6), (3.0, None, 1), "any noise would do"),
        (Schedule("sum", clients=10), (3.0, None, 1), "fewer than 20 clients"),
        (Schedule("gaussian", answers=100_000), (None, 1000.0, 1), "more than is drawn exactly"),
    ],
)
def test_an_impossible_plan_is_refused(schedule: Schedule, known: tuple[Any, ...], message: str) -> None:
    with pytest.raises((BudgetExceeded, ConfigError, PrivacyError), match=message):
        plan(schedule, *known)


# -- what is said ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule(delta=0.01, examples=100), "not below 1/100"),
        (Schedule("gaussian", delta=0.01, clients=100, answers=10), "not below 1/100"),
        (Schedule("gaussian", answers=10), "drowns"),
        (Schedule("sum", clients=30), "votes of 30 clients"),
    ],
)
def test_what_a_reader_should_mind_is_said(schedule: Schedule, said: str) -> None:
    found = plan(schedule, None, 30.0, 1)
    assert any(said in warning for warning in warnings(found))
    assert said in " ".join(render_text(plan_document(found)).split())


def test_a_delta_far_below_one_over_the_examples_is_not_warned_of() -> None:
    assert not [*warnings(plan(Schedule(examples=99_999), None, 30.0, 1))]


@pytest.mark.parametrize(
    ("mechanism", "unit"), [("dp_sgd", "one training example"), ("gaussian", "all that one client")]
)
def test_a_number_is_told_with_its_unit_its_adjacency_and_the_ledgers_life(mechanism: str, unit: str) -> None:
    found = plan(SCHEDULES[mechanism], None, 20.0, 2)
    first = " ".join(render_text(plan_document(found)).split())[:300]
    change = found.schedule.cost.adjacency.replace("_", "/")
    for part in (unit, f"({change})", "whole life of the client's ledger", "delta 1e-05", f"{found.epsilon:.10g}"):
        assert part in first


def test_the_other_unit_has_a_number_of_its_own() -> None:
    assert plan(DP_SGD, None, 20.0, 2).other == ("client", math.inf)
    found = plan(SCHEDULES["sum"], None, 20.0, 2)
    unit, other = found.other
    assert unit == "example" and other == pytest.approx(gaussian_epsilon(2 / 20, 1e-5), abs=1e-3)
    assert other > found.epsilon


def test_tables_hold_the_plan_itself_and_go_the_right_way() -> None:
    found = plan(Schedule(steps=10, sample_rate=0.2), None, 4.0, 8)
    tables = what_if(found)
    assert [*tables] == ["rounds", "noise", "sample rate"]
    for name, rising in (("rounds", True), ("noise", False), ("sample rate", True)):
        epsilons = [spent for _, spent in tables[name]]
        assert epsilons == sorted(epsilons, reverse=not rising) and found.epsilon in epsilons
    assert {8.0, 4.0, 0.2} <= {value for table in tables.values() for value, _ in table}


def test_the_record_is_strict_json() -> None:
    for schedule in SCHEDULES.values():
        record = plan_record(plan(schedule, None, 20.0, 2))
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert [PrivacyEvent.from_record(event) for event in record["events_of_a_round"]]


@pytest.mark.parametrize("name", ["plan.svg", "plan.png"])
def test_a_plot_has_the_planned_noise_and_others_and_the_same_bytes_each_time(tmp_path: Path, name: str) -> None:
    found = plan(DP_SGD, None, 20.0, 5)
    assert [*over_rounds(found)] == [10.0, 20.0, 40.0]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        draw_lines(plan_figure(found), tmp_path / folder / name)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
