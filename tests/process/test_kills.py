"""An agent that is killed anywhere between reserve and send has charged once, and gives the identical bytes again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dp_accounting.pld.privacy_loss_distribution
import pytest
import torch

import client.agent
from client.agent import Agent
from fedkd import wire
from fedkd.privacy.accounting import Pld
from fedkd.privacy.chain import COMMIT, RESERVE
from fedkd.privacy.ledger import Ledger
from fedkd.tensors import digest
from fedkd.wire import Answers, Plan, Refusal
from tests.guards.conftest import Device, examples, public_examples

pytestmark = pytest.mark.process

KILLS = 500
SPARE = 100
"""Further rounds, for phases that 500 kills have not hit."""

NOTHING, DRAWN, CHARGED, STORED, COMMITTED, ERASED, SENT = PHASES = (
    "nothing charged",
    "key drawn, nothing charged",
    "charged",
    "bytes stored, not committed",
    "committed, key not erased",
    "committed, not sent",
    "sent",
)


def key(round: int, attempt: int) -> bytes:
    """A restarted agent draws another key: that it does not use it is what the test is about."""
    return hashlib.sha256(f"{round} {attempt}".encode()).digest()


# -- processes --------------------------------------------------------------------------------------------------------


def fork(work: Callable[[Connection], None]) -> tuple[int, Connection]:
    """Run it in a child of this process, which has torch and has started no thread."""
    ours, theirs = Pipe()
    child = os.fork()
    if child:
        theirs.close()
        return child, ours
    try:
        ours.close()
        work(theirs)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def draw(round: int, attempt: int) -> None:
    client.agent.fresh_key = lambda: key(round, attempt)


def live(device: Device, again: bytes | None, plan: bytes | None, pipe: Connection) -> None:
    """An agent's process: it is asked once more for what it may not have sent, and then for the next round."""
    agent = Agent(device.base / "client.yaml", lambda line: print(line, file=sys.stderr))
    for attempt, asked in ((2, again), (1, plan)):
        if asked is not None:
            draw(wire.decode(asked, Plan).round, attempt)
            pipe.send_bytes(b"begin")
            pipe.send_bytes(agent.handle("answer", asked))
    agent.close()


def undisturbed(device: Device, pipe: Connection) -> None:
    """The twin: one process all its life, under the keys that were charged."""
    agent = Agent(device.base / "client.yaml", lambda line: print(line, file=sys.stderr))
    device.agree(agent, rounds=KILLS + SPARE)
    while asked := pipe.recv():
        round, attempt, plan = asked
        draw(round, attempt)
        pipe.send_bytes(agent.handle("answer", plan))
    agent.close()


# -- what a dead agent has left ---------------------------------------------------------------------------------------


@dataclass
class Left:
    """What a kill has left of a round."""

    phase: str
    charges: int
    stored: set[str]


def look(device: Device, round: int, sent: bool) -> Left:
    with closing(sqlite3.connect(device.ledger)) as db:
        rows = db.execute("SELECT kind, round, json_extract(body, '$.digest') FROM entries WHERE kind <> 'contract'")
        entries = rows.fetchall()
    kinds = {kind for kind, of, _ in entries if of == round}
    committed = {mark for kind, _, mark in entries if kind == COMMIT}
    files = {file.name for file in (device.base / "state" / "outbox").glob("*") if file.suffix != ".tmp"}
    stored, charges = files - committed, sum(kind == RESERVE for kind, _, _ in entries)
    held = _held(device.base / "state" / "key")
    if sent:
        phase = SENT
    elif COMMIT in kinds:
        phase = COMMITTED if held is not None else ERASED
    elif RESERVE in kinds:
        phase = STORED if stored else CHARGED
    else:
        phase = DRAWN if held == round else NOTHING
    return Left(phase, charges, stored)


def _held(path: Path) -> int | None:
    """Round of the key that is in its file; 0 for one that is half overwritten."""
    try:
        return int(json.loads(path.read_bytes())["round"])
    except FileNotFoundError:
        return None
    except ValueError:
        return 0


@dataclass
class Aim:
    """When to kill: spread over a round, however long one takes here; now and then at what is over quickly."""

    device: Device
    chance: random.Random
    round_takes: float = 0.05
    hits: Counter[str] = field(default_factory=Counter)

    def wait(self) -> None:
        how = self.chance.choice(["anywhere", "anywhere", "key", "stored"])
        if how == "anywhere":
            return time.sleep(self.chance.uniform(0, self.round_takes))
        state = self.device.base / "state"
        files = set((state / "outbox").glob("*"))
        began = time.monotonic()
        while time.monotonic() < began + 3 * self.round_takes:
            if how == "key" and (state / "key").exists():
                return time.sleep(self.chance.uniform(0, self.round_takes / 10))
            if how == "stored" and set((state / "outbox").glob("*")) - files:
                return time.sleep(self.chance.uniform(0, self.round_takes / 5))
            time.sleep(self.round_takes / 500)

    def learn(self, phase: str) -> None:
        """Aim earlier when the round was over, later when it had not begun."""
        self.hits[phase] += 1
        self.round_takes *= {SENT: 0.9, NOTHING: 1.1}.get(phase, 1.0)


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (-signal.SIGKILL, 0)


