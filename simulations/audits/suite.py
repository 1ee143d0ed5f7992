"""All audits of one scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fedkd import __version__
from fedkd.privacy.audit import Evidence, Finding, judge
from fedkd.report.audit import AuditFinding, AuditResult
from fedkd.report.budget import sources_hash
from fedkd.report.numbers import number
from simulations.audits.answers import answer_evidence
from simulations.audits.canaries import canary_evidence
from simulations.audits.noise import source_evidence, update_evidence
from simulations.audits.paired import paired_evidence
from simulations.audits.setting import Setting
from simulations.prepare import config_hash

Experiment = Callable[[Setting], Iterator[Evidence]]

OF_ALL: tuple[Experiment, ...] = (source_evidence, paired_evidence)
OF_TRAINING: tuple[Experiment, ...] = (update_evidence, canary_evidence, answer_evidence)
"""Of a mechanism that protects an example by how its student is trained."""


def audit(setting: Setting, confidence: float) -> AuditResult:
    """Run everything; all lower bounds hold together at ``confidence``. Raises FedkdError."""
    torch.set_num_threads(1)
    privacy = setting.scenario.privacy
    experiments = OF_ALL + (OF_TRAINING if privacy.mechanism == "dp_sgd" else ())
    evidence = [found for experiment in experiments for found in experiment(setting)]
    return AuditResult(
        schema_version=1,
        fedkd=__version__,
        sources=sources_hash(),
        scenario=setting.scenario.name,
        config_hash=config_hash(setting.scenario),
        mechanism=privacy.mechanism,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        confidence=confidence,
        findings=[_record(finding) for finding in judge(evidence, confidence)],
    )


def _record(finding: Finding) -> AuditFinding:
    return AuditFinding(
        audit=finding.audit,
        quantity=finding.quantity,
        lower_bound=number(finding.lower_bound),
        claim=number(finding.claim),
        confidence=finding.confidence,
        threat_model=finding.threat_model,
        refutes=finding.refutes,
        sentence=finding.sentence,
        observed=dict(finding.observed),
    )
