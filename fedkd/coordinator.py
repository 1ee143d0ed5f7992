"""The federated run as a state machine: what to ask next, and what to make of the answers. No I/O, no Flower."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedkd.aggregate import RULES
from fedkd.aggregate.rule import Central, Rule
from fedkd.codecs import of_soft_labels, unpack
from fedkd.config import Federation
from fedkd.consensus import Consensus
from fedkd.errors import WireError
from fedkd.privacy.noise import NoiseSource, fresh_key, simulation_key
from fedkd.rng import generator
from fedkd.tensors import Arrays, below
from fedkd.wire import COUNTS, Agreement, Answers, Offer, Plan, Rows, changed, labels_digest, pool, quantise

MAX_VOTES = 100
"""One client's votes a query, at the most."""

CENTRAL = {"sum": 1, "votes": 1, "confident_votes": 2}
"""How many noises the aggregator adds. Clients that answer for a mean may have added their own; other rules have no use
for answers with noise."""

NOISE_PER_CLIENT = 100
"""Standard deviation of a demanded noise, in votes a client, above which a client is left out."""


class Distiller(Protocol):
    """The teacher, as the coordinator sees it."""

    @property
    def learns_from_labels(self) -> bool: ...

    def distil(self, consensus: Consensus | None, round: int) -> None: ...

    def soft_labels(self, temperature: float) -> NDArray[Any]: ...

    def entropies(self) -> NDArray[Any]: ...

    def arrays(self) -> Arrays: ...

    def load(self, arrays: Arrays) -> None: ...


@dataclass(frozen=True)
class Terms:
    """What stays the same for a whole run. ``server`` is the name by which clients know the server, ``clients`` how
    many are expected; ``features`` are the public features [pool, d] of all examples that may be asked."""

    run: str
    proxy: str
    examples: int
    classes: int
    server: str
    clients: int
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Demand:
    """What one client's contract asks of the aggregator."""

    variances: tuple[int, ...]
    shards: int
    noise: str


@dataclass
class RunState:
    """What a checkpoint holds: everything that the next round depends on, beside the teacher's weights.

    ``labels`` are the soft labels by digest, as carried; ``holds`` says which of them each client has. ``consensus`` is
    what has come of the proxy examples asked so far, ``asked`` those of the next round if they have been chosen.
    ``heads`` are the clients' newest ledger heads, kept for them.
    """

    round: int = 0
    finished: bool = False
    current: str = ""
    labels: dict[str, Rows] = field(default_factory=dict)
    holds: dict[str, str] = field(default_factory=dict)
    consensus: Consensus | None = None
    asked: NDArray[np.uint32] | None = None
    heads: dict[str, str] = field(default_factory=dict)


