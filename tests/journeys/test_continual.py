"""``fedkd continual`` from its command line: what it measures and charges, and that a stopped run goes on as if it had
not been stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event, pld

from fedkd.config import Continual, load
from tests.journeys.conftest import fingerprint, summary_of

Run = Callable[..., tuple[int, str, str]]
FOLDER = Path(__file__).parents[2] / "simulations" / "continual"
SMALL = [
    "data.source=digits", "proxy.size=80", "proxy.tune_size=20", "features.kind=pca", "features.components=15",
    "stream.experiences=2", "keeping.epochs=2", "rounds=1", "privacy.steps=3", "privacy.sample_rate=1.0",
    "teacher.steps=20", "training.distil_steps=5",
]  # fmt: skip
ALONE, TOGETHER = ("clients=1", "privacy.mechanism=none"), ("clients=2", "privacy.nominal_examples=200")


def small(*settings: str) -> list[str]:
    return [word for setting in (*SMALL, *settings) for word in ("--set", setting)]


@pytest.fixture
def continual(fedkd: Run, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a small continual scenario; gives its summary."""

    def run(*settings: str, name: str = "run") -> dict[str, Any]:
        code, out, err = fedkd("continual", "--out", tmp_path / name, "--workers", 1, "--json", *small(*settings))
        assert code == 0, err
        assert json.loads((tmp_path / name / "summary.json").read_text()) == summary_of(out)
        return summary_of(out)

    return run


