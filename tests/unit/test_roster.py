"""A relay cannot speak for a client whose node key it has not shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.config import Scenario
from fedkd.distill.model import ProxyView
from fedkd.errors import ClientFailure
from server.loop import Loop
from server.run import RunDirectory
from server.setting import Setting
from simulations.engine import Engine
from simulations.prepare import prepare

SMALL = Scenario.model_validate(
    {
        "clients": 2, "rounds": 1, "quorum": 1.0, "proxy": {"size": 40, "tune_size": 0}, "features": {"components": 5},
        "privacy": {"steps": 1}, "teacher": {"steps": 2}, "training": {"distil_steps": 1},
    }
)  # fmt: skip


def test_a_client_under_anothers_key_is_not_asked(tmp_path: Path) -> None:
    prepare(SMALL, tmp_path, tmp_path)
    folders = {name: tmp_path / "clients" / name for name in ("client-0", "client-1")}
    engine = Engine(folders, tmp_path / "test.npz", workers=1)
    setting = Setting(SMALL, clients=2, attempts=1, tell=lambda text: None, registered={1: "client-0", 2: "client-7"})
    try:
        with engine.grid() as grid, pytest.raises(ClientFailure, match="is client-1, with the node key of client-7"):
            Loop(
                grid,
                setting,
                ProxyView.load(tmp_path / "proxy.safetensors", tmp_path),
                RunDirectory(tmp_path / "run"),
                None,
            ).run()
    finally:
        engine.close()
