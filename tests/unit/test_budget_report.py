"""The report says what has been spent, on what, and what it does not cover."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedkd.errors import PrivacyError
from fedkd.privacy.accounting import Pld
from fedkd.privacy.events import PrivacyEvent, Spent
from fedkd.privacy.opacus_prv import Prv
from fedkd.report.budget import budget_report, render_text

EVENT = PrivacyEvent("dp_sgd", 12.0, 1.0, 10)


def export(event: PrivacyEvent = EVENT, rounds: int = 2, noise: str = "os", released: int = 1) -> dict[str, Any]:
    contract = {
        "run": "run-1",
        "hash": "c" * 64,
        "rounds": rounds,
        "proxy": "p" * 64,
        "events": [event.record()],
        "training": {"steps": event.steps, "sample_rate": event.sample_rate, "clip": 0.5, "nominal_batch": 100.0},
        "limits": {"unit": event.unit, "epsilon": 3.0, "delta": 1e-5, "client": None, "lifetime": None},
        "noise": noise,
    }
    events = [
        {**event.record(), "state": "released" if n <= released else "reserved", "run": "run-1", "round": n, "bytes": 9}
        for n in range(1, rounds + 1)
    ]
    return {"schema": 1, "client": "a", "head": "h" * 64, "contracts": [contract] if rounds else [], "events": events}


def test_reserved_rounds_are_charged_like_released_ones() -> None:
    client = budget_report({"a": export()})["clients"]["a"]
    assert client["epsilon"]["example"] == Pld().spent([EVENT, EVENT], 1e-5).epsilon
    assert client["charged"] == {"released": 1, "reserved": 1}


def test_epsilon_accumulates_over_rounds() -> None:
    client = budget_report({"a": export(rounds=3)})["clients"]["a"]
    spent = [row["epsilon"] for row in client["per_round"]]
    assert spent == sorted(spent) and len(set(spent)) == 3
    assert spent[-1] == client["epsilon"]["example"]


def test_units_have_columns_of_their_own() -> None:
    report = budget_report({"a": export(), "b": export(rounds=0)})
    assert report["epsilon"]["client"] == "inf"
    assert report["clients"]["b"]["epsilon"] == {"example": 0.0, "client": 0.0}


def test_the_text_starts_with_the_guarantee_its_unit_and_against_whom() -> None:
    report = budget_report({"a": export()})
    first = " ".join(render_text(report).split())[:400]
    assert first.startswith("Adding or removing any one training example of a client")
    assert f"e^{report['epsilon']['example']:.4f}" in first and "1e-05" in first
    assert "the server included" in first


def test_sigma_and_sensitivity_are_derived() -> None:
    mechanism = budget_report({"a": export()})["clients"]["a"]["mechanisms"][0]
    assert (mechanism["sensitivity"], mechanism["sigma"]) == (0.5, 6.0)
    assert "Delta = C = 0.5" in mechanism["derivation"]


@pytest.mark.parametrize(("rate", "sampler"), [(1.0, "full batch"), (0.1, "Poisson at rate 0.1, by ChaCha20")])
def test_assumed_and_actual_sampler_are_named(rate: float, sampler: str) -> None:
    mechanism = budget_report({"a": export(PrivacyEvent("dp_sgd", 2.0, rate, 10))})["clients"]["a"]["mechanisms"][0]
    assert sampler in mechanism["sampler"]["actual"]


def test_no_mechanism_is_infinite_and_never_blank() -> None:
    report = budget_report({"a": export(PrivacyEvent("none", 0.0, 1.0, 10))})
    assert report["epsilon"]["example"] == report["clients"]["a"]["per_round"][0]["epsilon"] == "inf"
    assert not report["holds"]
    assert "∞" in render_text(report) and render_text(report).startswith("NO GUARANTEE")


def test_simulated_noise_gives_no_guarantee() -> None:
    report = budget_report({"a": export(noise="simulation"), "b": export()})
    assert not report["holds"]
    assert render_text(report).startswith("NO GUARANTEE: the noise was reproducible (simulation)")
    assert "NO GUARANTEE" in report["clients"]["a"]["randomness"]


def test_noise_of_unknown_origin_gives_no_guarantee() -> None:
    bare = {**export(), "contracts": []}
    assert "NO GUARANTEE" in budget_report({"a": bare})["clients"]["a"]["randomness"]


def test_json_is_strict() -> None:
    for event in (EVENT, PrivacyEvent("none", 0.0, 1.0, 10)):
        report = budget_report({"a": export(event)})
        assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_what_is_not_covered_is_said() -> None:
    text = " ".join(render_text(budget_report({"a": export()})).split())
    for left_out in ("latency", "missed deadlines", "participation pattern", "hyper-parameters", "outside the wire"):
        assert left_out in text


def test_the_cross_check_is_shown() -> None:
    client = budget_report({"a": export()})["clients"]["a"]
    assert client["cross_check"]["agrees"] is True
    assert abs(client["cross_check"]["difference"]) <= 0.02
    assert client["cross_check"]["exact"] == pytest.approx(client["epsilon"]["example"], abs=1e-3)
    assert Prv.name in " ".join(render_text(budget_report({"a": export()})).split())


def test_accountants_that_disagree_fail_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prv, "spent", lambda self, events, delta: Spent(1.0, delta, "another"))
    with pytest.raises(PrivacyError, match="two accountants disagree"):
        budget_report({"a": export()})


def test_a_cross_check_that_cannot_be_made_is_not_hidden() -> None:
    report = budget_report({"a": export(PrivacyEvent("dp_sgd", 0.2, 1.0, 10))})
    assert report["clients"]["a"]["cross_check"]["agrees"] is None
    assert "NOT AVAILABLE" in render_text(report)


def test_a_client_unit_release_has_a_bound_in_both_columns_and_never_the_same_one() -> None:
    event = PrivacyEvent("sum", 5.0, 1.0, 1, unit="client", adjacency="add_remove")
    client = budget_report({"a": export(event, rounds=1)})["clients"]["a"]
    assert client["epsilon"]["client"] == Pld().spent([event], 1e-5).epsilon
    replaced = PrivacyEvent("sum", 5.0 / 2**0.5, 1.0, 1)
    assert client["epsilon"]["example"] == Pld().spent([replaced], 1e-5).epsilon > client["epsilon"]["client"]


def test_long_histories_are_thinned_but_keep_the_last_round() -> None:
    client = budget_report({"a": export(PrivacyEvent("dp_sgd", 500.0, 1.0, 1), rounds=450)})["clients"]["a"]
    assert len(client["per_round"]) <= 200
    assert client["per_round"][-1]["round"] == 450
    assert client["per_round"][-1]["epsilon"] == client["epsilon"]["example"]


def test_nothing_charged_is_zero() -> None:
    text = render_text(budget_report({"a": export(rounds=0)}))
    assert text.startswith("Nothing has been charged")