def test_one_learner_has_a_matrix_and_every_measure(continual: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    found = continual(*ALONE)
    student = found["student"]
    assert len(student["r"]) == 2 == len(student["r"][0]) and len(student["by_class"][0]) == 10
    assert student["acc"] == pytest.approx(sum(student["r"][1]) / 2) and set(found["formulas"]) <= set(student)
    public = {"public_examples": 80, "public_bytes": 80 * 64 * 4}
    assert found["memory"] == {"private_examples": 0, "bytes": 80 * 10 * 4, **public}
    for name in ("student.safetensors", "plots/r.png", "plots/experiences.png", "config.yaml"):
        assert (tmp_path / "run" / name).stat().st_size > 0


@pytest.mark.parametrize("method", ["er", "joint"])
def test_the_memory_of_a_method_that_keeps_private_examples_is_counted(
    continual: Callable[..., dict[str, Any]], method: str
) -> None:
    memory = continual(*ALONE, f"keeping.method={method}", "keeping.buffer=30")["memory"]
    assert memory["public_examples"] == 0 and memory["bytes"] > 0
    assert memory["private_examples"] == (30 if method == "er" else 1797 - 359 - 100)


def test_every_experience_is_a_block_with_its_own_epsilon(
    continual: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = continual(*TOGETHER, "privacy.epsilon=6", "privacy.epsilons=[6, 2]")
    for name, blocks in found["privacy"]["by_block"].items():
        ledger = json.loads((tmp_path / "run" / "ledgers" / f"{name}.json").read_text())
        assert [event["blocks"] for event in ledger["events"]] == [["experience-1"], ["experience-2"]]
        assert 5.5 < blocks["experience-1"] <= 6 and 1.8 < blocks["experience-2"] <= 2
        for event in ledger["events"]:  # an accountant that knows nothing of ledgers and blocks
            distribution = pld.PLDAccountant()
            step = dp_event.GaussianDpEvent(event["noise_multiplier"])
            distribution.compose(dp_event.SelfComposedDpEvent(step, event["steps"]))
            assert distribution.get_epsilon(1e-5) == pytest.approx(blocks[event["blocks"][0]], abs=1e-3)
    assert len(found["teacher"]["r"]) == 2 and set(found["students"]) == {"client-0", "client-1"}


def test_a_client_that_has_spent_its_lifetime_goes_on_learning(
    continual: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = continual(*TOGETHER, "stream.joins=[1, 2]", "privacy.lifetime_epsilon=3", "privacy.epsilon=3")
    spent = found["privacy"]["by_block"]["client-0"]
    assert "experience-2" not in spent and spent["experience-1"] <= 3
    ledger = json.loads((tmp_path / "run" / "ledgers" / "client-0.json").read_text())
    assert len(ledger["events"]) == 1
    # in the second period it was refused an answer, and took in the teacher's soft labels
    marks = json.loads((tmp_path / "run" / "periods.json").read_text())["rows"]
    assert marks[0]["marks"]["client-0"] != marks[1]["marks"]["client-0"]


def test_clients_keep_their_own_time(continual: Callable[..., dict[str, Any]]) -> None:
    found = continual(
        *TOGETHER, "privacy.mechanism=none", "stream.joins=[1, 2]", "stream.leaves=[0, 2]", "stream.own_order=true"
    )
    there = [period["there"] for period in found["periods"]]
    assert there == [{"client-0": 0}, {"client-0": 1, "client-1": 0}]
    assert found["students"]["client-1"] is None and found["students"]["client-0"]["acc"] > 0


def test_a_stopped_run_goes_on_to_the_same_bytes(fedkd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedkd.cli import continual

    def interrupt(row: object) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "stopping"

    for settings, mark in ((ALONE, _alone), (TOGETHER, fingerprint)):
        whole, stopped = tmp_path / f"{settings[0]}-whole", tmp_path / f"{settings[0]}-stopped"
        assert fedkd("continual", "--out", whole, "--workers", 1, *small(*settings))[0] == 0
        with monkeypatch.context() as patch:
            patch.setattr(continual, "_line", interrupt)
            code, _, err = fedkd("continual", "--out", stopped, "--workers", 1, *small(*settings))
        assert code == 130 and "--resume" in err and not (stopped / "summary.json").exists()
        assert fedkd("continual", "--resume", "--out", stopped, "--workers", 1)[0] == 0
        assert mark(stopped) == mark(whole)


def _alone(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes() + (run / "learner.safetensors").read_bytes()


def test_a_class_that_no_proxy_shows_is_told(fedkd: Run, tmp_path: Path) -> None:
    _, _, err = fedkd("continual", "--out", tmp_path / "run", *small(*ALONE, "proxy.size=12"))
    assert "hardly any proxy looks like class" in err


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (["clients=1"], "one learner answers nobody"),
        (["keeping.method=er"], "charged to all of them"),
        ([*ALONE, "keeping.weight=9"], "keeps new classes out"),
        ([*ALONE, "stream.pace=[2]"], "no timetable"),
        (["privacy.mechanism=sum", "clients=30"], "touches all blocks"),
        (["stream.online=true"], "one learner"),
        (["training.terms={kl: 2}"], "keeping.weight"),
        (["privacy.epsilons=[1, 1, 1]"], "more limits"),
        ([*TOGETHER, "stream.joins=[2]"], "no client is there"),
        ([*ALONE, "stream.experiences=11"], "too few"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(fedkd: Run, tmp_path: Path, settings: list[str], word: str) -> None:
    code, _, err = fedkd("continual", "--out", tmp_path / "run", *small(*settings))
    assert code == 1 and word in err and "Traceback" not in err


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_scenario_runs_in_a_reduced_form(path: Path, tmp_path: Path, fedkd: Run) -> None:
    scenario = load(Continual, path)
    settings = ["keeping.epochs=1", "stream.experiences=2", "proxy.size=80", "proxy.tune_size=20", "rounds=1"]
    settings += ["data.source=digits"] if scenario.data.source == "idx" else []
    settings += ["data.size=400"] if scenario.data.source == "mnist1d" else []
    settings += ["clients=2", "teacher.steps=10", "privacy.steps=2"] if scenario.clients > 1 else []
    words = [word for setting in settings for word in ("--set", setting)]
    code, out, err = fedkd("continual", path, "--json", "--workers", 1, "--out", tmp_path / "run", *words)
    assert code == 0, err
    assert len(summary_of(out)["teacher" if scenario.clients > 1 else "student"]["r"]) == 2
