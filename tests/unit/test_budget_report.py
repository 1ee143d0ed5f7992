"""The report says what has been spent, on what, and what it does not cover."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedkd.errors import PrivacyError
from fedkd.privacy.accounting import Pld
from fedkd.privacy.contract import Training
from fedkd.privacy.events import PrivacyEvent, Spent
from fedkd.privacy.opacus_prv import Prv
from fedkd.report.budget import budget_report
from fedkd.report.render import render
from tests.exports import agreed, dp_sgd, export, none


def told(exports: dict[str, Any]) -> dict[str, Any]:
    """The JSON form."""
    return budget_report(exports).record()


def text(exports: dict[str, Any]) -> str:
    return " ".join(render(budget_report(exports), "text").split())


def example(exports: dict[str, Any], client: str = "a") -> dict[str, Any]:
    """What one example of that client has spent."""
    found: dict[str, Any] = told(exports)["clients"][client]["spent"]["example"]
    return found


def test_reserved_rounds_are_charged_like_released_ones() -> None:
    client = told({"a": export(dp_sgd(), released=1)})["clients"]["a"]
    assert client["spent"]["example"]["epsilon"] == Pld().spent(dp_sgd().schedule(2), 1e-5).epsilon
    assert client["charged"] == {"released": 1, "reserved": 1, "lost": 0}


def test_epsilon_accumulates_over_rounds() -> None:
    spend = example({"a": export(dp_sgd(rounds=3))})
    spent = [row["epsilon"] for row in spend["per_round"]]
    assert spent == sorted(spent) and len(set(spent)) == 3
    assert spent[-1] == spend["epsilon"]


def test_units_have_columns_of_their_own() -> None:
    report = told({"a": export(dp_sgd()), "b": export()})
    assert report["units"]["client"]["epsilon"] == "inf"
    assert [spend["epsilon"] for spend in report["clients"]["b"]["spent"].values()] == [0.0, 0.0]


def test_what_is_left_is_the_limit_less_what_is_spent() -> None:
    spend = example({"a": export(dp_sgd())})
    assert spend["limit"] == 3.0
    assert spend["left"] == pytest.approx(3.0 - spend["epsilon"])
    assert example({"a": {**export(dp_sgd()), "contracts": []}})["left"] is None


def test_the_text_starts_with_the_guarantee_its_unit_and_against_whom() -> None:
    epsilon = example({"a": export(dp_sgd())})["epsilon"]
    first = text({"a": export(dp_sgd())})[:400]
    assert first.startswith("Adding or removing any one training example of a client")
    assert f"e^{epsilon:.4f}" in first and "1e-05" in first
    assert "the server included" in first


def test_sigma_and_sensitivity_are_derived() -> None:
    half = Training(steps=10, sample_rate=1.0, clip=0.5, nominal_batch=100.0)
    mechanism = told({"a": export(dp_sgd(training=half))})["clients"]["a"]["mechanisms"][0]
    assert (mechanism["sensitivity"], mechanism["sigma"]) == (0.5, 6.0)
    assert "Delta = C = 0.5" in mechanism["derivation"]


@pytest.mark.parametrize(("rate", "sampler"), [(1.0, "full batch"), (0.1, "Poisson at rate 0.1, by ChaCha20")])
def test_assumed_and_actual_sampler_are_named(rate: float, sampler: str) -> None:
    mechanism = told({"a": export(dp_sgd(2.0, rate))})["clients"]["a"]["mechanisms"][0]
    assert sampler in mechanism["sampler"]["actual"]


def test_no_mechanism_is_infinite_and_never_blank() -> None:
    exports = {"a": export(none())}
    report = told(exports)
    assert report["units"]["example"]["epsilon"] == example(exports)["per_round"][0]["epsilon"] == "inf"
    assert not report["holds"]
    assert "∞" in text(exports) and text(exports).startswith("NO GUARANTEE")


def test_simulated_noise_gives_no_guarantee() -> None:
    exports = {"a": export(dp_sgd(noise="simulation")), "b": export(dp_sgd())}
    assert not told(exports)["holds"]
    assert text(exports).startswith("NO GUARANTEE: the noise was reproducible (simulation)")
    assert "NO GUARANTEE" in told(exports)["clients"]["a"]["randomness"]


def test_noise_of_unknown_origin_gives_no_guarantee() -> None:
    bare = {**export(dp_sgd()), "contracts": []}
    assert "NO GUARANTEE" in told({"a": bare})["clients"]["a"]["randomness"]


def test_json_is_strict() -> None:
    for contract in (dp_sgd(), none()):
        report = told({"a": export(contract)})
        assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_cross_checks_are_shown() -> None:
    spend = example({"a": export(dp_sgd())})
    prv, exact = spend["cross_checks"]
    assert prv["accountant"] == Prv.name and abs(prv["difference"]) <= 0.02
    assert exact["epsilon"] == pytest.approx(spend["epsilon"], abs=1e-3)
    assert Prv.name in text({"a": export(dp_sgd())})


def test_accountants_that_disagree_fail_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prv, "spent", lambda self, events, delta: Spent(1.0, delta, "another"))
    with pytest.raises(PrivacyError, match="two accountants disagree"):
        budget_report({"a": export(dp_sgd())})


def test_a_cross_check_that_cannot_be_made_is_not_hidden() -> None:
    exports = {"a": export(dp_sgd(0.2))}
    assert example(exports)["cross_checks"][0]["difference"] is None
    assert "NOT AVAILABLE" in text(exports)


def test_a_client_unit_release_has_a_bound_in_both_columns_and_never_the_same_one() -> None:
    contract = agreed(mechanism="sum")
    spent = told({"a": export(contract)})["clients"]["a"]["spent"]
    (event,) = contract.schedule(2)
    assert spent["client"]["epsilon"] == Pld().spent([event], 1e-5).epsilon
    replaced = PrivacyEvent("sum", event.noise_multiplier / 2**0.5, 1.0, 2)
    assert spent["example"]["epsilon"] == Pld().spent([replaced], 1e-5).epsilon > spent["client"]["epsilon"]
    assert [spent[unit]["adjacency"] for unit in ("example", "client")] == ["add_remove", "add_remove"]


def test_one_example_unit_release_takes_the_bound_of_the_whole_client_away() -> None:
    first = agreed(mechanism="sum", epsilon=2.0)
    report = told({"a": export(first, agreed([first], epsilon=5.0))})
    spent = report["clients"]["a"]["spent"]
    assert spent["client"]["epsilon"] == report["units"]["client"]["epsilon"] == "inf"
    assert spent["example"]["epsilon"] <= 5.0
    assert "no bound" in report["units"]["client"]["guarantee"]


def test_each_unit_has_its_own_limit() -> None:
    contract = agreed(mechanism="votes", epsilon=4.0, lifetime_epsilon=9.0)
    client = told({"a": export(contract)})["clients"]["a"]
    limits = {"delta": 1e-5, "example": None, "client": 4.0, "one_example_in_each_block": 9.0}
    assert client["limits"] == {**limits, "blocks": {}}
    assert client["spent"]["example"]["left"] is None
    assert client["spent"]["client"]["left"] == pytest.approx(4.0 - client["spent"]["client"]["epsilon"])


@pytest.mark.parametrize(("mechanism", "change"), [("gaussian", "Replacing"), ("sum", "Adding or removing")])
def test_the_guarantee_of_a_client_names_its_adjacency(mechanism: str, change: str) -> None:
    said = told({"a": export(agreed(mechanism=mechanism))})["units"]["client"]["guarantee"]
    assert said.startswith(f"{change} all that one client holds")


@pytest.mark.parametrize(
    ("mechanism", "trusted"), [("dp_sgd", False), ("gaussian", False), ("sum", True), ("votes", True)]
)
def test_whom_to_trust_differs_by_mechanism(mechanism: str, trusted: bool) -> None:
    report = told({"a": export(agreed(mechanism=mechanism))})
    assert ("and the aggregator" in report["units"]["example"]["guarantee"]) is trusted
    assert ("the aggregator, which sees" in report["trust_models"][mechanism]) is trusted
    assert any("what the aggregator does" in left_out for left_out in report["outputs_not_covered"]) is trusted


@pytest.mark.parametrize(
    ("mechanism", "sensitivities"),
    [("gaussian", [16 * 200**0.5]), ("sum", [10.0]), ("votes", [1.0, 2**0.5])],
)
def test_sensitivities_of_client_mechanisms_are_derived(mechanism: str, sensitivities: list[float]) -> None:
    """Of 100 queries: 16 sqrt(2 q) on the grid, sqrt(q) for one-hot votes, 1 and sqrt(2) a query for noisy votes."""
    contract = agreed(mechanism=mechanism)
    parts = told({"a": export(contract)})["clients"]["a"]["mechanisms"]
    assert [part["sensitivity"] for part in parts] == pytest.approx(sensitivities)
    for part, variance in zip(parts, contract.variances, strict=True):
        assert part["sigma"] ** 2 == pytest.approx(variance)
        assert part["sigma"] >= part["noise_multiplier"] * part["sensitivity"]
        assert part["clip"] is None and "Delta = " in part["derivation"]


def test_the_arithmetic_of_the_noise_differs_by_mechanism() -> None:
    report = told({"a": export(agreed()), "b": export(agreed(mechanism="sum"))})
    assert "float64" in report["floating_point"]["dp_sgd"] and "not hardened" in report["floating_point"]["dp_sgd"]
    assert "integers" in report["floating_point"]["sum"]


def test_an_example_pays_for_its_own_block_and_a_person_for_all() -> None:
    first = agreed(block="spring", epsilon=2.0, lifetime_epsilon=5.0)
    spend = example({"a": export(first, agreed([first], block="summer", epsilon=2.0, lifetime_epsilon=5.0))})
    blocks = spend["per_block"]
    assert blocks["all"] == 0 and 0 < blocks["spring"] <= 2 and 0 < blocks["summer"] <= 2
    assert spend["epsilon"] == max(blocks.values()) == spend["per_round"][-1]["epsilon"]
    assert max(blocks.values()) < spend["one_example_in_each_block"] <= 5
    at_delta = {point["delta"]: point["epsilon"] for point in spend["curve"]}
    assert at_delta[1e-5] == spend["epsilon"]


def test_each_block_is_shown_beside_its_own_limit() -> None:
    first = agreed(block="spring", epsilon=4.0)
    spend = example({"a": export(first, agreed([first], block="summer", epsilon=1.0))})
    assert spend["limit_per_block"] == {"all": 1.0, "spring": 4.0, "summer": 1.0}
    assert spend["limit"] == 4.0 and 3 < spend["per_block"]["spring"] <= 4.0 and spend["per_block"]["summer"] <= 1.0


def test_sampled_rounds_chosen_after_answers_are_reported_by_the_filter() -> None:
    first = agreed(sample_rate=0.1, epsilon=2.0)
    exports = {"a": export(first, agreed([first], sample_rate=0.1, epsilon=5.0))}
    spend = example(exports)
    assert spend["accountant"].startswith("Renyi filter")
    in_advance, prv, _ = spend["cross_checks"]
    assert in_advance["accountant"] == prv["compared_with"] == Pld.name
    assert in_advance["epsilon"] < spend["epsilon"] <= 5.0
    assert "Renyi filter" in text(exports)


def test_a_round_of_several_parts_is_one_charge() -> None:
    client = told({"a": export(agreed(mechanism="votes"))})["clients"]["a"]
    assert len(client["mechanisms"]) == 2
    assert [row["charge"] for row in client["spent"]["client"]["per_round"]] == [1, 2]
    assert client["charged"]["released"] == 2


def test_charges_of_a_recovery_count_and_are_named() -> None:
    exported = export(dp_sgd())
    lost = {**exported["events"][0], "state": "lost", "run": None, "round": None, "bytes": 0}
    exports = {"a": {**exported, "events": [*exported["events"], lost]}}
    assert told(exports)["clients"]["a"]["charged"] == {"released": 2, "reserved": 0, "lost": 1}
    assert example(exports)["epsilon"] == Pld().spent(dp_sgd().schedule(3), 1e-5).epsilon
    assert "1 lost and charged by recovery" in text(exports)


def test_long_histories_are_thinned_but_keep_the_last_round() -> None:
    spend = example({"a": export(dp_sgd(500.0, steps=1, rounds=450))})
    assert 40 <= len(spend["per_round"]) <= 50
    assert spend["per_round"][-1]["charge"] == spend["per_round"][-1]["round"] == 450
    assert spend["per_round"][-1]["epsilon"] == spend["epsilon"]


def test_nothing_charged_is_zero() -> None:
    assert text({"a": export()}).startswith("Nothing has been charged")
