from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.conftest import fingerprint, sets

Run = Callable[..., tuple[int, str, str]]
QUICK = sets("rounds=2", "clients=2", "privacy.steps=1", "features.components=4", "baselines=[fedavg]")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_scalars_are_the_rounds_of_the_run_and_change_no_byte_of_it(tmp_path: Path, fedkd: Run) -> None:
    pytest.importorskip("tensorboard")
    assert fedkd("simulate", "--out", tmp_path / "plain", "--workers", 1, *QUICK)[0] == 0
    out = tmp_path / "run"
    assert fedkd("simulate", "--out", out, "--workers", 1, "--track", "tensorboard", *QUICK)[0] == 0
    assert fingerprint(out) == fingerprint(tmp_path / "plain")
    rows = [json.loads(line) for line in (out / "server" / "metrics.jsonl").read_text().splitlines()]
    found = scalars(out / "tensorboard")
    for name in ("teacher_accuracy", "student_accuracy", "epsilon", "bytes_up"):
        assert found[name] == [(row["round"], pytest.approx(row[name])) for row in rows]
    assert [step for step, _ in found["baselines/fedavg"]] == [2]
    assert fedkd("simulate", "--resume", "--out", out, "--workers", 1, "--track", "tensorboard")[0] == 0
    assert scalars(out / "tensorboard") == found  # once each, though the run was resumed


def test_without_tensorboard_one_is_told_what_to_install(
    tmp_path: Path, fedkd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    code, out, err = fedkd("simulate", "--out", tmp_path, "--workers", 1, "--track", "tensorboard", *QUICK)
    assert code == 1 and "fedkd[tensorboard]" in err and "round" not in out
