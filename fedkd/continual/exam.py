"""What a network knows of every experience: right answers by experience and class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedkd.continual import metrics
from fedkd.distill.trainer import Labelled, logits

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Marks:
    """Counts of test examples [experiences, classes]: how many were answered rightly, of how many."""

    right: Counts
    asked: Counts

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """By experience [T]; 0 where there is no test example."""
        return _share(self.right.sum(axis=1), self.asked.sum(axis=1))

    @property
    def by_class(self) -> NDArray[np.float64]:
        """By class [K], over all experiences."""
        return _share(self.right.sum(axis=0), self.asked.sum(axis=0))

    def record(self) -> dict[str, Any]:
        """JSON-able form; ``from_record`` is its inverse."""
        return {"right": self.right.tolist(), "asked": self.asked.tolist()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Marks:
        """Inverse of ``record``."""
        return cls(np.array(record["right"], np.int64), np.array(record["asked"], np.int64))


def examine(network: nn.Module, looks: Sequence[Labelled], lists: Sequence[Sequence[int]], *, told: bool) -> Marks:
    """Marks of a network in experiences with these classes. ``looks`` are the test examples as each experience shows
    them, or one for all; where a task is ``told``, only its classes are chosen from."""
    said = [logits(network, look.x) for look in looks]
    classes = said[0].shape[1]
    right, asked = (np.zeros((len(lists), classes), np.int64) for _ in range(2))
    for number, own in enumerate(lists):
        rows, y = said[number % len(said)], looks[number % len(looks)].y
        inside = torch.isin(y, torch.tensor(own))
        first = _choice(rows[inside], own if told else range(classes))
        asked[number] = torch.bincount(y[inside], minlength=classes).numpy()
        right[number] = torch.bincount(y[inside][first == y[inside]], minlength=classes).numpy()
    return Marks(right, asked)


def report(rows: Sequence[Marks], start: Marks, lists: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Every measure of a learner, from its marks after each experience [T] and at random initialisation."""
    r, by_class = (np.array([getattr(marks, name) for marks in rows]) for name in ("accuracy", "by_class"))
    first = np.array([next((n for n, own in enumerate(lists) if c in own), 0) for c in range(by_class.shape[1])])
    lost = metrics.class_forgetting(by_class, first)
    return {
        **metrics.summary(r, start.accuracy),
        "by_class": by_class.tolist(),
        "class_forgetting": [None if np.isnan(value) else float(value) for value in lost],
    }


def _choice(rows: torch.Tensor, among: Sequence[int]) -> torch.Tensor:
    some = torch.tensor(list(among))
    return some[rows[:, some].argmax(dim=1)]


def _share(right: Counts, asked: Counts) -> NDArray[np.float64]:
    return np.where(asked > 0, right / np.maximum(asked, 1), 0.0)
