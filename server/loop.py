"""The loop over rounds: ask, wait no longer than allowed, fold, distil, checkpoint, tell."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.serverapp import Grid

from fedkd.coordinator import CENTRAL, Coordinator, Terms
from fedkd.data.sources import Examples
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.teacher import Teacher
from fedkd.distill.trainer import Labelled, accuracy
from fedkd.errors import ClientFailure
from fedkd.wire import Answers, Code, Learned, Refusal
from server.members import Members
from server.run import Row, RunDirectory
from server.setting import Setting
from server.tally import Quarantine, Tally

_LONGEST_PAUSE = 15.0


class Loop:
    """One federated run over a Grid, from its checkpoint to its end."""

    def __init__(self, grid: Grid, setting: Setting, view: ProxyView, run: RunDirectory, test: Examples | None) -> None:
        self._setting, self._run = setting, run
        proxy, config = view.proxy, setting.config
        features = view.inputs("features", config.augment.spec).numpy()
        terms = Terms(run.run_id, proxy.hash, len(proxy), proxy.classes, setting.name, setting.clients, features)
        self._teacher = Teacher(config.teacher, view, config.seed, setting.code, config.augment.spec)
        self._test = None if test is None else Labelled(self.teacher.inputs(test.x), torch.from_numpy(test.y))
        self._rows: list[dict[str, Any]] = []
        self._traffic = {"up": 0, "down": 0}
        strikes: Mapping[str, int] = {}
        saved = run.load(again=config.aggregation.kind not in CENTRAL)
        if saved is None:
            self._coordinator = Coordinator(config, terms, self._teacher, anchor=setting.anchor)
        else:
            arrays, meta = saved
            self._coordinator = Coordinator.restore(config, terms, self._teacher, arrays, meta, setting.anchor)
            self._rows, self._traffic = list(meta["rows"]), dict(meta["traffic"])
            strikes = meta["strikes"]
        self._members = Members(grid, setting, self._coordinator, Quarantine(strikes))
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
            self._members.join(tally)
            if not tally.answered:
                roster = self._coordinator.roster
                acc = self._coordinator.start(roster)
            # who has agreed since the round's first answer is asked in the next one: the roster is fixed
            waiting = {
                node: client
                for node, client in self._members.nodes.items()
                if client in roster - tally.answered or not self._members.agreed[node]
            }
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
            node: self._coordinator.plan(client, answer=self._members.agreed[node], whole=whole)
            for node, client in nodes.items()
        }
        stale = {}
        for node, message in self._members.ask(plans, tally).items():
            client = nodes[node]
            if isinstance(message, Answers):
                answers[client] = message
            elif isinstance(message, Learned):
                self._coordinator.holds(client)
            elif message.code is Code.STALE and not whole:
                stale[node] = client
            else:
                self._members.note(message, client, tally)
        return stale

    # -- the end, and what is written --------------------------------------------------------------------------------

    def _farewell(self) -> None:
        """The last teacher's soft labels, for students to learn from once more; nobody is asked to answer."""
        tally = Tally()
        self._members.join(tally)
        plans = {n: self._coordinator.plan(c, answer=False) for n, c in self._members.nodes.items()}
        for whole in (False, True):
            said = self._members.ask(plans, tally)
            stale = [n for n, m in said.items() if isinstance(m, Refusal) and m.code is Code.STALE and not whole]
            plans = {n: self._coordinator.plan(self._members.nodes[n], answer=False, whole=True) for n in stale}
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
        return {"rows": self._rows, "traffic": self._traffic, "strikes": self._members.quarantine.record()}

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