def rest(pipe: Connection) -> bytes | None:
    """The reply that the agent had sent before it was killed, if it had."""
    try:
        return pipe.recv_bytes()
    except (EOFError, OSError):
        return None


# -- the test ---------------------------------------------------------------------------------------------------------


def new_device(folder: Path) -> Device:
    device = Device(folder, public_examples())
    device.write(*examples(20, seed=1), {"max_rounds": KILLS + SPARE}, {})
    return device


def test_an_agent_that_is_killed_at_five_hundred_points_charges_once_and_gives_the_identical_bytes(
    tmp_path: Path,
) -> None:
    assert dp_accounting.pld and torch.get_num_threads() == 1
    device, twin = (new_device(tmp_path / name) for name in ("killed", "undisturbed"))
    twin_process, twin_pipe = fork(lambda pipe: undisturbed(twin, pipe))
    child, _ = fork(lambda pipe: agree(device))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with closing(sqlite3.connect(device.ledger)) as db:
        contract = db.execute("SELECT value FROM state WHERE key = 'pending contract'").fetchone()[0]

    aim = Aim(device, random.Random(7))
    seen, again, before, left = "", None, None, Left(NOTHING, 0, set())
    round = 0
    while round < KILLS or (set(aim.hits) != set(PHASES) and round < KILLS + SPARE):
        round += 1
        plan = wire.encode(device.plan(round, soft=0.25 + round / 4000, seen=seen))
        child, pipe = fork(lambda pipe, again=again, plan=plan: live(device, again, plan, pipe))
        if again is not None:
            seen = check_again(pipe, round - 1, before, left, again, twin_pipe)
        assert pipe.recv_bytes() == b"begin"
        aim.wait()
        kill(child)
        before = rest(pipe)
        pipe.close()
        left = look(device, round, before is not None)
        aim.learn(left.phase)
        # never less charged than released: what is stored or sent has its charge, and no round has two
        assert left.charges == round - (left.phase in (NOTHING, DRAWN))
        assert len(left.stored) <= (left.phase == STORED)
        again = plan
    child, pipe = fork(lambda pipe: live(device, again, None, pipe))
    check_again(pipe, round, before, left, again, twin_pipe)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    twin_pipe.send(None)
    assert os.waitstatus_to_exitcode(os.waitpid(twin_process, 0)[1]) == 0

    print(f"{round} kills:", ", ".join(f"{phase}: {aim.hits[phase]}" for phase in PHASES))
    assert set(aim.hits) == set(PHASES)
    assert_life(device, round, contract)


def agree(device: Device) -> None:
    agent = Agent(device.base / "client.yaml", print)
    assert not isinstance(device.agree(agent, rounds=KILLS + SPARE), Refusal)
    agent.close()


def check_again(pipe: Connection, round: int, before: bytes | None, left: Left, plan: bytes, twin: Connection) -> str:
    """The restarted agent's reply to the same plan is what it would have been, or was. Returns its head."""
    assert pipe.recv_bytes() == b"begin"
    reply = pipe.recv_bytes()
    answers = wire.decode(reply, Answers)
    assert answers.round == round
    assert before in (None, reply)
    assert not left.stored or left.stored == {digest(reply)}
    attempt = 2 if left.phase in (NOTHING, DRAWN) else 1
    twin.send((round, attempt, plan))
    assert twin.recv_bytes() == reply
    return answers.head


def assert_life(device: Device, rounds: int, contract: str) -> None:
    """As if nobody had ever been killed."""
    with closing(Ledger(device.ledger, "alice")) as ledger:
        assert ledger.verify() == 1 + 2 * rounds
        exported: dict[str, Any] = ledger.export()
        history = ledger.history()
        agreed = ledger.contract("run-1")
    assert agreed is not None and json.loads(contract) == agreed.record()
    assert [event["round"] for event in exported["events"]] == list(range(1, rounds + 1))
    assert {event["state"] for event in exported["events"]} == {"released"}
    assert len({event["digest"] for event in exported["events"]}) == rounds
    assert Pld().spent(history, 1e-5).epsilon <= agreed.limits.epsilon == 3.0
    assert sum(event.steps for event in history) == 2 * rounds
    assert not (device.base / "state" / "key").exists()
