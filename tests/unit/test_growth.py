"""A run may last for hundreds of rounds: neither files nor memory grow, but for what is kept on purpose."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest

from fedkd.privacy.ledger import KEPT
from server.run import Row
from tests.guards.conftest import Device, examples, public_examples
from tests.unit.test_garbage import federation, honest, scenario


@pytest.mark.long
def test_a_server_holds_as_much_after_ninety_rounds_as_after_sixty(tmp_path: Path) -> None:
    held, files = dict[int, int](), dict[int, int]()

    def look(row: Row) -> None:
        gc.collect()
        held[row.round] = tracemalloc.get_traced_memory()[0]
        files[row.round] = len(list(tmp_path.rglob("*")))

    with federation(tmp_path, scenario(2, 90), honest, []) as loop:
        object.__setattr__(loop._setting, "on_row", lambda row: look(row) if row.round in (30, 60, 90) else None)
        tracemalloc.start()
        try:
            assert loop.run()
        finally:
            tracemalloc.stop()
    assert files[30] == files[60] == files[90]
    row = 3000  # bytes at the most: a round's metrics are kept
    assert held[90] - held[60] < 30 * row


@pytest.mark.long
def test_an_agent_keeps_a_bounded_number_of_files(tmp_path: Path) -> None:
    device = Device(tmp_path, public_examples())
    device.write(*examples(20, seed=1), {"max_rounds": KEPT + 40, "epsilon": 50.0}, {})
    agent = device.start()
    device.agree(agent, rounds=KEPT + 40)
    counts = []
    for number in range(1, KEPT + 40 + 1):
        device.ask(agent, device.plan(number, soft=0.25 + number / 4000))
        counts.append(len(list(tmp_path.rglob("*"))))
    agent.close()
    assert counts[-1] == counts[KEPT + 1] < KEPT + 20