class Coordinator:
    """Plans rounds and folds their answers; the same answers in any order give the same bytes."""

    def __init__(
        self,
        config: Federation,
        terms: Terms,
        teacher: Distiller,
        state: RunState | None = None,
        anchor: NDArray[Any] | None = None,
    ) -> None:
        """``anchor`` are soft labels [examples, classes] that clients learn from in all rounds, instead of the
        teacher's own, which they are sent after the last one."""
        self._config, self.terms, self._teacher, self._anchor = config, terms, teacher, anchor
        self._rule: Rule[Any] = RULES[config.aggregation.kind](config.aggregation)
        self._pool = pool(terms.examples, config.augment.spec)
        self._queries = min(config.aggregation.queries or self._pool, self._pool)
        self._demands: dict[str, Demand] = {}
        self.state = state or RunState()
        if state is None and anchor is not None:
            self._publish(anchor)
        elif state is None and teacher.learns_from_labels:
            teacher.distil(None, 0)
            self._publish(teacher.soft_labels(config.temperature))

    def offer(self, client: str) -> Offer:
        """The whole run, as this client is asked to agree to it."""
        t = self.terms
        return Offer(
            run=t.run,
            server=t.server,
            proxy=t.proxy,
            examples=t.examples,
            classes=t.classes,
            queries=self._queries,
            rounds=self._config.rounds,
            codec=self._config.codec,
            aggregate=self._aggregate,
            clients=t.clients,
            seen=self.state.heads.get(client, ""),
            augment=self._config.augment.spec,
        )

    @property
    def _aggregate(self) -> str:
        confident = self._config.aggregation.threshold is not None
        return "confident_votes" if confident else self._config.aggregation.kind

    def agreed(self, agreement: Agreement, client: str) -> None:
        """Take note of what a client's contract demands. Raises WireError unless it is this client's, for this run, and
        its noise is what the rule adds, and leaves something to learn from."""
        if (agreement.run, agreement.client) != (self.terms.run, client):
            raise WireError("an agreement to another run, or of another client")
        if not 1 <= agreement.shards <= MAX_VOTES:
            raise WireError(f"an agreement with {agreement.shards} votes")
        variances, needed = tuple(int(v) for v in agreement.variances), CENTRAL.get(self._aggregate, 0)
        if len(variances) != needed and self._aggregate != "mean":
            raise WireError(f"a contract that asks for {len(variances)} noises where {needed} are added")
        if max(variances, default=0) > (NOISE_PER_CLIENT * self.terms.clients) ** 2:
            raise WireError("a contract that asks for so much noise that nothing would be left of the answers")
        self._demands[client] = Demand(variances[:needed], agreement.shards, agreement.noise)
        self.take_head(client, agreement.head)

    def plan(self, client: str, *, answer: bool = True, whole: bool = False) -> Plan:
        """The next round as this client needs to hear it: only soft labels that it does not hold (or all)."""
        state = self.state
        new = state.labels.get(state.current)
        if new is None:
            ids, rows = (
                np.zeros(0, np.uint32),
                quantise(np.zeros((0, self.terms.classes)), of_soft_labels(self._config.codec)),
            )
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
            asked=self._asked() if answer else np.zeros(0, np.uint32),
            seen=state.heads.get(client, ""),
        )

    def _asked(self) -> NDArray[np.uint32]:
        """The next proxy examples, in turn in an order of the seed's, or as they have been chosen; none for all."""
        n, q = self._pool, self._queries
        if q == n:
            return np.zeros(0, np.uint32)
        if self.state.asked is not None:
            return self.state.asked
        order = generator(self._config.seed, "queries").permutation(n)
        turn = np.arange(self.state.round * q, (self.state.round + 1) * q) % n
        return np.sort(order[turn]).astype(np.uint32)

    @property
    def roster(self) -> frozenset[str]:
        """The clients that have agreed to this run."""
        return frozenset(self._demands)

    def start(self, roster: Collection[str]) -> Any:
        """Nothing folded yet, of a round with these clients."""
        return self._rule.start(self._queries, self.terms.classes, roster)

    def check_answers(self, answers: Answers, client: str, plan: Plan) -> None:
        """Raises WireError unless these are this client's answers to this plan, in the form that the rule takes."""
        expected = (plan.run, client, plan.round, plan.identity)
        if (answers.run, answers.client, answers.round, answers.plan) != expected:
            raise WireError("answers to another plan, or of another client")
        shards = self._demands[client].shards if client in self._demands else 1
        self._rule.check(self._rows(answers), self._queries, self.terms.classes, shards)

    def fold(self, acc: Any, answers: Answers) -> Any:
        """Add one client's answers, which have been checked."""
        self.take_head(answers.client, answers.head)
        return self._rule.fold(acc, answers.client, self._rows(answers))

    def _rows(self, answers: Answers) -> Rows:
        """Votes and noised integers as they are, probabilities as the codec's. Raises WireError."""
        carried = answers.rows.rows
        if carried.ndim == 2 and str(carried.dtype) in COUNTS:
            return carried
        return unpack(carried, self._config.codec, self._queries, self.terms.classes)

    def take_head(self, client: str, head: str) -> None:
        """Keep the newest; a retry brings the head of its own time, and of two that are equally new the second would
        hide that the client was set back. Only the client itself can tell a true one from a false one, and is the only
        one that a false one harms."""
        old, new = (int(one.partition(".")[0] or 0) for one in (self.state.heads.get(client, ""), head))
        if new > old:
            self.state.heads[client] = head

    def holds(self, client: str) -> None:
        """Note that a client has taken in the current soft labels."""
        self.state.holds[client] = self.state.current

    def finish(self, acc: Any, clients: Collection[str]) -> None:
        """Distil what ``clients`` have answered into the teacher and move on to the next round."""
        asked = self._asked()
        features = self.terms.features[asked] if len(asked) else self.terms.features
        consensus = self._rule.finish(acc, self._central(clients), features)
        self.state.consensus = consensus.into(self.state.consensus, asked, self._pool)
        self.state.round += 1
        self._teacher.distil(self.state.consensus, self.state.round)
        if self._anchor is None or self.state.round >= self._config.rounds:
            self._publish(self._teacher.soft_labels(self._config.temperature))
        if self._config.aggregation.choose == "entropy":
            self.state.asked = self._least_sure()

    def _least_sure(self) -> NDArray[np.uint32]:
        """What the teacher is least sure of, the first of equals. It has learned from releases alone, and what it asks
        costs what any question costs."""
        order = np.argsort(-self._teacher.entropies(), kind="stable")
        return np.sort(order[: self._queries]).astype(np.uint32)

    def _central(self, clients: Collection[str]) -> Central:
        """The noise that the aggregator owes: as much as the most demanding of these clients has contracted.

        Its key is drawn at each call and kept nowhere. A crash before the checkpoint draws anew, and then nothing that
        had the first noise on it has left the server: an older checkpoint is never gone back to where there is such
        noise (``server.run``), and a client that has been asked for a later round gives nothing of this one again.
        """
        demands = [self._demands[client] for client in sorted(clients) if client in self._demands]
        variances = tuple(max(column) for column in zip(*(demand.variances for demand in demands), strict=True))
        simulated = bool(demands) and all(demand.noise == "simulation" for demand in demands)
        run, round = self.terms.run, self.state.round + 1
        key = simulation_key(self._config.seed, "aggregator", run, round) if simulated else fresh_key()
        return Central(variances, NoiseSource(key), sum(demand.shards for demand in demands))

    def _publish(self, soft_labels: NDArray[Any]) -> None:
        rows = quantise(soft_labels, of_soft_labels(self._config.codec))
        state = self.state
        state.current = labels_digest(rows)
        held = {*state.holds.values(), state.current}
        state.labels = {mark: old for mark, old in {**state.labels, state.current: rows}.items() if mark in held}

    def checkpoint(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and a JSON-able description from which ``restore`` continues."""
        state = self.state
        arrays = {f"teacher.{name}": array for name, array in self._teacher.arrays().items()}
        arrays |= {f"labels.{mark}": rows for mark, rows in state.labels.items()}
        if state.consensus is not None:
            arrays |= {"consensus.rows": state.consensus.rows, "consensus.known": state.consensus.known}
        if state.asked is not None:
            arrays["asked"] = state.asked
        plain = {"round": state.round, "finished": state.finished, "current": state.current, "holds": state.holds}
        return arrays, {**plain, "heads": state.heads, "run": self.terms.run}

    @classmethod
    def restore(
        cls,
        config: Federation,
        terms: Terms,
        teacher: Distiller,
        arrays: Arrays,
        meta: Mapping[str, Any],
        anchor: NDArray[Any] | None = None,
    ) -> Coordinator:
        """Continue from a checkpoint."""
        teacher.load(below("teacher.", arrays))
        labels = below("labels.", arrays)
        held = below("consensus.", arrays)
        state = RunState(
            round=meta["round"],
            finished=meta["finished"],
            current=meta["current"],
            labels=labels,
            holds=dict(meta["holds"]),
            consensus=Consensus(held["rows"], held["known"]) if held else None,
            asked=arrays.get("asked"),
            heads=dict(meta["heads"]),
        )
        return cls(config, terms, teacher, state, anchor)
