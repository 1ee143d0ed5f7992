"""The federated run as a state machine: what to ask next, and what to make of the answers. No I/O, no Flower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedkd.aggregate.mean import AGGREGATORS, Accumulator
from fedkd.config import Federation
from fedkd.errors import WireError
from fedkd.tensors import Arrays, below
from fedkd.wire import Agreement, Answers, Offer, Plan, Rows, changed, check_rows, labels_digest, quantise


class Distiller(Protocol):
    """The teacher, as the coordinator sees it."""

    @property
    def learns_from_labels(self) -> bool: ...

    def distil(self, consensus: NDArray[np.float32] | None, round: int) -> None: ...

    def soft_labels(self, temperature: float) -> NDArray[Any]: ...

    def arrays(self) -> Arrays: ...

    def load(self, arrays: Arrays) -> None: ...


@dataclass(frozen=True)
class Terms:
    """What stays the same for a whole run."""

    run: str
    proxy: str
    examples: int
    classes: int


@dataclass
class RunState:
    """What a checkpoint holds: everything that the next round depends on, beside the teacher's weights.

    ``labels`` are the soft labels by digest, as carried; ``holds`` says which of them each client has.
    """

    round: int = 0
    finished: bool = False
    current: str = ""
    labels: dict[str, Rows] = field(default_factory=dict)
    holds: dict[str, str] = field(default_factory=dict)


class Coordinator:
    """Plans rounds and folds their answers; the same answers in any order give the same bytes."""

    def __init__(self, config: Federation, terms: Terms, teacher: Distiller, state: RunState | None = None) -> None:
        self._config, self.terms, self._teacher = config, terms, teacher
        self._aggregator = AGGREGATORS[config.aggregate.kind]()
        self.state = state or RunState()
        if state is None and teacher.learns_from_labels:
            teacher.distil(None, 0)
            self._publish()

    def offer(self) -> Offer:
        """The whole run, as clients are asked to agree to it."""
        t = self.terms
        return Offer(t.run, t.proxy, t.examples, t.classes, self._config.rounds, self._config.codec)

    def check_agreement(self, agreement: Agreement) -> None:
        """Raises WireError unless it is for this run."""
        if agreement.run != self.terms.run:
            raise WireError("an agreement to another run")

    def plan(self, client: str, *, answer: bool = True, whole: bool = False) -> Plan:
        """The next round as this client needs to hear it: only soft labels that it does not hold (or all)."""
        state = self.state
        new = state.labels.get(state.current)
        if new is None:
            ids, rows = np.zeros(0, np.uint32), quantise(np.zeros((0, self.terms.classes)), self._config.codec)
        else:
            ids = changed(None if whole else state.labels.get(state.holds.get(client, "")), new)
            rows = new[ids]
        return Plan(
            run=self.terms.run,
            proxy=self.terms.proxy,
            round=state.round + 1,
            answer=answer,
            temperature=float(self._config.temperature),
            labels=state.current,
            ids=ids,
            rows=rows,
        )

    def start(self) -> Accumulator:
        """Nothing folded yet."""
        return self._aggregator.start(self.terms.examples, self.terms.classes)

    def check_answers(self, answers: Answers, client: str, plan: Plan) -> None:
        """Raises WireError unless these are this client's answers to this plan, and probabilities."""
        expected = (plan.run, client, plan.round, plan.identity)
        if (answers.run, answers.client, answers.round, answers.plan) != expected:
            raise WireError("answers to another plan, or of another client")
        check_rows(answers.rows.rows, self.terms.examples, self.terms.classes)

    def fold(self, acc: Accumulator, answers: Answers) -> Accumulator:
        """Add one client's answers, which have been checked."""
        return self._aggregator.fold(acc, answers.rows.rows)

    def holds(self, client: str) -> None:
        """Note that a client has taken in the current soft labels."""
        self.state.holds[client] = self.state.current

    def finish(self, acc: Accumulator) -> None:
        """Distil the consensus into the teacher and move on to the next round."""
        self.state.round += 1
        self._teacher.distil(self._aggregator.finish(acc), self.state.round)
        self._publish()

    def _publish(self) -> None:
        rows = quantise(self._teacher.soft_labels(self._config.temperature), self._config.codec)
        state = self.state
        state.current = labels_digest(rows)
        held = {*state.holds.values(), state.current}
        state.labels = {mark: old for mark, old in {**state.labels, state.current: rows}.items() if mark in held}

    def checkpoint(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and a JSON-able description from which ``restore`` continues."""
        state = self.state
        arrays = {f"teacher.{name}": array for name, array in self._teacher.arrays().items()}
        arrays |= {f"labels.{mark}": rows for mark, rows in state.labels.items()}
        plain = {"round": state.round, "finished": state.finished, "current": state.current, "holds": state.holds}
        return arrays, {**plain, "run": self.terms.run}

    @classmethod
    def restore(
        cls, config: Federation, terms: Terms, teacher: Distiller, arrays: Arrays, meta: Mapping[str, Any]
    ) -> Coordinator:
        """Continue from a checkpoint."""
        teacher.load(below("teacher.", arrays))
        labels = below("labels.", arrays)
        state = RunState(meta["round"], meta["finished"], meta["current"], labels, dict(meta["holds"]))
        return cls(config, terms, teacher, state)
