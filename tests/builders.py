"""Offers, contracts and messages as most tests need them; a test names only what it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedkd.privacy.contract import Contract, Training
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.limits import Limits
from fedkd.wire import Agreement, Answers, Offer, Released

HASH = "ab" * 32
HEAD = f"7.3.{HASH}.{'cd' * 64}"


def offer(**changes: Any) -> Offer:
    made = Offer("run-1", "server", "0" * 64, 4, 2, 4, 3, "float32", "mean", 50, "")
    changes.setdefault("queries", changes.get("examples", made.queries))
    return replace(made, **changes)


def contract(*events: PrivacyEvent, epsilon: float = 3.0, delta: float = 1e-5, **changes: Any) -> Contract:
    """A contract to these events, in the terms of ``offer``; DP-SGD's training is what its event says."""
    events = events or (PrivacyEvent("dp_sgd", 5.0, 1.0, 2),)
    asked, limits = offer(), Limits(events[0].unit, epsilon, delta)
    names = ("run", "server", "proxy", "examples", "classes", "queries", "rounds", "codec", "aggregate")
    settings: dict[str, Any] = {
        **{name: getattr(asked, name) for name in names},
        "mechanism": events[0].mechanism,
        "shards": 1,
        "events": events,
        "variances": (),
        "training": Training(events[0].steps, events[0].sample_rate, 1.0, 10.0),
        "limits": limits,
        "noise": "os",
    }
    return Contract(**{**settings, **changes})


def agreement(**changes: Any) -> Agreement:
    return replace(Agreement("run-1", "alice", HASH, np.zeros(0, np.uint64), 1, "os", ""), **changes)


def answers(rows: Any, **changes: Any) -> Answers:
    return replace(Answers("run-1", "alice", 1, HASH, Released(rows, ""), ""), **changes)
