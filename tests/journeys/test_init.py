"""What ``fedkd init`` writes runs as it is: as a simulation, and as a server with a client."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client import channel
from client.agent import Agent
from client.app import app as relay
from fedkd.flower import LocalGrid
from server.serve import serve

Fedkd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path, fedkd: Fedkd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    code, out, err = fedkd("init", tmp_path / "mine")
    assert code == 0, err
    assert out.endswith("fedkd simulate scenario.yaml\n")
    yield tmp_path / "mine"
    for name in ("own_data", "own_student"):
        sys.modules.pop(name, None)


def test_the_scenario_runs(project: Path, tmp_path: Path, fedkd: Fedkd) -> None:
    out = tmp_path / "run"
    code, _, err = fedkd("simulate", project / "scenario.yaml", "--workers", 1, "--out", out, "--set", "rounds=1")
    assert code == 0, err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["teacher_accuracy"] > 0.6


def test_server_and_client_run(project: Path, fedkd: Fedkd, capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent(project / "client.yaml")
    channel.register_local("mine", agent.handle)
    try:
        with LocalGrid(relay, {1: {"agent": "local:mine"}}) as grid:
            serve(grid, str(project / "server.yaml"))
    finally:
        channel.unregister_local("mine")
        agent.close()
    capsys.readouterr()
    rows = [json.loads(line) for line in (project / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["answered"] for row in rows] == [1, 1, 1]
    code, out, _ = fedkd("report", project / "state", "--format", "json")
    [client] = json.loads(out)["clients"].values()
    assert code == 0 and 2.5 < client["spent"]["example"]["epsilon"] <= 3.0


def test_nothing_is_overwritten(project: Path, fedkd: Fedkd) -> None:
    before = {path.name: path.read_bytes() for path in project.iterdir() if path.is_file()}
    code, _, err = fedkd("init", project)
    assert code == 1 and "not empty" in err
    assert {path.name: path.read_bytes() for path in project.iterdir() if path.is_file()} == before
