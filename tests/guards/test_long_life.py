"""Two hundred experiences, and the client is no larger than after fifty."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from client.agent import Agent
from client.upkeep import STUDENT, Upkeep
from fedkd import wire
from fedkd.wire import Answers
from tests.guards.conftest import NewDevice, examples
from tests.guards.test_live_client import ANYTHING, PERIOD, living

EXPERIENCES, EVERY = 200, 25


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def size(folder: Path, *, ledger: bool) -> int:
    """Bytes of the client's state: the append-only ledger, or all the rest."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if path.name.startswith("ledger.sqlite") == ledger)


@pytest.mark.long
def test_memory_and_disk_are_flat_over_two_hundred_experiences(
    new_device: NewDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = living(new_device, {"block_rounds": 1}, live={"held_out": 0.2, "delete": True}, serve={"gate": ANYTHING})
    agent = device.start()
    device.agree(agent, rounds=EXPERIENCES)
    upkeep, seen, rows = Upkeep(agent, device.base, device.console.append), "", []
    for block in range(EXPERIENCES):
        x, y = examples(100, seed=block)
        np.savez(device.base / "inbox" / f"{block}.npz", x=x, y=y, time=np.full(100, block * PERIOD + 0.5))
        monkeypatch.setattr(Agent, "_now", staticmethod(lambda block=block: (block + 1) * PERIOD))
        reply = wire.decode(device.ask(agent, device.plan(block + 1, soft=0.5, seen=seen)), Answers)
        seen = reply.head
        agent.learner.model.save(agent.state / STUDENT)
        upkeep.look()
        device.console.clear()
        if (block + 1) % EVERY == 0:
            rows.append((resident(), size(agent.state, ledger=False), size(agent.state, ledger=True)))
            print(f"{block + 1} experiences: {rows[-1][0]:,} bytes in memory, {rows[-1][1]:,} on disk, "
                  f"{rows[-1][2]:,} of ledger")  # fmt: skip
    assert len({event.blocks for event in agent.ledger.history()}) == EXPERIENCES
    memory, disk, ledger = (np.array(column) for column in zip(*rows, strict=True))
    assert memory[-1] - memory[1] < 20_000_000
    disk, ledger = disk[len(disk) // 2 :], ledger[len(ledger) // 2 :]  # by then write-ahead logs have their full size
    assert disk.max() - disk.min() < 0.1 * disk.max()
    assert (ledger[-1] - ledger[0]) / (EVERY * (len(ledger) - 1)) < 4_000, "bytes that an experience adds for ever"
