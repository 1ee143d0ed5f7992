"""Terms of the objective: pure functions of what a network says and what it should say, one value an example, never
reduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.config import AnyTerm, DistilTerms, StudentTerms, TeacherTerms

FLOOR = 1e-6  # probabilities below it count as it where their logarithm is wanted: answers may round to 0


@dataclass(frozen=True)
class Outputs:
    """What a network says of n examples. What no term asks for stays empty.

    ``logits`` [n, k]; ``perturbed``: logits [n, k] of the same examples with noise on them; ``hidden`` [n, d]: what its
    last linear layer is given; ``attention``: maps [n, *positions], from the first layer to the last.
    """

    logits: Tensor
    perturbed: Tensor | None = None
    hidden: Tensor | None = None
    attention: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Targets:
    """What a network should say: probabilities ``rows`` [n, k] at a temperature.

    Where another network is at hand (a teacher, or an earlier version of the student itself), also its probabilities
    ``earlier`` [n, k] at that temperature, its activations ``hidden`` [n, d] and its ``attention`` maps.
    """

    rows: Tensor
    temperature: float
    earlier: Tensor | None = None
    hidden: Tensor | None = None
    attention: tuple[Tensor, ...] = ()

    def take(self, some: Tensor) -> Targets:
        """Those of the examples at these indices."""
        return Targets(
            self.rows[some],
            self.temperature,
            None if self.earlier is None else self.earlier[some],
            None if self.hidden is None else self.hidden[some],
            tuple(one[some] for one in self.attention),
        )


Term = Callable[[Outputs, Targets], Tensor]  # -> [n]


# -- what can be learned from soft labels -----------------------------------------------------------------------------


def kl(student: Outputs, target: Targets) -> Tensor:
    """T^2 KL(teacher || student), both at temperature T (Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2).

    T^2 keeps the gradient's size when T changes. Rows of zero probability contribute nothing.
    """
    return _kl(student.logits, target.rows, target.temperature)


def soft_cross_entropy(student: Outputs, target: Targets) -> Tensor:
    """T^2 times the cross entropy: KL plus the teacher's entropy, hence the same gradient."""
    log_student = F.log_softmax(student.logits / target.temperature, dim=1)
    return -(target.temperature**2) * (target.rows * log_student).sum(dim=1)


def hard_cross_entropy(student: Outputs, target: Targets) -> Tensor:
    """Cross entropy with the teacher's first choice."""
    return cross_entropy(student.logits, target.rows.argmax(dim=1))


def mse(student: Outputs, target: Targets) -> Tensor:
    """1/(2k) ||s - v||^2 of centred logits: Ba & Caruana 2014 (arXiv:1312.6184, equation 1), Kim et al. 2021
    (arXiv:2105.08919), divided by the number of classes. It is what kl becomes as T grows.

    The teacher's logits are T log q less their mean: softmax does not know the rest. See FLOOR.
    """
    teacher = target.temperature * target.rows.clamp(min=FLOOR).log()
    return 0.5 * (_centred(student.logits) - _centred(teacher)).square().mean(dim=1)


def target_class_kd(student: Outputs, target: Targets) -> Tensor:
    """T^2 KL of the two probabilities (the target class, any other): TCKD of Zhao et al. 2022 (arXiv:2203.08679,
    section 3.1). The target class is the teacher's first choice, as proxies need no labels."""
    top, logits = target.rows.argmax(dim=1, keepdim=True), student.logits / target.temperature
    whole = logits.logsumexp(dim=1)
    log_student = torch.stack([logits.gather(1, top)[:, 0], _others(logits, top).logsumexp(dim=1)], dim=1)
    teacher = torch.stack([target.rows.gather(1, top)[:, 0], _others(target.rows, top).sum(dim=1)], dim=1)
    return target.temperature**2 * F.kl_div(log_student - whole[:, None], teacher, reduction="none").sum(dim=1)


def non_target_class_kd(student: Outputs, target: Targets) -> Tensor:
    """T^2 KL among the other classes alone, whose probabilities are made to sum to 1: NCKD of arXiv:2203.08679. A
    teacher that gives them nothing contributes nothing."""
    top = target.rows.argmax(dim=1, keepdim=True)
    rest = _others(target.rows, top)
    rest = rest / rest.sum(dim=1, keepdim=True).clamp(min=torch.finfo(rest.dtype).tiny)
    return _kl(_others(student.logits, top), rest, target.temperature)


def decoupled(student: Outputs, target: Targets) -> Tensor:
    """TCKD + 8 NCKD (arXiv:2203.08679, equation 7, with the weights of its tables on CIFAR-100)."""
    return target_class_kd(student, target) + 8 * non_target_class_kd(student, target)


def denoise(student: Outputs, target: Targets) -> Tensor:
    """kl for perturbed inputs against the soft labels of clean ones (as in Xie et al. 2020, arXiv:1911.04252: the
    student is noised, the teacher is not)."""
    assert student.perturbed is not None
    return _kl(student.perturbed, target.rows, target.temperature)


# -- what needs another network at hand -------------------------------------------------------------------------------


