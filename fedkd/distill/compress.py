"""One or several trained models compressed into a student on a proxy set, without private data and at no cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.config import Distil
from fedkd.data.sources import Examples
from fedkd.distill.losses import Objective, Outputs, Targets, cross_entropy
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.outputs import observe, targets_of
from fedkd.distill.students import Network, seeded
from fedkd.distill.trainer import Distillation, fit, forked_rng, logits
from fedkd.errors import ConfigError, DataError
from fedkd.rng import derive

LINES = 10  # of progress


@dataclass(frozen=True)
class Teaching:
    """A trained model, where it comes from, and how much of the lesson is its own."""

    model: Model
    name: str
    weight: float = 1.0


Lesson = Callable[[nn.Module], Tensor]  # network -> loss of a mini-batch (scalar, differentiable)


def compress(
    teachers: Sequence[Teaching], view: ProxyView, config: Distil, base: Path, tell: Callable[[str], None]
) -> Model:
    """A student that has learned from the teachers, a pure function of the arguments.

    Every teacher has every term; their weights are divided by their sum. Raises DataError for teachers of other
    examples or classes, ConfigError for terms that a network cannot have.
    """
    for teacher in teachers:
        _check(teacher, view)
    student = Model.fresh(config.student, view, config.seed, base)
    lessons, projections = _lessons(teachers, student.network, view, config)
    if config.label_weight:
        lessons.append(_labels(view, view.inputs(student.network.takes), config))
    told = _Progress(config.steps, tell)
    tell(f"learning from {len(teachers)} models in {config.steps} steps")
    fit(
        nn.ModuleList([student.network, projections]),
        lambda _: told(torch.stack([lesson(student.network) for lesson in lessons]).sum()),
        steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        seed=derive(config.seed, "compress"),
    )
    return student


def _lessons(
    teachers: Sequence[Teaching], network: Network, view: ProxyView, config: Distil
) -> tuple[list[Lesson], nn.ModuleList]:
    """A lesson from each teacher, on the same mini-batches, and the projections that are learned beside the student."""
    objective, x = Objective(config.terms), view.inputs(network.takes)
    total = sum(teacher.weight for teacher in teachers)
    lessons: list[Lesson] = []
    projections = nn.ModuleList()
    with forked_rng(config.seed):
        seen = observe(network, x[:1], objective.needs)
    for teacher in teachers if objective else ():
        inputs = teacher.model.inputs(view.proxy.examples)
        targets = targets_of(teacher.model.network, inputs, config.temperature, objective.needs)
        project = _projection(seen, targets, config.seed)
        projections.extend([] if project is None else [project])
        lesson = Distillation(x, targets, objective, config.seed, config.perturbation, project)
        lessons.append(partial(_weighted, lesson, teacher.weight / total, config.batch_size))
    return lessons, projections


def _weighted(lesson: Distillation, weight: float, size: int, network: nn.Module) -> Tensor:
    return weight * lesson.batch(network, size)


def _check(teacher: Teaching, view: ProxyView) -> None:
    shape, classes = tuple(teacher.model.features.spec["shape"]), teacher.model.classes
    if (shape, classes) != (view.proxy.shape, view.proxy.classes):
        raise DataError(
            f"the teacher knows {classes} classes of examples {list(shape)}, the proxy set has {view.proxy.classes} of "
            f"{list(view.proxy.shape)}",
            where=teacher.name,
            fix="give a proxy set of the same task",
        )


def _projection(student: Outputs, targets: Targets, seed: int) -> nn.Module | None:
    """What takes the student's activations to the teacher's, where their widths differ. Raises ConfigError for networks
    whose activations cannot be compared."""
    if targets.attention and len({maps.dim() for maps in (*student.attention, *targets.attention)}) > 1:
        raise ConfigError(
            "the attention maps of student and teacher cannot be compared: some are of sequences, some of images",
            fix="use the term hint, or two networks of one kind",
        )
    if targets.hidden is None or student.hidden is None:
        return None
    if not student.hidden.requires_grad:
        raise ConfigError("a linear student has no hidden layer to give hints to", fix="use mlp")
    mine, other = student.hidden.shape[1], targets.hidden.shape[1]
    if mine == other:
        return None
    with seeded(derive(seed, "projection", other)):
        return nn.Linear(mine, other)


def _labels(view: ProxyView, x: Tensor, config: Distil) -> Lesson:
    """Cross entropy with the labels of a labelled proxy set. Raises ConfigError for another one."""
    if view.proxy.labels is None:
        raise ConfigError(
            "the proxy set has no labels to learn from",
            where="key 'label_weight'",
            fix="build it with proxy.labelled=true, or leave label_weight out",
        )
    y, order = torch.from_numpy(view.proxy.labels), torch.Generator().manual_seed(derive(config.seed, "labels"))

    def lesson(network: nn.Module) -> Tensor:
        some = torch.randperm(len(y), generator=order)[: config.batch_size]
        return config.label_weight * cross_entropy(network(x[some]), y[some]).mean()

    return lesson


class _Progress:
    """Counts steps, and tells the loss a few times."""

    def __init__(self, steps: int, tell: Callable[[str], None]) -> None:
        self._steps, self._tell, self._step = steps, tell, 0

    def __call__(self, loss: Tensor) -> Tensor:
        self._step += 1
        if self._step % max(1, self._steps // LINES) == 0:
            self._tell(f"step {self._step} of {self._steps}: loss {float(loss.detach()):.4f}")
        return loss


# -- what has come of it ----------------------------------------------------------------------------------------------


def compare(teachers: Sequence[Teaching], student: Model, view: ProxyView, test: Examples | None) -> dict[str, Any]:
    """Accuracies on the test examples (None without), sizes, and how often the student's first choice is a teacher's. A
    JSON-able mapping."""
    mine = _choices(student, view, test)
    rows = []
    for teacher in teachers:
        other = _choices(teacher.model, view, test)
        agreement = {part: _share(mine[part] == other[part]) for part in mine}
        rows.append({"path": teacher.name, "weight": teacher.weight, "agreement": agreement, **_facts(teacher.model)})
        rows[-1]["accuracy"] = _accuracy(other, test)
    return {
        "student": {"kind": student.architecture.kind, **_facts(student), "accuracy": _accuracy(mine, test)},
        "teachers": rows,
        "proxy": view.proxy.hash,
    }


def _choices(model: Model, view: ProxyView, test: Examples | None) -> dict[str, Tensor]:
    parts = {"proxy": view.proxy.examples} | ({} if test is None else {"test": test.x})
    return {name: logits(model.network, model.inputs(x)).argmax(dim=1) for name, x in parts.items()}


def _accuracy(choices: dict[str, Tensor], test: Examples | None) -> float | None:
    return None if test is None else _share(choices["test"] == torch.from_numpy(test.y))


def _share(hits: Tensor) -> float:
    return float(hits.double().mean()) if len(hits) else 0.0


def _facts(model: Model) -> dict[str, int]:
    """``feature_bytes`` are those of the frozen features that the model's file also carries."""
    weights, features = model.arrays(), model.features.held
    return {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "weight_bytes": sum(array.nbytes for array in weights.values()),
        "feature_bytes": sum(array.nbytes for array in features.values()) if model.network.takes == "features" else 0,
    }
