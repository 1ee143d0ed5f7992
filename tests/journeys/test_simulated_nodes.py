"""In Flower's simulation runtime a node is the client of its number; the relay calls its agent in its own process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.app import app as relay
from fedkd.config import default_simulation
from fedkd.flower import LocalGrid
from server.serve import serve
from tests.journeys.conftest import sets

Fedkd = Callable[..., tuple[int, str, str]]


def test_nodes_without_an_agent_of_their_own_play_a_run(
    tmp_path: Path, fedkd: Fedkd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    config = default_simulation(run_id=1)
    code, _, err = fedkd("prepare", "--noise", "simulation", "--out", config.parent, *sets("clients=2", "quorum=1"))
    assert code == 0, err
    nodes = {index + 1: {"partition-id": index, "num-partitions": 2} for index in range(2)}
    with LocalGrid(relay, nodes) as grid:
        serve(grid, str(config))
    rows = [json.loads(line) for line in (config.parent / "server/metrics.jsonl").read_text().splitlines()]
    assert [row["answered"] for row in rows] == [2, 2]
    assert len(list(config.parent.glob("clients/*/state/ledger.sqlite"))) == 2
