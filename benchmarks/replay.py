"""One round's answers of real agents, kept: what a rule or a codec makes of them is tried without training again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.agent import Agent
from fedkd import codecs, config, wire
from fedkd.aggregate import RULES
from fedkd.aggregate.rule import Central
from fedkd.config import Aggregate, Data, Scenario
from fedkd.coordinator import Coordinator, Terms
from fedkd.data import sources
from fedkd.distill.model import ProxyView
from fedkd.distill.teacher import Teacher
from fedkd.distill.trainer import Labelled, accuracy
from fedkd.privacy.noise import NoiseSource
from fedkd.wire import Agreement, Answers, Rows
from simulations.prepare import prepare
from simulations.split import client_names


class Replay:
    """The first round of a scenario: ``answers`` are the clients' probabilities as float32."""

    def __init__(self, path: Path, settings: list[str]) -> None:
        torch.set_num_threads(1)
        self.scenario = config.load(Scenario, path, [*settings, "codec=float32", "rounds=1"])
        self._base = path.resolve().parent
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            prepare(self.scenario, out, self._base)
            self._view = ProxyView.load(out / "proxy.safetensors", self._base)
            test = sources.load(Data(source="npz", path="test.npz"), out)[0]
            teacher = self._teacher()
            self._test = Labelled(teacher.model.inputs(test.x), torch.from_numpy(test.y))
            features = self._view.inputs("features").numpy()
            size = len(self._view.proxy), self._view.proxy.classes
            terms = Terms("replay", self._view.proxy.hash, *size, "server", self.scenario.clients, features)
            coordinator = Coordinator(self.scenario, terms, teacher)
            self.answers = {
                name: _asked(out / "clients" / name, name, coordinator) for name in client_names(self.scenario)
            }

    def accuracy(self, rule: str, answers: Mapping[str, Rows]) -> float:
        """Test accuracy of the teacher that a rule makes of answers."""
        made: Any = RULES[rule](Aggregate.model_validate({"kind": rule}))
        acc = made.start(*next(iter(answers.values())).shape, answers.keys())
        for client, rows in answers.items():
            acc = made.fold(acc, client, rows)
        consensus = made.finish(acc, Central((), NoiseSource(bytes(32)), len(answers)), np.zeros((1, 1), np.float32))
        teacher = self._teacher()
        teacher.distil(consensus, 1)
        return accuracy(teacher.model.network, self._test)

    def _teacher(self) -> Teacher:
        return Teacher(self.scenario.teacher, self._view, self.scenario.seed, self._base)


def through(codec: str, rows: Rows) -> tuple[Rows, int]:
    """Rows as they arrive, and how many bytes they were on the way."""
    carried = codecs.pack(rows, codec)
    return codecs.unpack(carried, codec, *rows.shape), carried.nbytes


def _asked(folder: Path, client: str, coordinator: Coordinator) -> Rows:
    agent = Agent(folder / "client.yaml")
    try:
        agreed = wire.decode(agent.handle("agree", wire.encode(coordinator.offer(client))), Agreement)
        coordinator.agreed(agreed, client)
        reply = agent.handle("answer", wire.encode(coordinator.plan(client)))
        return wire.decode(reply, Answers).rows.rows
    finally:
        agent.close()
