"""A client's own model and data: learns a round, answers, and continues from a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedkd.config import ClientConfig, Student
from fedkd.data import encoding, sources
from fedkd.data.partition import fingerprints
from fedkd.data.sources import Examples
from fedkd.distill.losses import Objective, Targets, soften
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.outputs import targets_of
from fedkd.distill.trainer import (
    ALONE,
    Distillation,
    Labelled,
    Lesson,
    Optimiser,
    Round,
    Trainer,
    Velocity,
    logits,
    optimiser_of,
)
from fedkd.privacy.contract import Contract
from fedkd.privacy.noise import NoiseSource
from fedkd.rng import derive
from fedkd.state import read_packed
from fedkd.tensors import Arrays, below, digest, pack, unpack
from fedkd.wire import Rows


@dataclass
class Lineage:
    """One student: its weights, the momentum of its training, and the private examples that it learns from."""

    model: Model
    data: Labelled
    velocity: Velocity = field(default_factory=dict)


class Learner:
    """Private data and students of one client. Nothing in here is ever sent; ``answer`` is what may become a release.

    There is one student, or one for each of ``shards`` parts of the data, fixed by a hash of the record.
    """

    def __init__(
        self,
        config: ClientConfig,
        view: ProxyView,
        base: Path,
        console: Callable[[str], None],
        shards: int = 1,
        trainer: Trainer = ALONE,
    ) -> None:
        """Raises DataError for data that does not fit the proxy set."""
        self._config, self._view, self._base, self._trainer = config, view, base / config.code, trainer
        self._seed, self._console = derive(config.seed, "client", config.name), console
        self.labels: Rows | None = None
        self._parts = self._own(self._private_examples(base), shards)
        self._lineages = [self._lineage(index) for index in range(shards)]

    def hold(self, examples: Examples) -> None:
        """Learn from these private examples, and from no others, until the next call."""
        self._parts = self._own(examples, len(self._lineages))
        for one, part in zip(self._lineages, self._parts, strict=True):
            one.data = _labelled(one.model, part)

    def _own(self, examples: Examples, shards: int) -> list[Examples]:
        """What each student learns of private examples; the snapshot is theirs from now on."""
        public = np.isin(fingerprints(examples.x), fingerprints(self._view.proxy.examples))
        if public.any():
            # record by record, and seen only here: to refuse would tell the server who is in the data
            self._console(f"{self._where}: {int(public.sum())} records are also in the proxy set, and are left out")
        own = examples.take(np.flatnonzero(~public))
        self.snapshot = digest(pack({"x": own.x, "y": own.y}, {}))
        return _shards(own, shards)

    def _private_examples(self, base: Path) -> Examples:
        """All that there is; nothing yet of a client that goes on learning, which holds one block at a time."""
        proxy, where = self._view.proxy, self._where
        if self._config.data is None:
            return Examples(np.zeros((0, *proxy.shape), np.float32), np.zeros(0, np.int64), proxy.classes)
        data = encoding.agreed(self._config.data, proxy.provenance.get("encoding", {}), where)
        examples, _ = sources.load(data, base)
        sources.check(examples, where, shape=proxy.shape, classes=proxy.classes)
        return examples

    @property
    def _where(self) -> str:
        source = "live" if self._config.data is None else self._config.data.source
        return f"client {self._config.name}, source {source}"

    def _lineage(self, index: int, like: Lineage | None = None) -> Lineage:
        """A student as it begins, on the inputs of ``like`` where it takes the same."""
        model, part = self._fresh(index), self._parts[index]
        if like is not None and like.model.network.takes == model.network.takes:
            return Lineage(model, like.data)
        return Lineage(model, _labelled(model, part))

    def _fresh(self, index: int) -> Model:
        seed = self._seed if index == 0 else derive(self._seed, "shard", index)
        return Model.fresh(self._config.student, self._view, seed, self._base)

    @property
    def model(self) -> Model:
        """The student that is used on the device: the first one."""
        return self._lineages[0].model

    @property
    def data(self) -> Labelled:
        """Its private examples."""
        return self._lineages[0].data

    @property
    def velocity(self) -> Velocity:
        """Its momentum."""
        return self._lineages[0].velocity

    def alone(self, student: Student | None = None) -> Learner:
        """Another learner on the same data, with the same initial weights or another student: for a comparison, never
        for a release."""
        other = copy.copy(self)
        if student is not None:
            other._config = self._config.model_copy(update={"student": student})
        other._lineages = [other._lineage(index, like) for index, like in enumerate(self._lineages)]
        other.labels = None
        return other

    @property
    def records(self) -> int:
        """How many private examples there are, in all parts."""
        return sum(len(part.y) for part in self._parts)

    @property
    def everything(self) -> Labelled:
        """The private examples of all parts."""
        x, y = zip(*((one.data.x, one.data.y) for one in self._lineages), strict=True)
        return self.data if len(x) == 1 else Labelled(torch.cat(x), torch.cat(y))

    @property
    def optimiser(self) -> Optimiser:
        """The architecture's own settings over the client's training block."""
        return optimiser_of(self._config.student, self._config.training)

    def learn(
        self, contract: Contract, round: int, labels: Rows | None, temperature: float, noise: NoiseSource
    ) -> None:
        """One round of private training, beside the soft labels of the proxy set."""
        for one in self._lineages:
            distillation = self._distillation(one, labels, temperature, f"{contract.run} {round}")
            one.velocity = self._trainer.learn(
                Round(one.model.network, one.data, contract, self.optimiser, noise, distillation, one.velocity)
            )
        self.labels = labels

    def learn_public(self, labels: Rows | None, temperature: float, salt: str) -> None:
        """Soft labels alone: touches no private data and costs nothing."""
        training = self._config.training
        for one in self._lineages:
            distillation = self._distillation(one, labels, temperature, salt)
            if distillation is not None and training.distil_steps:
                self._trainer.distil(
                    Lesson(
                        one.model.network,
                        distillation,
                        steps=training.distil_steps,
                        learning_rate=training.distil_learning_rate,
                        weight_decay=training.distil_weight_decay,
                        seed=derive(self._seed, salt),
                    )
                )
        self.labels = labels

    def _distillation(self, one: Lineage, labels: Rows | None, temperature: float, salt: str) -> Distillation | None:
        training = self._config.training
        objective = Objective(training.terms)
        if labels is None or not objective:
            return None
        x = self._view.inputs(one.model.network.takes)
        targets = Targets(torch.from_numpy(labels.astype(np.float32)), temperature)
        if "earlier" in objective.needs:  # its own, never that of another part of the data
            targets = replace(targets, earlier=targets_of(one.model.network, x, temperature, set()).rows)
        return Distillation(x, targets, objective, derive(self._seed, "distil", salt), training.perturbation)

    def answer(self, asked: NDArray[np.uint32] | None = None, augment: str = "none") -> NDArray[np.float32]:
        """Probabilities [students, queries, classes] on the proxy examples ``asked`` (none: all, with those that
        ``augment`` makes of them): private until a mechanism has released them."""
        answers = []
        for one in self._lineages:
            inputs = self._view.inputs(one.model.network.takes, augment)
            some = inputs if asked is None or not len(asked) else inputs[torch.from_numpy(asked.astype(np.int64))]
            answers.append(soften(logits(one.model.network, some), 1.0).numpy())
        return np.stack(answers)

    def save(self) -> bytes:
        """Weights, momentum and soft labels, to continue from."""
        content: Arrays = {}
        for index, one in enumerate(self._lineages):
            content |= {f"{_prefix(index)}weights.{name}": array for name, array in one.model.arrays().items()}
            content |= {f"{_prefix(index)}velocity.{name}": buffer.numpy() for name, buffer in one.velocity.items()}
        if self.labels is not None:
            content["labels"] = self.labels
        return pack(content, {"client": self._config.name})

    def restore(self, path: Path) -> bool:
        """Continue from a file that holds what ``save`` gave. False, and nothing done, if it is of another number of
        students: each of them has learned from records that are another's now. Raises DataError."""
        content = read_packed(path)[0]
        students = 1 + len({name.split(".")[0] for name in content if name.split(".")[0].isdecimal()})
        if students != len(self._lineages):
            return False
        self._continue(content)
        return True

    def reset(self, saved: bytes) -> None:
        """Go back to what ``save`` gave."""
        self._continue(unpack(saved)[0])

    def _continue(self, content: Arrays) -> None:
        self.labels = content.pop("labels", None)
        for index, one in enumerate(self._lineages):
            velocity = below(f"{_prefix(index)}velocity.", content)
            one.velocity = {name: torch.from_numpy(array) for name, array in velocity.items()}
            one.model.load(below(f"{_prefix(index)}weights.", content))


def _prefix(index: int) -> str:
    return f"{index}." if index else ""


def _labelled(model: Model, part: Examples) -> Labelled:
    return Labelled(model.inputs(part.x), torch.from_numpy(part.y))


def _shards(examples: Examples, count: int) -> list[Examples]:
    """Parts fixed by a hash of each record: one more or less changes no other's part."""
    if count == 1:
        return [examples]
    marks = np.array([int(mark[:8], 16) % count for mark in fingerprints(examples.x)], np.int64)
    return [examples.take(np.flatnonzero(marks == part)) for part in range(count)]