def earlier_self(student: Outputs, target: Targets) -> Tensor:
    """kl with an earlier version of the same network (Furlanello et al. 2018, arXiv:1805.04770, section 3)."""
    assert target.earlier is not None
    return _kl(student.logits, target.earlier, target.temperature)


def hint(student: Outputs, target: Targets) -> Tensor:
    """1/(2d) ||u - v||^2 of hidden activations [n, d]: Romero et al. 2015 (FitNets, arXiv:1412.6550, equation 3),
    divided by the width. Where widths differ the student's have gone through a learned projection."""
    mine, other = _both_hidden(student, target)
    return 0.5 * (mine - other).square().mean(dim=1)


def normalised_hint(student: Outputs, target: Targets) -> Tensor:
    """hint after each example's activations have been brought to mean 0 and variance 1: one less their correlation."""
    mine, other = _both_hidden(student, target)
    return 0.5 * (_standardised(mine) - _standardised(other)).square().mean(dim=1)


def attention(student: Outputs, target: Targets) -> Tensor:
    """1/2 sum_j ||Q_S/||Q_S|| - Q_T/||Q_T|| ||_2 over pairs of attention maps, which are sums over channels of squared
    activations: Zagoruyko & Komodakis 2017 (arXiv:1612.03928, equation 2, p = 2).

    Layers are paired from the last one backwards; of maps of two sizes the larger is averaged down.
    """
    pairs = list(zip(reversed(student.attention), reversed(target.attention), strict=False))
    assert pairs
    return 0.5 * torch.stack([_map_distance(mine, other) for mine, other in pairs]).sum(dim=0)


# -- their parts ------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with labels [n]."""
    return F.cross_entropy(logits, labels, reduction="none")


def soften(logits: Tensor, temperature: float) -> Tensor:
    """Soft labels: softmax at a temperature."""
    return torch.softmax(logits / temperature, dim=1)


def _kl(logits: Tensor, rows: Tensor, temperature: float) -> Tensor:
    log_student = F.log_softmax(logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, rows, reduction="none").sum(dim=1)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(dim=1, keepdim=True)


def _standardised(values: Tensor) -> Tensor:
    centred = _centred(values)
    return centred / centred.square().mean(dim=1, keepdim=True).add(1e-12).sqrt()


def _others(values: Tensor, top: Tensor) -> Tensor:
    """Values [n, k] without one class an example: [n, k - 1]."""
    kept = torch.ones_like(values, dtype=torch.bool).scatter(1, top, False)
    return values[kept].reshape(len(values), values.shape[1] - 1)


def _both_hidden(student: Outputs, target: Targets) -> tuple[Tensor, Tensor]:
    assert student.hidden is not None and target.hidden is not None
    return student.hidden, target.hidden


def _map_distance(mine: Tensor, other: Tensor) -> Tensor:
    size = [min(sides) for sides in zip(mine.shape[1:], other.shape[1:], strict=True)]
    unit = [F.normalize(_averaged(one, size).flatten(1), dim=1) for one in (mine, other)]
    return cast(Tensor, torch.linalg.vector_norm(unit[0] - unit[1], dim=1))


def _averaged(maps: Tensor, size: list[int]) -> Tensor:
    """Maps [n, *positions] as means over a grid of this size."""
    if list(maps.shape[1:]) == size:
        return maps
    if len(size) == 1:
        return F.adaptive_avg_pool1d(maps[:, None], size[0])[:, 0]
    return F.adaptive_avg_pool2d(maps[:, None], (size[0], size[1]))[:, 0]


# -- the objective ----------------------------------------------------------------------------------------------------


Need = Literal["perturbed", "earlier", "hidden", "attention"]
TERMS: dict[AnyTerm, Term] = {
    "kl": kl,
    "soft_ce": soft_cross_entropy,
    "hard_ce": hard_cross_entropy,
    "mse": mse,
    "tckd": target_class_kd,
    "nckd": non_target_class_kd,
    "dkd": decoupled,
    "denoise": denoise,
    "self": earlier_self,
    "hint": hint,
    "hint_norm": normalised_hint,
    "attention": attention,
}
NEEDS: dict[AnyTerm, Need] = {
    "denoise": "perturbed",
    "self": "earlier",
    "hint": "hidden",
    "hint_norm": "hidden",
    "attention": "attention",
}
"""What a term reads beside logits and soft labels."""


class Objective:
    """A weighted sum of named terms, by ``weights``. ``needs`` is what they read beside logits and soft labels."""

    def __init__(self, weights: TeacherTerms | StudentTerms | DistilTerms) -> None:
        self.weights = {name: weight for name, weight in sorted(weights.items()) if weight > 0}
        self._parts = [(TERMS[name], weight) for name, weight in self.weights.items()]
        self.needs: frozenset[Need] = frozenset(NEEDS[name] for name in self.weights if name in NEEDS)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __call__(self, student: Outputs, target: Targets) -> Tensor:
        """[n] values."""
        zero = student.logits.new_zeros(len(student.logits))
        return sum((weight * term(student, target) for term, weight in self._parts), zero)
