"""The result of ``fedkd audit``: its JSON form, and what a budget report says of it. Never "verified"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from fedkd.config import Model
from fedkd.report.numbers import Finite, Number

NONE: Literal["none run"] = "none run"
MEANING = "a lower bound below its claim verifies nothing: this attack, of that threat model, has shown no more"


class AuditFinding(Model):
    """One lower bound."""

    audit: str
    quantity: str = Field(description="of what the lower bound is")
    lower_bound: Number
    claim: Number = Field(description="what is promised of that quantity")
    confidence: Finite = Field(description="of this bound alone")
    threat_model: str
    refutes: bool = Field(description="whether the lower bound is above the claim")
    sentence: str
    observed: dict[str, Any] = Field(description="what was counted")


class AuditResult(Model):
    """What audits of one policy have shown."""

    schema_version: Literal[1]
    fedkd: str
    sources: str = Field(description="hash of the audited source files, as in a budget report")
    scenario: str
    config_hash: str
    mechanism: str
    epsilon: Finite = Field(description="the policy's, of a whole run")
    delta: Finite
    confidence: Finite = Field(description="of all findings together")
    findings: list[AuditFinding]

    @property
    def refuted(self) -> list[AuditFinding]:
        """The findings above their claims."""
        return [finding for finding in self.findings if finding.refutes]


class Audited(Model):
    """An audit in a report of a run."""

    same_configuration: bool | None = Field(description="as the run that is reported; null: the run's is not known")
    same_code: bool = Field(description="as the report was computed by")
    result: AuditResult


def audited(
    results: Sequence[AuditResult], config_hash: str | None, sources: str
) -> list[Audited] | Literal["none run"]:
    """The ``audit`` field of a report of a run with that configuration, by code of that hash."""
    found = [
        Audited(
            same_configuration=None if config_hash is None else result.config_hash == config_hash,
            same_code=result.sources == sources,
            result=result,
        )
        for result in results
    ]
    return found or NONE


def refutations(field: Sequence[Audited] | str) -> list[str]:
    """The names of audits whose lower bound is above the claim."""
    return [] if isinstance(field, str) else [finding.audit for one in field for finding in one.result.refuted]


def sentences(field: Sequence[Audited] | str) -> Iterator[str]:
    """A report's ``audit`` field for people."""
    if isinstance(field, str):
        yield field
        return
    for one in field:
        result = one.result
        of = {True: "this configuration", False: "ANOTHER CONFIGURATION", None: "a configuration"}
        code = "the code that computed this report" if one.same_code else "OTHER CODE than computed this report"
        yield (
            f"of {of[one.same_configuration]} ({result.config_hash[:16]}: {result.mechanism}, epsilon "
            f"{result.epsilon:g} at delta {result.delta:g}) and of {code}"
        )
        yield f"{len(result.findings)} lower bounds, together at confidence {result.confidence:g}; {MEANING}"
        for finding in result.findings:
            yield f"{finding.audit}: {'ABOVE ITS CLAIM: ' if finding.refutes else ''}{finding.sentence}"
