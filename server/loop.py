"""The loop over rounds: ask, wait no longer than allowed, fold, distil, checkpoint, tell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedkd import wire
from fedkd.config import Federation, ServerConfig, load
from fedkd.coordinator import CENTRAL, Coordinator, Terms
from fedkd.data import encoding, sources
from fedkd.data.proxy import ProxySet
from fedkd.data.sources import Examples
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.teacher import Teacher
from fedkd.distill.trainer import Labelled, accuracy
from fedkd.errors import ClientFailure, FedkdError, WireError
from fedkd.flower import Failure, exchange, node_ids
from fedkd.wire import Agreement, Answers, Code, Hello, Learned, Plan, Refusal
from server import nodes
from server.anchor import anchor_of
from server.run import Heads, Row, RunDirectory
from server.tally import Quarantine, Tally

Tell = Callable[[str], None]
_LONGEST_PAUSE = 15.0


@dataclass(frozen=True)
class Setting:
    """What one run of the loop is given. Timeouts in seconds; None waits for a grid in which nothing can vanish.

    A round below quorum asks again: ``attempts`` times in all, and for ``patience`` seconds while there are clients
    that have not been heard of.
    """

    config: Federation
    clients: int
    round_timeout: float | None = None
    join_timeout: float = 600.0
    attempts: int = 3
    patience: float = 0.0
    on_row: Callable[[Row], None] = lambda row: None
    more: Callable[[int], Mapping[str, Any]] = lambda round: {}
    tell: Tell = print
    stop: Callable[[], bool] = lambda: False
    name: str = "server"  # by which clients know this server, in all its runs
    heads: Callable[[], Mapping[str, str]] = dict  # of the clients' ledgers, as earlier runs have seen them
    keep_heads: Callable[[Mapping[str, str]], None] = lambda heads: None
    code: Path = field(default_factory=Path.cwd)  # where a user's own teacher is looked for
    anchor: NDArray[Any] | None = None  # soft labels [proxies, classes] of an earlier run, frozen for this one
    registered: Mapping[int, str] = field(default_factory=dict)  # node -> the client whose key the relay has shown


class Loop:
    """One federated run over a Grid, from its checkpoint to its end."""

    def __init__(self, grid: Grid, setting: Setting, view: ProxyView, run: RunDirectory, test: Examples | None) -> None:
        self._grid, self._setting, self._run = grid, setting, run
        proxy, config = view.proxy, setting.config
        features = view.inputs("features", config.augment.spec).numpy()
        terms = Terms(run.run_id, proxy.hash, len(proxy), proxy.classes, setting.name, setting.clients, features)
        self._teacher = Teacher(config.teacher, view, config.seed, setting.code, config.augment.spec)
        self._test = None if test is None else Labelled(self.teacher.inputs(test.x), torch.from_numpy(test.y))
        self._rows: list[dict[str, Any]] = []
        self._traffic = {"up": 0, "down": 0}
        self._nodes: dict[int, str] = {}
        self._agreed: dict[int, bool] = {}
        self._quarantine = Quarantine()
        saved = run.load(again=config.aggregation.kind not in CENTRAL)
        if saved is None:
            self._coordinator = Coordinator(config, terms, self._teacher, anchor=setting.anchor)
        else:
            arrays, meta = saved
            self._coordinator = Coordinator.restore(config, terms, self._teacher, arrays, meta, setting.anchor)
            self._rows, self._traffic = list(meta["rows"]), dict(meta["traffic"])
            self._quarantine = Quarantine(meta["strikes"])
        for client, head in setting.heads().items():
            self._coordinator.take_head(client, head)

    @property
    def teacher(self) -> Model:
        """The model as it is now."""
        return self._teacher.model

    @property
    def traffic(self) -> Mapping[str, int]:
        """Payload bytes of the whole run, all clients together."""
        return self._traffic

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Metrics of the rounds so far."""
        return self._rows

    def run(self) -> bool:
        """Play the rounds that are left; False when asked to stop before the end. Raises ClientFailure."""
        state, config = self._coordinator.state, self._setting.config
        while state.round < config.rounds:
            if self._setting.stop():
                return False
            self._round()
        if not state.finished:
            self._farewell()
        return True

    # -- one round ---------------------------------------------------------------------------------------------------

    def _round(self) -> None:
        began, attempt = time.monotonic(), 0
        acc, tally, roster = None, Tally(), frozenset[str]()
        while True:
            self._join(tally)
            if not tally.answered:
                roster = self._coordinator.roster
                acc = self._coordinator.start(roster)
            # who has agreed since the round's first answer is asked in the next one: the roster is fixed
            waiting = {n: c for n, c in self._nodes.items() if c in roster - tally.answered or not self._agreed[n]}
            for client, answers in sorted(self._ask(waiting, tally).items()):
                acc = self._coordinator.fold(acc, answers)
                tally.answered.add(client)
            self._setting.keep_heads(self._coordinator.state.heads)  # at once: a round that fails has been charged too
            if len(tally.answered) >= self._quorum:
                break
            attempt += 1
            self._setting.tell(self._shortage(tally, attempt))
            if not self._goes_on(tally, attempt, time.monotonic() - began):
                raise self._too_few(tally)
            if self._setting.patience:
                time.sleep(min(2.0 ** (attempt - 1), _LONGEST_PAUSE))
        for client in tally.answered:
            self._coordinator.holds(client)
        asked = time.monotonic()
        self._coordinator.finish(acc, tally.answered)
        over = time.monotonic()
        self._record(tally, over - began, over - asked)

    def _goes_on(self, tally: Tally, attempt: int, seconds: float) -> bool:
        """Whether to ask again those who have not answered."""
        if tally.reachable(self._setting.clients) < self._quorum:
            return False  # so many have said no, and would say so again
        if attempt < self._setting.attempts:
            return True
        return tally.silent(self._setting.clients) > 0 and seconds < self._setting.patience

    @property
    def _quorum(self) -> int:
        return max(1, math.ceil(self._setting.config.quorum * self._setting.clients))

    def _ask(self, nodes: Mapping[int, str], tally: Tally) -> dict[str, Answers]:
        """Answers by client. A client that does not hold what the changes build on is sent the whole at once."""
        answers: dict[str, Answers] = {}
        stale = self._ask_once(nodes, tally, answers, whole=False)
        if stale:
            self._ask_once(stale, tally, answers, whole=True)
        return answers

    def _ask_once(
        self, nodes: Mapping[int, str], tally: Tally, answers: dict[str, Answers], *, whole: bool
    ) -> dict[int, str]:
        plans = {
            node: self._coordinator.plan(client, answer=self._agreed[node], whole=whole)
            for node, client in nodes.items()
        }
        replies = self._exchange("answer", {node: wire.encode(plan) for node, plan in plans.items()}, tally)
        stale = {}
        for node, reply in replies.items():
            client = nodes[node]
            message = self._read(reply, client, plans[node], tally)
            if isinstance(message, Answers):
                answers[client] = message
            elif isinstance(message, Learned):
                self._coordinator.holds(client)
            elif isinstance(message, Refusal) and message.code is Code.STALE and not whole:
                stale[node] = client
            elif isinstance(message, Refusal):
                self._note(message, client, tally)
        return stale

    def _read(
        self, reply: bytes | Failure, client: str, plan: Plan, tally: Tally
    ) -> Answers | Learned | Refusal | None:
        if isinstance(reply, Failure):
            tally.failed[client] = reply.reason
            return None
        try:
            message = wire.decode(reply, Answers, Learned, Refusal)
            if isinstance(message, Answers):
                self._coordinator.check_answers(message, client, plan)
            return message
        except WireError as error:
            self._strike(client, f"sent something else than an answer: {error.what}", tally)
            return None

    def _strike(self, client: str, reason: str, tally: Tally) -> None:
        tally.failed[client] = reason
        tally.broken.add(client)
        if self._quarantine.strike(client):
            self._setting.tell(f"{client} is left out of this run from now on, after messages that are none: {reason}")
            self._nodes = {node: name for node, name in self._nodes.items() if name != client}

    def _note(self, refusal: Refusal, client: str, tally: Tally) -> None:
        if refusal.code is Code.FAILED:
            tally.failed[client] = "failed (its own console says why)"
            tally.broken.add(client)
        else:
            tally.refused[client] = refusal.code.value

    # -- who takes part ----------------------------------------------------------------------------------------------

    def _join(self, tally: Tally) -> None:
        """Meet the nodes that are new, and offer them the run's contract."""
        first = not self._nodes
        patience = self._setting.join_timeout if first else 0.0
        present = node_ids(self._grid, self._setting.clients if first else 1, patience)
        self._nodes = {node: client for node, client in self._nodes.items() if node in present}
        new = [node for node in present if node not in self._nodes]
        hello = wire.encode(Hello("server"))
        for node, reply in self._exchange("describe", dict.fromkeys(new, hello), tally).items():
            self._meet(node, reply, tally)
        asked = {node: client for node, client in self._nodes.items() if not self._agreed.get(node)}
        offers = {node: wire.encode(self._coordinator.offer(client)) for node, client in asked.items()}
        for node, reply in self._exchange("agree", offers, tally).items():
            self._agreed[node] = self._agrees(asked[node], reply, tally)

    def _meet(self, node: int, reply: bytes | Failure, tally: Tally) -> None:
        if isinstance(reply, Failure):
            tally.failed[f"node {node}"] = reply.reason
            return
        try:
            client = wire.decode(reply, Hello).client
        except WireError as error:
            tally.failed[f"node {node}"] = error.what
            return
        if client in self._nodes.values():
            tally.failed[f"node {node}"] = f"says it is {client}, who is already here"
            return
        owner = self._setting.registered.get(node, client)
        if client != owner:
            tally.failed[f"node {node}"] = f"says it is {client}, with the node key of {owner}"
            return
        if client in self._quarantine:
            tally.refused[client] = "left out of this run, after messages that are none"
            return
        self._nodes[node] = client

    def _agrees(self, client: str, reply: bytes | Failure, tally: Tally) -> bool:
        """A client that refuses the contract may still listen: it gets soft labels and is asked for no answer."""
        if isinstance(reply, Failure):
            tally.failed[client] = reply.reason
            return False
        try:
            message = wire.decode(reply, Agreement, Refusal)
            if isinstance(message, Agreement):
                self._coordinator.agreed(message, client)
                return True
            self._note(message, client, tally)
        except WireError as error:
            self._strike(client, error.what, tally)
        return False

    # -- the end, and what is written --------------------------------------------------------------------------------

    def _farewell(self) -> None:
        """The last teacher's soft labels, for students to learn from once more; nobody is asked to answer."""
        tally = Tally()
        self._join(tally)
        plans = {n: self._coordinator.plan(c, answer=False) for n, c in self._nodes.items()}
        for whole in (False, True):
            replies = self._exchange("answer", {n: wire.encode(plan) for n, plan in plans.items()}, tally)
            again = {}
            for node, reply in replies.items():
                message = self._read(reply, self._nodes[node], plans[node], tally)
                if isinstance(message, Refusal) and message.code is Code.STALE and not whole:
                    again[node] = self._coordinator.plan(self._nodes[node], answer=False, whole=True)
            plans = again
            if not plans:
                break
        for client, reason in tally.failed.items():
            self._setting.tell(f"after the last round: {client}: {reason}")
        self._coordinator.state.finished = True
        self._count(tally)
        self._checkpoint()

    def _record(self, tally: Tally, seconds: float, distilling: float) -> None:
        unanswered = tally.unanswered()
        for client, reason in unanswered.items():
            self._setting.tell(f"round {self._coordinator.state.round}: {client}: {reason}")
        failed = set(tally.failed) & set(unanswered)
        self._count(tally)
        row = Row(
            round=self._coordinator.state.round,
            teacher_accuracy=None if self._test is None else accuracy(self.teacher.network, self._test),
            answered=len(tally.answered),
            refused=len(unanswered) - len(failed),
            failed=len(failed),
            bytes_up=tally.up,
            bytes_down=tally.down,
            seconds=round(seconds, 3),
            distilling=round(distilling, 3),
            more={},
        )
        row = replace(row, more=self._setting.more(row.round))
        self._rows.append(row.record())
        self._checkpoint()
        self._setting.on_row(row)

    def _count(self, tally: Tally) -> None:
        self._traffic = {"up": self._traffic["up"] + tally.up, "down": self._traffic["down"] + tally.down}

    def _checkpoint(self) -> None:
        arrays, meta = self._coordinator.checkpoint()
        self._run.save(arrays, {**meta, **self._own_record()})
        self._setting.keep_heads(self._coordinator.state.heads)
        self.teacher.save(self._run.teacher)

    def _own_record(self) -> dict[str, Any]:
        return {"rows": self._rows, "traffic": self._traffic, "strikes": self._quarantine.record()}

    def _exchange(self, action: str, payloads: Mapping[int, bytes], tally: Tally) -> dict[int, bytes | Failure]:
        if not payloads:
            return {}
        replies = exchange(self._grid, action, payloads, self._setting.round_timeout)
        tally.down += sum(len(payload) for payload in payloads.values())
        tally.up += sum(len(reply) for reply in replies.values() if isinstance(reply, bytes))
        return replies

    def _shortage(self, tally: Tally, attempt: int) -> str:
        number, silent = self._coordinator.state.round + 1, tally.silent(self._setting.clients)
        nowhere = f"{silent} clients have not been heard of. " if silent else ""
        return (
            f"round {number}, attempt {attempt}: {len(tally.answered)} of {self._quorum} needed answers. "
            f"{nowhere}{tally.reasons()}"
        )

    def _too_few(self, tally: Tally) -> ClientFailure:
        return ClientFailure(
            f"only {len(tally.answered)} clients answered, {self._quorum} are needed: "
            f"{tally.reasons() or 'nobody is there'}",
            where=f"round {self._coordinator.state.round + 1}",
            fix="mend the clients and resume the run, or lower 'quorum'",
        )


