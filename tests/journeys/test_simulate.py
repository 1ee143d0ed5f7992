from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import dp_event, pld

from tests.journeys.conftest import fingerprint, sets, summary_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, in a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    command = [sys.executable, "-m", "fedkd", "simulate", "--out", str(out), "--workers", "2", "--json", *sets()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (out / "stdout.json").write_text(done.stdout)
    return out


def test_json_prints_one_object_with_the_promised_keys(finished: Path) -> None:
    printed = summary_of((finished / "stdout.json").read_text())
    assert printed == json.loads((finished / "summary.json").read_text())
    promised = {
        "teacher_accuracy", "student_accuracy", "local_accuracy", "central_accuracy", "privacy", "bytes_up",
        "bytes_down", "rounds", "seconds", "run_dir",
    }  # fmt: skip
    assert promised <= set(printed)
    assert set(printed["student_accuracy"]) == {"mean", "min", "by_client"}
    assert {"mechanism", "unit", "adjacency", "epsilon", "delta"} <= set(printed["privacy"])
    assert printed["privacy"]["epsilon"] <= 3 and printed["rounds"] == 2


def test_a_run_directory_holds_everything(finished: Path) -> None:
    for name in ("config.yaml", "versions.json", "proxy.safetensors", "teacher.safetensors", "report.txt",
                 "report.json", "summary.json", "server/metrics.jsonl", "server/checkpoint.safetensors",
                 "plots/accuracy.png", "plots/budget.png"):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    assert len(list((finished / "students").iterdir())) == len(list((finished / "ledgers").iterdir())) == 3
    rows = [json.loads(line) for line in (finished / "server" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2] and {row["answered"] for row in rows} == {3}


def test_the_number_of_workers_changes_no_byte(finished: Path, tmp_path: Path, fedkd: Run) -> None:
    code, _, _ = fedkd("simulate", "--out", tmp_path / "one", "--workers", 1, *sets())
    assert code == 0
    assert fingerprint(tmp_path / "one") == fingerprint(finished)


def test_the_order_of_arrival_changes_no_byte(
    finished: Path, tmp_path: Path, fedkd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import members

    straight = members.exchange

    def shuffled(*arguments: object) -> object:
        replies = list(straight(*arguments).items())
        random.Random(7).shuffle(replies)
        return dict(replies)

    monkeypatch.setattr(members, "exchange", shuffled)
    assert fedkd("simulate", "--out", tmp_path / "run", "--workers", 1, *sets())[0] == 0
    assert fingerprint(tmp_path / "run") == fingerprint(finished)


def test_another_seed_changes_the_result(finished: Path, tmp_path: Path, fedkd: Run) -> None:
    assert fedkd("simulate", "--out", tmp_path / "run", "--workers", 1, "--seed", 1, *sets())[0] == 0
    assert fingerprint(tmp_path / "run") != fingerprint(finished)


@pytest.mark.long
@pytest.mark.parametrize("trial", range(3))
def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(finished: Path, tmp_path: Path, trial: int) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fedkd", "simulate", "--out", str(out), "--workers", "2", *sets()]
    # at moments of the run itself, not of the clock: once some file of it exists, and a random little later
    landmark = ["clients/client-1/state/ledger.sqlite", "server/checkpoint.safetensors", "students"][trial]
    victim = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / landmark).exists() and victim.poll() is None:
        time.sleep(0.005)
    time.sleep(random.random() * 0.3)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    resume = [sys.executable, "-m", "fedkd", "simulate", "--out", str(out), "--resume", "--json"]
    done = subprocess.run(resume, capture_output=True, text=True, check=True)
    assert summary_of(done.stdout)["rounds"] == 2
    assert fingerprint(out) == fingerprint(finished)


def test_ctrl_c_stops_after_a_checkpoint_and_resume_gives_the_same_bytes(
    finished: Path, tmp_path: Path, fedkd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedkd.cli.simulate import _Table

    def interrupt(self: _Table, row: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(_Table, "__call__", interrupt)
        code, _, err = fedkd("simulate", "--out", tmp_path / "run", "--workers", 1, *sets())
    assert code == 130 and "--resume" in err
    assert not (tmp_path / "run" / "summary.json").exists()
    assert fedkd("simulate", "--out", tmp_path / "run", "--resume")[0] == 0
    assert fingerprint(tmp_path / "run") == fingerprint(finished)


def test_an_independent_computation_from_the_exported_events_gives_the_reported_epsilon(
    finished: Path, fedkd: Run
) -> None:
    _, text, _ = fedkd("ledger", "export", finished, "--json", "--client", "client-0")
    accountant = pld.PLDAccountant()
    for event in json.loads(text):
        one = dp_event.GaussianDpEvent(event["noise_multiplier"])
        if event["sample_rate"] < 1:
            one = dp_event.PoissonSampledDpEvent(event["sample_rate"], one)
        accountant.compose(dp_event.SelfComposedDpEvent(one, event["steps"]))
    reported = json.loads((finished / "summary.json").read_text())["privacy"]
    assert accountant.get_epsilon(reported["delta"]) == pytest.approx(reported["epsilon"], abs=2e-3)


def test_without_privacy_epsilon_is_infinite_wherever_it_is_shown(tmp_path: Path, fedkd: Run) -> None:
    arguments = sets("privacy.mechanism=none", "training.learning_rate=0.1")
    code, out, _ = fedkd("simulate", "--out", tmp_path / "run", "--workers", 1, *arguments)
    assert code == 0 and "∞" in out
    assert summary_of((tmp_path / "run" / "summary.json").read_text())["privacy"]["epsilon"] == "inf"
    code, out, _ = fedkd("report", tmp_path / "run")
    assert code == 0 and "∞" in out


def test_every_student_kind_takes_part_in_one_federation(tmp_path: Path, fedkd: Run) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\nclass Wide(nn.Sequential):\n    def __init__(self, shape, classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(shape[0], 20), nn.ReLU(), nn.Linear(20, classes))\n"
    )
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("students: [linear, mlp, cnn, rnn, transformer, 'mine:Wide']\n")
    arguments = sets("clients=6", "privacy.sample_rate=0.3")
    code, out, _ = fedkd("simulate", scenario, "--out", tmp_path / "run", "--json", "--workers", 1, *arguments)
    assert code == 0 and len(summary_of(out)["student_accuracy"]["by_client"]) == 6
    test = np.load(tmp_path / "run" / "test.npz")
    for client in range(6):
        student = tmp_path / "run" / "students" / f"client-{client}.safetensors"
        code, out, err = fedkd("predict", student, tmp_path / "run" / "test.npz")
        assert code == 0 and len(out.split()) == len(test["x"]), err
