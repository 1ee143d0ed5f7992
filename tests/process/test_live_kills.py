"""A client that goes on learning, killed at fifty points of ten experiences: every record once, every charge once, and
a version that answers all the time."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import dp_accounting.pld.privacy_loss_distribution
import numpy as np
import pytest
import torch

from client.agent import Agent
from client.upkeep import STUDENT, Upkeep
from fedkd import wire
from fedkd.config import Live
from fedkd.continual.live import LiveStream
from fedkd.device.measure import open_runner, predict
from fedkd.device.serving import Serving
from fedkd.device.versions import Versions
from fedkd.privacy.ledger import Ledger
from fedkd.wire import Answers
from tests.guards.conftest import Device, examples, public_examples
from tests.process.test_kills import fork, rest

pytestmark = pytest.mark.process

KILLS, BLOCKS, ROUNDS, PERIOD = 50, 10, 2, 100
LIVE = {"source": "inbox", "period": PERIOD, "held_out": 0.25}


def new_device(folder: Path) -> Device:
    device = Device(folder, public_examples())
    serve = {"keep": 3, "gate": {"max_accuracy_drop": 0.2, "max_class_forgetting": 0.5}}
    client = {"data": None, "live": {**LIVE, "delete": True}, "serve": serve}
    device.write(*examples(1, seed=1), {"block_rounds": ROUNDS}, client)
    for name in ("inbox", "all"):
        (folder / name).mkdir()
    return device


def drop(device: Device, block: int, part: int) -> None:
    """The device's own program writes some records of a block, whole or not at all; a copy is for the test."""
    x, y = examples(20, seed=10 * block + part)
    records = {"x": x, "y": y, "time": block * PERIOD + np.arange(20) + part / 10}
    for folder in ("all", "inbox"):
        path = device.base / folder / f"{block}-{part}"
        np.savez(path.with_suffix(".tmp.npz"), **records)  # type: ignore[arg-type]
        path.with_suffix(".tmp.npz").rename(path.with_suffix(".npz"))


def live(device: Device, plan: bytes, now: float, pipe: object) -> None:
    """A client's process: it looks, answers, and looks again, until it is killed."""
    Agent._now = staticmethod(lambda: now)  # type: ignore[method-assign]
    agent = Agent(device.base / "client.yaml", lambda line: None)
    upkeep = Upkeep(agent, device.base, lambda line: None)
    pipe.send_bytes(b"begin")  # type: ignore[attr-defined]
    upkeep.look()
    reply = agent.handle("answer", plan)
    agent.learner.model.save(agent.state / STUDENT)
    pipe.send_bytes(reply)  # type: ignore[attr-defined]
    for _ in range(3):
        upkeep.look()
    agent.close()


def learned(index: Path, block: int) -> set[str]:
    """Identities of the records that a block has to learn."""
    with closing(sqlite3.connect(index)) as db:
        query = "SELECT sha256 FROM records WHERE block = ? AND held_out = 0"
        return {mark for (mark,) in db.execute(query, (block,))}


def serves(device: Device) -> int:
    """The number of the version that answers; 0 while there is none."""
    serving = Serving(device.base / "state")
    stack = serving.stack()
    Versions(device.base / "state").all()
    if not stack:
        return 0
    rows = predict(open_runner(serving.path(stack[-1])), examples(4, seed=5)[0])
    assert rows.shape == (4, 2) and np.isfinite(rows).all()
    return stack[-1].version.number


def test_killed_at_fifty_points_every_record_and_every_charge_is_once_and_a_version_always_answers(
    tmp_path: Path,
) -> None:
    assert dp_accounting.pld and torch.get_num_threads() == 1
    device, chance = new_device(tmp_path / "device"), random.Random(11)
    child, _ = fork(lambda pipe: agree(device))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    takes, kills, round, seen, served, ended = 0.5, 0, 0, "", 0, 0
    for block in range(BLOCKS):
        for part in range(3):
            drop(device, block, part)
        # the last round of the last block takes what kills are left
        for last in [False] * (ROUNDS - 1) + [block == BLOCKS - 1]:
            round += 1
            plan = wire.encode(device.plan(round, soft=0.5, seen=seen))
            left = KILLS - kills if last else (KILLS * round) // (BLOCKS * ROUNDS) - kills
            replies: set[bytes] = set()
            while left > 0 or not replies:
                child, pipe = fork(lambda pipe, plan=plan, block=block: live(device, plan, (block + 1) * PERIOD, pipe))
                assert pipe.recv_bytes() == b"begin"
                if left > 0:
                    time.sleep(chance.uniform(0, takes))
                    os.kill(child, signal.SIGKILL)
                    left, kills = left - 1, kills + 1
                kill_or_end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                assert kill_or_end in (0, -signal.SIGKILL)
                reply = rest(pipe)
                pipe.close()
                ended += kill_or_end == 0
                takes *= 0.9 if reply is not None else 1.1
                replies |= set() if reply is None else {reply}
                assert len(replies) <= 1, "a round has one answer, however often it is asked for"
                now = serves(device)
                assert now >= served, "a version that has answered goes on answering"
                served = now
            (reply,) = replies
            seen = wire.decode(reply, Answers).head
            assert learned(device.base / "state" / "stream.sqlite", block) == whole(device, block)
    print(f"{kills} kills, {ended} processes that came to their end; version {served} is served")
    assert kills == KILLS and served > 0
    assert_life(device)


def whole(device: Device, block: int) -> set[str]:
    """What an index that nobody disturbs has of a block."""
    index = device.base / "undisturbed.sqlite"
    with closing(LiveStream(index, Live(**{**LIVE, "source": "all"}), device.base, device.proxy, print)) as stream:  # type: ignore[arg-type]
        stream.ingest()
    return learned(index, block)


def agree(device: Device) -> None:
    agent = Agent(device.base / "client.yaml", print)
    device.agree(agent, rounds=BLOCKS * ROUNDS)
    agent.close()


def assert_life(device: Device) -> None:
    """As if nobody had ever been killed: every round charged once, to its own block."""
    with closing(Ledger(device.ledger, "alice")) as ledger:
        assert ledger.verify() == 1 + 2 * BLOCKS * ROUNDS
        events = ledger.export()["events"]
    assert [event["round"] for event in events] == list(range(1, BLOCKS * ROUNDS + 1))
    assert [event["blocks"] for event in events] == [[f"time-{i // ROUNDS}"] for i in range(BLOCKS * ROUNDS)]
    assert {event["state"] for event in events} == {"released"}
    assert not (device.base / "state" / "key").exists()
