"""Terms of the objective: pure functions of logits and targets, one value an example, never reduced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SoftLabels:
    """Probabilities [n, k] of a teacher at a temperature."""

    rows: Tensor
    temperature: float


Term = Callable[[Tensor, SoftLabels], Tensor]  # (student logits [n, k], soft labels) -> [n]


def kl(logits: Tensor, target: SoftLabels) -> Tensor:
    """T^2 KL(teacher || student), both at temperature T (Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2).

    T^2 keeps the gradient's size when T changes. Rows of zero probability contribute nothing.
    """
    log_student = F.log_softmax(logits / target.temperature, dim=1)
    return target.temperature**2 * F.kl_div(log_student, target.rows, reduction="none").sum(dim=1)


def soft_cross_entropy(logits: Tensor, target: SoftLabels) -> Tensor:
    """T^2 times the cross entropy: KL plus the teacher's entropy, hence the same gradient."""
    log_student = F.log_softmax(logits / target.temperature, dim=1)
    return -(target.temperature**2) * (target.rows * log_student).sum(dim=1)


def hard_cross_entropy(logits: Tensor, target: SoftLabels) -> Tensor:
    """Cross entropy with the teacher's first choice."""
    return cross_entropy(logits, target.rows.argmax(dim=1))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with labels [n]."""
    return F.cross_entropy(logits, labels, reduction="none")


Name = Literal["kl", "soft_ce", "hard_ce"]
TERMS: dict[Name, Term] = {"kl": kl, "soft_ce": soft_cross_entropy, "hard_ce": hard_cross_entropy}


def soften(logits: Tensor, temperature: float) -> Tensor:
    """Soft labels: softmax at a temperature."""
    return torch.softmax(logits / temperature, dim=1)


class Objective:
    """A weighted sum of named terms."""

    def __init__(self, weights: Mapping[Name, float]) -> None:
        self._parts = [(TERMS[name], weight) for name, weight in sorted(weights.items()) if weight > 0]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __call__(self, logits: Tensor, target: SoftLabels) -> Tensor:
        """[n] values."""
        return sum((weight * term(logits, target) for term, weight in self._parts), logits.new_zeros(len(logits)))
