"""Clients trained together: the run that the ordinary engine gives, within rounding, charged the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.cli.simulate import _Table
from fedkd.config import Scenario
from fedkd.tensors import unpack_plain
from simulations.together import TABLE
from tests.journeys.conftest import fingerprint, sets

Run = Callable[..., tuple[int, str, str]]
MIXED = ("clients=4", "students=linear,mlp,cnn", "privacy.sample_rate=0.5")


def arguments(out: Path, engine: str, *settings: str) -> tuple[Any, ...]:
    return ("simulate", "--out", out, "--workers", 1, *sets(f"engine={engine}", *settings))


def models(run: Path) -> dict[str, dict[str, np.ndarray]]:
    files = [run / "teacher.safetensors", *sorted((run / "students").iterdir())]
    return {str(file.relative_to(run)): unpack_plain(file.read_bytes()) for file in files}


def charges(run: Path) -> list[Any]:
    """All that is charged, and for what, but the hashes of what was released."""
    kept = ("run", "round", "state", "mechanism", "noise_multiplier", "sample_rate", "steps", "unit", "blocks")
    exports = [json.loads(path.read_text()) for path in sorted((run / "ledgers").iterdir())]
    return [[{name: event.get(name) for name in kept} for event in export["events"]] for export in exports]


@pytest.mark.parametrize(
    "settings",
    [MIXED, ("privacy.mechanism=none", "training.learning_rate=0.1", "students=linear")],
    ids=["mixed_students", "without_privacy"],
)
def test_the_cohort_gives_the_ordinary_engines_run_within_rounding(
    settings: tuple[str, ...], tmp_path: Path, fedkd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in ("process", "cohort"):
        # of one configuration: its hash names the run, and the run is a part of every noise key
        monkeypatch.setattr(Scenario, "trained_together", engine == "cohort")
        code, _, err = fedkd(*arguments(tmp_path / engine, "auto", *settings))
        assert code == 0, err
    ordinary, together = models(tmp_path / "process"), models(tmp_path / "cohort")
    assert ordinary.keys() == together.keys()
    for name, arrays in ordinary.items():
        for key, array in arrays.items():
            # answers travel as float16, where a last digit of a sum may become one of 2^-11
            np.testing.assert_allclose(together[name][key], array, rtol=0.02, atol=2e-3, err_msg=f"{name} {key}")
    assert charges(tmp_path / "process") == charges(tmp_path / "cohort")
    assert charges(tmp_path / "cohort")[0]


def test_a_cohort_that_was_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path, fedkd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: _Table, row: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    assert fedkd(*arguments(tmp_path / "whole", "cohort", *MIXED))[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(_Table, "__call__", interrupt)
        assert fedkd(*arguments(tmp_path / "run", "cohort", *MIXED))[0] == 130
    assert fedkd("simulate", "--out", tmp_path / "run", "--resume")[0] == 0
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")


def test_a_cohort_in_two_processes_gives_the_same_bytes(tmp_path: Path, fedkd: Run) -> None:
    some = (f"clients={TABLE + 3}", "rounds=2", "baselines=false", "quorum=1.0", "training.distil_steps=5")
    for workers in (1, 2):
        settings = sets("engine=cohort", *some)
        code, _, err = fedkd("simulate", "--out", tmp_path / str(workers), "--workers", workers, *settings)
        assert code == 0, err
    assert fingerprint(tmp_path / "1") == fingerprint(tmp_path / "2")


@pytest.mark.long
def test_a_cohort_that_was_killed_in_a_round_goes_on_to_the_same_bytes(tmp_path: Path, fedkd: Run) -> None:
    settings = ("clients=12", "baselines=false")
    assert fedkd(*arguments(tmp_path / "whole", "cohort", *settings))[0] == 0
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fedkd", *map(str, arguments(out, "cohort", *settings))]
    victim = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # once some, and hardly all, have released their first answers
    while not list(out.glob("clients/*/state/outbox/*")) and victim.poll() is None:
        time.sleep(0.001)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert fedkd("simulate", "--out", out, "--resume")[0] == 0
    assert fingerprint(out) == fingerprint(tmp_path / "whole")
