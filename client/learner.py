"""A client's own model and data: learns a round, answers, and continues from a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedkd.config import ClientConfig
from fedkd.data import encoding, sources
from fedkd.data.partition import fingerprints
from fedkd.data.sources import Examples
from fedkd.distill.losses import Objective, SoftLabels, soften
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.students import DEFAULTS
from fedkd.distill.trainer import Distillation, Labelled, Optimiser, Velocity, fit, learn_round, logits
from fedkd.privacy.contract import Contract
from fedkd.privacy.noise import NoiseSource
from fedkd.rng import derive
from fedkd.state import read_packed
from fedkd.tensors import Arrays, below, digest, pack, unpack
from fedkd.wire import Rows


class Learner:
    """Private data and student of one client. Nothing in here is ever sent; ``answer`` is what may become a release."""

    def __init__(self, config: ClientConfig, view: ProxyView, base: Path, console: Callable[[str], None]) -> None:
        """Raises DataError for data that does not fit the proxy set."""
        self._config, self._view, self._base = config, view, base / config.code
        self._seed = derive(config.seed, "client", config.name)
        self.model = Model.fresh(config.student, view, self._seed, self._base)
        examples = self._private_examples(base, console)
        self.snapshot = digest(pack({"x": examples.x, "y": examples.y}, {}))
        self.data = Labelled(self.model.inputs(examples.x), torch.from_numpy(examples.y))
        self.labels: Rows | None = None
        self.velocity: Velocity = {}

    def _private_examples(self, base: Path, console: Callable[[str], None]) -> Examples:
        proxy, where = self._view.proxy, f"client {self._config.name}, source {self._config.data.source}"
        data = encoding.agreed(self._config.data, proxy.provenance.get("encoding", {}), where)
        examples, _ = sources.load(data, base)
        sources.check(examples, where, shape=proxy.shape, classes=proxy.classes)
        public = np.isin(fingerprints(examples.x), fingerprints(proxy.examples))
        if public.any():
            # record by record, and seen only here: to refuse would tell the server who is in the data
            console(f"{where}: {int(public.sum())} records are also in the proxy set, and are left out")
        return examples.take(np.flatnonzero(~public))

    def alone(self) -> Learner:
        """Another learner on the same data, with the same initial weights: for a comparison, never for a release."""
        other = copy.copy(self)
        other.model = Model.fresh(self._config.student, self._view, self._seed, self._base)
        other.labels, other.velocity = None, {}
        return other

    @property
    def optimiser(self) -> Optimiser:
        """The architecture's own settings over the client's training block."""
        student, training = self._config.student, self._config.training
        usual = DEFAULTS.get(student.kind, {})
        rate = student.learning_rate or usual.get("learning_rate") or training.learning_rate
        momentum = training.momentum if student.momentum is None else student.momentum
        return Optimiser(rate, momentum)

    def learn(
        self, contract: Contract, round: int, labels: Rows | None, temperature: float, noise: NoiseSource
    ) -> None:
        """One round of private training, beside the soft labels of the proxy set."""
        distillation = self._distillation(labels, temperature, f"{contract.run} {round}")
        self.velocity = learn_round(
            self.model.network, self.data, contract, self.optimiser, noise, distillation, self.velocity
        )
        self.labels = labels

    def learn_public(self, labels: Rows | None, temperature: float, salt: str) -> None:
        """Soft labels alone: touches no private data and costs nothing."""
        distillation = self._distillation(labels, temperature, salt)
        training = self._config.training
        if distillation is not None and training.distil_steps:
            fit(
                self.model.network,
                lambda network: distillation.batch(network, 256),
                steps=training.distil_steps,
                learning_rate=training.distil_learning_rate,
                weight_decay=training.distil_weight_decay,
                seed=derive(self._seed, salt),
            )
        self.labels = labels

    def _distillation(self, labels: Rows | None, temperature: float, salt: str) -> Distillation | None:
        objective = Objective(self._config.training.terms)
        if labels is None or not objective:
            return None
        target = SoftLabels(torch.from_numpy(labels.astype(np.float32)), temperature)
        seed = derive(self._seed, "distil", salt)
        return Distillation(self._view.inputs(self.model.network.takes), target, objective, seed)

    def answer(self) -> NDArray[np.float32]:
        """Probabilities [examples, classes] on the whole proxy set: private until a mechanism has released them."""
        inputs = self._view.inputs(self.model.network.takes)
        return soften(logits(self.model.network, inputs), 1.0).numpy()

    def save(self) -> bytes:
        """Weights, momentum and soft labels, to continue from."""
        content = {f"weights.{name}": array for name, array in self.model.arrays().items()}
        content |= {f"velocity.{name}": buffer.numpy() for name, buffer in self.velocity.items()}
        if self.labels is not None:
            content["labels"] = self.labels
        return pack(content, {"client": self._config.name})

    def restore(self, path: Path) -> None:
        """Continue from a file that holds what ``save`` gave. Raises DataError."""
        self._continue(read_packed(path)[0])

    def reset(self, saved: bytes) -> None:
        """Go back to what ``save`` gave."""
        self._continue(unpack(saved)[0])

    def _continue(self, content: Arrays) -> None:
        self.labels = content.pop("labels", None)
        self.velocity = {name: torch.from_numpy(array) for name, array in below("velocity.", content).items()}
        self.model.load(below("weights.", content))
