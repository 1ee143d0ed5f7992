"""Clients that lie: in a simulation some may send bad answers, to see what a rule of aggregation makes of them.

Everything but the rows is as an honest client sends it, and so is their form: what is refused on arrival harms nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd import codecs, wire
from fedkd.config import Scenario
from fedkd.privacy.contract import Contract
from fedkd.rng import generator
from fedkd.wire import Answers, Learned, Refusal, Released, Rows
from simulations.split import client_names


@dataclass(frozen=True)
class Liars:
    """Who lies, and how."""

    kind: str
    clients: frozenset[str]
    seed: int

    @classmethod
    def of(cls, scenario: Scenario) -> Liars:
        """As many clients as are nearest to the scenario's share, chosen by its seed."""
        if scenario.poison is None:
            return HONEST
        names = client_names(scenario)
        count = round(scenario.poison.share * len(names))
        chosen = generator(scenario.seed, "poison").permutation(len(names))[:count]
        return cls(scenario.poison.kind, frozenset(names[i] for i in chosen), scenario.seed)

    def spoil(self, client: str, reply: bytes, contract: Callable[[str], Contract | None]) -> bytes:
        """What the client sends instead of its reply to a plan; ``contract`` finds that of a run. The same reply gives
        the same lie."""
        if client not in self.clients:
            return reply
        message = wire.decode(reply, Answers, Learned, Refusal)
        agreed = isinstance(message, Answers) and contract(message.run)
        if not isinstance(message, Answers) or not agreed:
            return reply
        random = generator(self.seed, "poison", client, message.round)
        lies = Released(_lie(self.kind, message.rows.rows, agreed, random), message.rows.event)
        return wire.encode(replace(message, rows=lies))


HONEST = Liars("", frozenset(), 0)


def label_flip(rows: Rows, random: np.random.Generator) -> Rows:
    """Every class' share goes to the next one: what a student says that was trained on labels flipped so."""
    return np.roll(rows, 1, axis=1)


def at_random(rows: Rows, random: np.random.Generator) -> Rows:
    """All on one class, drawn anew for every row."""
    return _all_on(random.integers(rows.shape[1], size=len(rows)), rows)


def colluding(rows: Rows, random: np.random.Generator) -> Rows:
    """All on the class next to the true first choice: liars agree with each other, and are as sure as can be."""
    return _all_on((rows.argmax(axis=1) + 1) % rows.shape[1], rows)


LIES: dict[str, Callable[[Rows, np.random.Generator], Rows]] = {
    "label_flip": label_flip,
    "random": at_random,
    "colluding": colluding,
}


def _lie(kind: str, carried: Rows, agreed: Contract, random: np.random.Generator) -> Rows:
    """In the form in which the truth would have travelled."""
    if carried.ndim == 2:
        return LIES[kind](carried, random)
    rows = codecs.unpack(carried, agreed.codec, agreed.queries, agreed.classes)
    return codecs.pack(LIES[kind](rows, random), agreed.codec)


def _all_on(classes: NDArray[Any], rows: Rows) -> Rows:
    """What a row adds up to, one or a number of votes, on one class."""
    lies = np.zeros_like(rows)
    lies[np.arange(len(rows)), classes] = np.rint(rows.sum(axis=1, dtype=np.float64))
    return lies
