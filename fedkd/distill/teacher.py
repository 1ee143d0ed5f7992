"""The server's shared model, distilled from the consensus on the proxy set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkd.config import EarlierTerm
from fedkd.config import Teacher as TeacherConfig
from fedkd.consensus import Consensus
from fedkd.distill.losses import Objective, Targets, cross_entropy, soften
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.outputs import targets_of
from fedkd.distill.trainer import Distillation, Labelled, fit, logits
from fedkd.rng import derive
from fedkd.tensors import Arrays


class Teacher:
    """Holds the model and the proxy set as the model sees it."""

    def __init__(self, config: TeacherConfig, view: ProxyView, seed: int, base: Path, augment: str = "none") -> None:
        """Raises ConfigError for an ``augment`` that does not fit the proxy set."""
        self._config, self._seed = config, seed
        self._view, self._base = view, base
        self.model = Model.fresh(config, view, derive(seed, "teacher"), base)
        self._x = view.inputs(self.model.network.takes, augment)
        self._labels: Tensor | None = None if view.proxy.labels is None else torch.from_numpy(view.proxy.labels)
        self._trained = False

    def distil(self, consensus: Consensus | None, round: int) -> None:
        """Fit a fresh model to what the consensus knows (none yet: to the labels of a labelled proxy set).

        A fresh one, because an old one would keep what it learned from the noisier answers of earlier rounds. Terms
        that compare with the teacher of the round before begin where there is one.
        """
        seed = derive(self._seed, "distil", round)
        before = self.model.network if self._trained else None
        self.model, self._trained = Model.fresh(self._config, self._view, seed, self._base), False
        parts: list[Distillation | Labelled] = []
        if consensus is not None and consensus.known.any():
            parts.append(self._distillation(consensus, before, seed))
        if self._labels is not None and self._config.label_weight > 0:
            parts.append(Labelled(self._x[: len(self._labels)], self._labels))
        order = torch.Generator().manual_seed(derive(seed, "labels"))

        if not parts:
            return  # no query has been answered yet: the fresh model knows nothing

        def loss(network: nn.Module) -> Tensor:
            return torch.stack([self._part(part, network, order) for part in parts]).sum()

        fit(
            self.model.network,
            loss,
            steps=self._config.steps,
            learning_rate=self._config.learning_rate,
            weight_decay=self._config.weight_decay,
            seed=seed,
        )
        self._trained = True

    def _distillation(self, consensus: Consensus, before: nn.Module | None, seed: int) -> Distillation:
        alone = before is None
        terms = {n: weight for n, weight in self._config.terms.items() if not (alone and n in get_args(EarlierTerm))}
        objective, known = Objective(terms), torch.from_numpy(np.flatnonzero(consensus.known))
        x, rows = self._x[known], torch.from_numpy(consensus.rows)[known]
        targets = Targets(rows, 1.0)
        if before is not None and objective.needs & {"earlier", "hidden", "attention"}:
            targets = replace(targets_of(before, x, 1.0, objective.needs), rows=rows)
        return Distillation(x, targets, objective, seed, self._config.perturbation)

    def _part(self, part: Distillation | Labelled, network: nn.Module, order: torch.Generator) -> Tensor:
        size = self._config.batch_size
        if isinstance(part, Distillation):
            return part.batch(network, size)
        some = torch.randperm(len(part.y), generator=order)[:size]
        return self._config.label_weight * cross_entropy(network(part.x[some]), part.y[some]).mean()

    @property
    def learns_from_labels(self) -> bool:
        """Whether it can be fitted before any client has answered."""
        return self._labels is not None and self._config.label_weight > 0

    def soft_labels(self, temperature: float) -> NDArray[Any]:
        """Probabilities [examples, classes] on the proxy set itself."""
        return soften(logits(self.model.network, self._x[: len(self._view.proxy)]), temperature).numpy()

    def entropies(self) -> NDArray[Any]:
        """How unsure the model is of every example that may be asked, in nats."""
        said = soften(logits(self.model.network, self._x), 1.0)
        entropies: NDArray[Any] = torch.special.entr(said).sum(dim=1).numpy()
        return entropies

    def arrays(self) -> Arrays:
        """The weights, and whether they have learned anything."""
        return self.model.arrays() | {"trained": np.array([self._trained], np.uint8)}

    def load(self, arrays: Arrays) -> None:
        """Continue from these weights."""
        self.model.load({name: array for name, array in arrays.items() if name != "trained"})
        self._trained = bool(arrays["trained"][0])