def test_examples(config: ServerConfig, base: Path, proxy: ProxySet) -> Examples | None:
    """The public test examples that the configuration names. Raises DataError if they do not fit the proxy set."""
    if config.test is None:
        return None
    where = f"key 'test', source {config.test.source}"
    train, test = sources.load(encoding.agreed(config.test, proxy.provenance.get("encoding", {}), where), base)
    found = train if test is None else test
    sources.check(found, where, shape=proxy.shape, classes=proxy.classes)
    return found


def serve(grid: Grid, config_path: str) -> None:
    """The ServerApp's main: one run, from its checkpoint if there is one. Raises FedkdError."""
    torch.set_num_threads(1)  # the same bytes on every machine, and as in a simulation
    path = Path(config_path)
    config = load(ServerConfig, path)
    base = path.resolve().parent
    view = ProxyView.load(base / config.proxy, base / config.code)
    run = RunDirectory(base / config.out)
    heads = Heads(base / config.heads)
    setting = Setting(
        config,
        config.clients,
        config.round_timeout,
        config.join_timeout,
        patience=2 * config.round_timeout,
        on_row=_print_row,
        name=config.name,
        heads=heads.load,
        keep_heads=heads.save,
        code=base / config.code,
        anchor=anchor_of(config, base, view),
        registered=nodes.names(base / config.out / "flower") if config.nodes else {},
    )
    try:
        Loop(grid, setting, view, run, test_examples(config, base, view.proxy)).run()
    except FedkdError as error:
        print(error, flush=True)
        raise
    except OSError as error:
        told = FedkdError(
            f"the server cannot use a file: {error.strerror}",
            where=str(error.filename or base / config.out),
            fix="make room, or mend the permissions, and start the server again: it goes on from its checkpoint",
        )
        print(told, flush=True)
        raise told from error


def _print_row(row: Row) -> None:
    score = "" if row.teacher_accuracy is None else f", teacher {row.teacher_accuracy:.1%}"
    print(
        f"round {row.round}{score}: {row.answered} answered, {row.refused} refused, {row.failed} failed, "
        f"{row.bytes_up} bytes up, {row.bytes_down} down, {row.seconds:.1f} s",
        flush=True,
    )
