"""The result of ``fedkd audit`` in a budget report: lower bounds and their confidence, never "verified"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NONE = "none run"
MEANING = (
    "a lower bound below its claim verifies nothing: it says that this attack, of that threat model, has shown no more"
)


def audit_field(results: Sequence[Mapping[str, Any]], config_hash: str | None) -> list[dict[str, Any]] | str:
    """What a budget report says of results of ``fedkd audit``; ``config_hash`` is that of the run reported."""
    return [_entry(result, config_hash) for result in results] or NONE


def refuted(field: Sequence[Mapping[str, Any]] | str) -> list[str]:
    """The audits whose lower bound is above the claim."""
    return [] if isinstance(field, str) else [name for entry in field for name in entry["refuted"]]


def lines(field: Sequence[Mapping[str, Any]] | str) -> Iterable[str]:
    """A budget report's field as text."""
    if isinstance(field, str):
        yield field
        return
    for entry in field:
        yield f"{entry['of']}; {entry['together']}; {MEANING}"
        for finding in entry["findings"]:
            yield f"{finding['audit']}: {'ABOVE ITS CLAIM: ' if finding['refutes'] else ''}{finding['sentence']}"


def _entry(result: Mapping[str, Any], config_hash: str | None) -> dict[str, Any]:
    findings = result["findings"]
    same = {True: "the configuration of this run", False: "ANOTHER CONFIGURATION than this run's"}
    configuration = "an unknown configuration" if config_hash is None else same[result["config"] == config_hash]
    return {
        "of": f"{configuration}, audited with fedkd {result['fedkd']}: {result['mechanism']}, "
        f"epsilon {result['epsilon']:g} at delta {result['delta']:g}",
        "config_hash": result["config"],
        "together": f"all {len(findings)} bounds together hold at confidence {result['confidence']:g}",
        "confidence": result["confidence"],
        "findings": [
            {key: finding[key] for key in ("audit", "quantity", "lower_bound", "confidence", "threat_model", "claim")}
            | {"refutes": finding["refutes"], "sentence": finding["sentence"]}
            for finding in findings
        ],
        "refuted": list(result["refuted"]),
    }
