"""All audits of one scenario, and their result as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from fedkd import __version__
from fedkd.privacy.audit import Evidence, judge
from simulations.audits.answers import answer_evidence
from simulations.audits.canaries import canary_evidence
from simulations.audits.noise import source_evidence, update_evidence
from simulations.audits.paired import paired_evidence
from simulations.audits.setting import Setting
from simulations.prepare import config_hash

SCHEMA = 1

AUDITS: dict[str, Callable[[Setting], Iterator[Evidence]]] = {
    "noise source": source_evidence,
    "noise in the weights": update_evidence,
    "paired releases": paired_evidence,
    "canaries": canary_evidence,
    "answers": answer_evidence,
}


def audit(setting: Setting, confidence: float) -> dict[str, Any]:
    """Run everything; all lower bounds hold together at ``confidence``. Raises FedkdError."""
    torch.set_num_threads(1)
    evidence = [found for experiment in AUDITS.values() for found in experiment(setting)]
    findings = judge(evidence, confidence)
    privacy = setting.scenario.privacy
    return {
        "schema": SCHEMA,
        "fedkd": __version__,
        "scenario": setting.scenario.name,
        "config": config_hash(setting.scenario),
        "mechanism": privacy.mechanism,
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "confidence": confidence,
        "findings": [finding.record() for finding in findings],
        "refuted": [finding.audit for finding in findings if finding.refutes],
    }
