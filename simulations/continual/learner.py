"""One learner through a stream, without a server and without protection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fedkd.continual import exam
from fedkd.continual.anchor import coverage
from fedkd.continual.exam import Marks
from fedkd.continual.learner import learn
from fedkd.continual.methods import METHODS, USES_PROXIES, FineTune, Now
from fedkd.distill.losses import soften
from fedkd.distill.model import Model
from fedkd.distill.trainer import logits
from fedkd.rng import derive
from fedkd.state import read_packed, write_atomic
from fedkd.tensors import below, pack
from simulations.continual.world import World

Row = dict[str, Any]


class LearnerRun:
    """A student and its method, with a checkpoint after every experience."""

    def __init__(self, world: World, checkpoint: Path) -> None:
        scenario = world.scenario
        self._world, self._checkpoint, self._seed = world, checkpoint, derive(scenario.seed, "learner")
        self.model = Model.fresh(scenario.students[0], world.view, self._seed, world.base)
        self._proxies = world.view.inputs(self.model.network.takes)
        make = METHODS[scenario.keeping.method]
        self._method: FineTune = make(scenario.keeping, self._proxies, scenario.temperature, self._seed)
        self._start = world.examine(self.model, world.lists())
        self.rows: list[Row] = []
        if self._checkpoint.exists():
            self._restore()

    def run(self, on_row: Callable[[Row], None], stop: Callable[[], bool]) -> bool:
        """Meet the experiences that are left; False when asked to stop before the end."""
        for number in range(len(self.rows), self._world.scenario.stream.experiences):
            if stop():
                return False
            self.rows.append(self._experience(number))
            self._save()
            on_row(self.rows[-1])
        return True

    def summary(self) -> dict[str, Any]:
        """Every measure, and what the method has held."""
        tune = self._world.examine(self.model, self._world.lists(), "tune")
        marks = [Marks.from_record(row["marks"]) for row in self.rows]
        return {
            "student": exam.report(marks, self._start, self._world.lists()),
            "tune_acc": float(tune.accuracy.mean()),
            "memory": {**_most([row["held"] for row in self.rows]), **self._public()},
            "coverage": [row["coverage"] for row in self.rows],
        }

    def _experience(self, number: int) -> Row:
        scenario, world = self._world.scenario, self._world
        now = Now(number, world.experience(self.model, number), world.before(number))
        held = learn(self.model.network, self._method, now, scenario.keeping, self._seed, online=scenario.stream.online)
        marks = world.examine(self.model, world.lists())
        rows = soften(logits(self.model.network, self._proxies), scenario.temperature).numpy()
        return {
            "step": number + 1,
            "classes": list(world.lists()[number]),
            "seen": {"student": float(marks.accuracy[: number + 1].mean())},
            "marks": marks.record(),
            "held": held._asdict(),
            "coverage": coverage(rows, world.before(number + 1)),
        }

    def _public(self) -> dict[str, int]:
        """The proxies, where the method needs them."""
        if self._world.scenario.keeping.method not in USES_PROXIES:
            return {"public_examples": 0, "public_bytes": 0}
        return {"public_examples": len(self._proxies), "public_bytes": self._world.view.proxy.examples.nbytes}

    def _save(self) -> None:
        arrays = {f"weights.{name}": array for name, array in self.model.arrays().items()}
        arrays |= {f"memory.{name}": value.numpy() for name, value in self._method.memory.items()}
        write_atomic(self._checkpoint, pack(arrays, {"rows": self.rows}))

    def _restore(self) -> None:
        arrays, meta = read_packed(self._checkpoint)
        self.model.load(below("weights.", arrays))
        self._method.memory = {name: torch.from_numpy(array) for name, array in below("memory.", arrays).items()}
        self.rows = list(meta["rows"])


def _most(held: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: max(one[name] for one in held) for name in held[0]}
