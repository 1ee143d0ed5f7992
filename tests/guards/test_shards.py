"""Where a vote is to protect one example, each student has a part of the data for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from client.learner import Learner
from fedkd.config import ClientConfig, Training, load
from fedkd.data.partition import fingerprints
from fedkd.distill.model import ProxyView
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.noise import NoiseSource
from tests import builders

PARTS = 3
TERMS = {"kl": 0.5, "self": 5.0, "denoise": 0.5}


def learned(device: Any) -> list[bytes]:
    """The weights of a client's students after two rounds."""
    path = device.base / "client.yaml"
    view = ProxyView.load(device.base / "proxy.safetensors", device.base)
    learner = Learner(load(ClientConfig, path), view, Path(device.base), print, PARTS)
    labels = np.tile(np.array([0.3, 0.7], np.float32), (len(view.proxy), 1))
    contract = builders.contract(PrivacyEvent("none", 0.0, 1.0, 3))
    for round in (1, 2):
        learner.learn(contract, round, labels, 1.0, NoiseSource(bytes([round]) * 32))
    learner.learn_public(labels, 1.0, "public")
    return [b"".join(a.tobytes() for a in one.model.arrays().values()) for one in learner._lineages]


def test_a_record_is_seen_by_one_student_alone(new_device: Any, private_examples: Any) -> None:
    x, y = private_examples(30, 4)
    client = {"training": Training(distil_steps=3, terms=TERMS)}
    parts = [int(mark[:8], 16) % PARTS for mark in fingerprints(x)]
    before = learned(new_device(data=(x, y), client=client))
    for part in range(PARTS):
        changed = (y + (np.arange(30) == parts.index(part))) % 2
        after = learned(new_device(data=(x, changed), client=client))
        assert [one == other for one, other in zip(before, after, strict=True)] == [i != part for i in range(PARTS)]
