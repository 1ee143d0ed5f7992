"""``fedkd audit`` from the command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedkd.privacy import contract
from fedkd.privacy.costs import cost_of
from tests.journeys.conftest import sets, summary_of

Run = Callable[..., tuple[int, str, str]]
FEW = ("--quick", "--trials", "20", "--canaries", "20")
GAUSSIAN = ("--set", "privacy.mechanism=gaussian", "--set", "privacy.accept_low_utility=true")


def test_an_audit_says_bound_confidence_threat_model_and_claim_of_everything(fedkd: Run) -> None:
    code, out, err = fedkd("audit", *FEW, *GAUSSIAN)
    assert code == 0, err
    said = " ".join(out.split())
    assert all(said.count(word) > 10 for word in ("lower bound ", "threat model:", "at confidence 0.99", "; claim "))
    assert "lower bounds, together at confidence 0.999" in said and "verifies nothing" in said
    assert "verified" not in said
    assert "· paired releases of votes" in err


def test_json_is_one_object_and_the_file_holds_the_same(tmp_path: Path, fedkd: Run) -> None:
    code, out, _ = fedkd(
        "audit", *FEW, *GAUSSIAN, "--json", "--confidence", "0.9", "--epsilon", "2", "--out", tmp_path / "a.json"
    )
    result = summary_of(out)
    assert code == 0 and json.loads((tmp_path / "a.json").read_text()) == result
    assert (result["epsilon"], result["confidence"]) == (2.0, 0.9)
    assert all(
        finding["confidence"] == pytest.approx(1 - 0.1 / len(result["findings"])) for finding in result["findings"]
    )


def test_a_bound_above_its_claim_ends_with_an_error(
    tmp_path: Path, fedkd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets_the_number_of_queries(*arguments: Any) -> Any:
        cost = cost_of(*arguments)
        return replace(cost, parts=tuple(replace(part, squared=2) for part in cost.parts))

    monkeypatch.setattr(contract, "cost_of", forgets_the_number_of_queries)
    code, out, err = fedkd("audit", *FEW, *GAUSSIAN, "--json", "--out", tmp_path / "a.json")
    assert code == 1
    assert "the guarantee does not hold" in err and "paired releases of gaussian" in err and "fix:" in err
    assert any(finding["refutes"] for finding in json.loads(out)["findings"])
    assert (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "privacy.mechanism=none"), ("promises nothing", "privacy.mechanism")),
        (("--confidence", "1"), ("confidence",)),
        (("--confidence", "0.3"), ("confidence",)),
        (("missing.yaml",), ("missing.yaml",)),
    ],
)
def test_what_cannot_be_audited_is_told(arguments: tuple[str, ...], words: tuple[str, ...], fedkd: Run) -> None:
    code, out, err = fedkd("audit", *FEW, *arguments)
    assert code == 1 and not out and "Traceback" not in err
    assert all(word in err for word in words)


@pytest.mark.long
def test_the_audit_of_a_run_is_in_its_report(tmp_path: Path, fedkd: Run) -> None:
    run = tmp_path / "run"
    assert fedkd("simulate", "--workers", 1, "--out", run, *sets("baselines=false"))[0] == 0
    code, _, err = fedkd("audit", *FEW, "--out", run / "audit.json", *sets("baselines=false"))
    assert code == 0, err
    code, out, _ = fedkd("report", run)
    said = " ".join(out.split())
    assert code == 0 and "of this configuration" in said and "OTHER CODE" not in said
    for audit in (
        "noise in the weights",
        "paired releases",
        "canaries in one run",
        "membership inference on the answers",
    ):
        assert audit in said


@pytest.mark.long
def test_ctrl_c_ends_an_audit_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedkd", "audit", "--quick", "--out", str(tmp_path / "a.json")]
    folder = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=folder)
    assert process.stderr is not None
    for line in process.stderr:
        if "noise in the weights" in line or "paired" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and not out
    assert not (tmp_path / "a.json").exists()
    assert not list((tmp_path / "tmp").glob("tmp*"))
