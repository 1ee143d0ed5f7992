from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedkd.cli import main

SMALL = [
    "clients=3", "rounds=2", "privacy.steps=3", "proxy.size=60", "proxy.tune_size=20", "features.components=10",
    "teacher.steps=20", "training.distil_steps=10",
]  # fmt: skip


def sets(*settings: str) -> list[str]:
    """The small run with these settings on top, as arguments of the command line."""
    return [argument for setting in (*SMALL, *settings) for argument in ("--set", setting)]


@pytest.fixture
def fedkd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedkd", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        out, err = capsys.readouterr()
        return code, out, err

    return run


def fingerprint(run: Path) -> dict[str, str]:
    """Digest of everything that a run is a function of its configuration for."""
    files = [run / "teacher.safetensors", *sorted((run / "students").iterdir()), *sorted((run / "ledgers").iterdir())]
    files += sorted(run.glob("clients/*/state/outbox/*"))
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def summary_of(text: str) -> dict[str, Any]:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
