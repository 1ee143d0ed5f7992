"""A budget report says what audits have shown of it, and of what; one that refutes its claim leaves no guarantee."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedkd.errors import DataError
from fedkd.report import collect
from fedkd.report.audit import AuditFinding, AuditResult
from fedkd.report.budget import budget_report, sources_hash
from fedkd.report.render import render
from tests.exports import dp_sgd, export

LEDGERS = {"a": export(dp_sgd())}
SENTENCE = "lower bound 1.2 on epsilon at delta 1e-05 at confidence 0.9999, threat model: sees all; claim 3"


def result(lower_bound: float | str = 1.2, **changes: Any) -> AuditResult:
    finding = AuditFinding(
        audit="canaries in one run",
        quantity="epsilon at delta 1e-05",
        lower_bound=lower_bound,
        claim=3.0,
        confidence=0.9999,
        threat_model="sees all",
        refutes=lower_bound == "inf" or lower_bound > 3.0,
        sentence=SENTENCE,
        observed={"canaries": 1000},
    )
    settings: dict[str, Any] = {
        "schema_version": 1,
        "fedkd": "0.1.0",
        "sources": sources_hash(),
        "scenario": "digits",
        "config_hash": "c0ffee",
        "mechanism": "dp_sgd",
        "epsilon": 3.0,
        "delta": 1e-5,
        "confidence": 0.999,
        "findings": [finding],
    }
    return AuditResult(**{**settings, **changes})


def text_of(**arguments: Any) -> str:
    return " ".join(render(budget_report(LEDGERS, **arguments), "text").split())


def test_without_an_audit_the_report_says_so() -> None:
    assert budget_report(LEDGERS).audit == "none run"
    assert "audit none run" in text_of()


@pytest.mark.parametrize("form", ["text", "md", "html", "json"])
def test_every_form_has_bound_confidence_threat_model_and_claim(form: Any) -> None:
    said = " ".join(render(budget_report(LEDGERS, audit=[result()]), form).replace("\\", "").split())
    assert SENTENCE in said
    assert "verified" not in said


def test_an_audit_below_its_claim_changes_no_guarantee() -> None:
    before, after = budget_report(LEDGERS), budget_report(LEDGERS, audit=[result()])
    assert before.units == after.units and after.holds is before.holds is True


@pytest.mark.parametrize("bound", [3.1, "inf"])
def test_an_audit_above_its_claim_leaves_no_guarantee(bound: Any) -> None:
    report = budget_report(LEDGERS, audit=[result(), result(bound)])
    assert not report.holds
    assert all(column.guarantee.startswith("NO GUARANTEE: an audit") for column in report.units.values())
    assert "ABOVE ITS CLAIM" in text_of(audit=[result(bound)])


def test_an_audit_of_another_configuration_or_of_other_code_is_told_apart() -> None:
    assert "of this configuration" in text_of(audit=[result()], config_hash="c0ffee")
    assert "ANOTHER CONFIGURATION" in text_of(audit=[result()], config_hash="beef")
    assert "OTHER CODE" not in text_of(audit=[result()])
    assert "OTHER CODE" in text_of(audit=[result(sources="0" * 64)])


def test_an_audit_that_lies_in_the_run_directory_is_found(tmp_path: Path) -> None:
    assert collect.audits([tmp_path]) == []
    (tmp_path / collect.AUDIT).write_text(result().model_dump_json())
    assert collect.audits([tmp_path, tmp_path / "ledger.sqlite"]) == [result()]


@pytest.mark.parametrize("content", ["{}", "no JSON", json.dumps({"schema_version": 1, "findings": []})])
def test_a_file_that_is_no_audit_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / collect.AUDIT).write_text(content)
    with pytest.raises(DataError, match="not a result of fedkd audit"):
        collect.audits([tmp_path])
