"""Reports and plans from the command line, of ledgers on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.ledger import Ledger
from fedkd.report.schema import json_schema
from tests import builders
from tests.journeys.conftest import summary_of

Run = Callable[..., tuple[int, str, str]]


def charge(folder: Path, client: str, rounds: int = 2) -> Path:
    """A client's folder with a ledger that has released so many of three rounds."""
    ledger = Ledger(folder / client / "state" / "ledger.sqlite", client)
    ledger.register(builders.contract(PrivacyEvent("dp_sgd", 12.0, 1.0, 10)))
    for round in range(1, rounds + 1):
        reserved = ledger.reserve("run-1", round, "plan", "snapshot", lambda: bytes(32))
        ledger.commit(reserved, b"answers", {})
    ledger.close()
    return folder / client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for client, rounds in (("alice", 1), ("bob", 2)):
        charge(tmp_path / "clients", client, rounds)
    return tmp_path


@pytest.mark.parametrize(
    ("form", "begins"), [("text", "Adding or removing"), ("md", "# Privacy report"), ("html", "<!DOCTYPE html>")]
)
def test_a_report_in_every_form_names_every_client(folder: Path, fedkd: Run, form: str, begins: str) -> None:
    code, out, err = fedkd("report", folder, "--format", form)
    assert (code, err) == (0, "")
    assert out.startswith(begins) and "alice" in out and "bob" in out


@pytest.mark.parametrize("name", ["report.html", "report.md", "report.json", "report.txt"])
def test_a_report_goes_to_a_file_in_the_form_of_its_name(folder: Path, fedkd: Run, name: str) -> None:
    code, out, _ = fedkd("report", folder, "--out", folder / name)
    assert (code, out) == (0, "")
    form = {"html": "html", "md": "md", "json": "json", "txt": "text"}[name.rpartition(".")[2]]
    assert (folder / name).read_text() == fedkd("report", folder, "--format", form)[1]


def test_the_schema_is_printed_without_a_ledger(fedkd: Run) -> None:
    code, out, _ = fedkd("report", "--schema")
    assert code == 0 and json.loads(out) == json_schema()


def test_a_report_on_nothing_is_refused(fedkd: Run) -> None:
    code, _, err = fedkd("report")
    assert code == 1 and "nothing to report on" in err and "fix:" in err


def test_a_plan_with_a_ledger_counts_what_it_has_spent_and_takes_its_limit(folder: Path, fedkd: Run) -> None:
    arguments = ("budget", "plan", "--rounds", 2, "--json")
    fresh = summary_of(fedkd(*arguments, "--epsilon", 3)[1])
    after = summary_of(fedkd(*arguments, "--ledger", folder / "clients" / "bob")[1])
    assert after["spent_before"] > 0 == fresh["spent_before"]
    assert after["epsilon"] <= 3.0 and after["noise_multiplier"] > fresh["noise_multiplier"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epsilon", 3), "two of epsilon, noise and rounds"),
        (("--epsilon", 0.001, "--rounds", 1000), "not enough"),
        (("--epsilon", 3, "--rounds", 1, "--sample-rate", 0.1, "--batch", 10), "both say how much"),
        (("--epsilon", 3, "--rounds", 1, "--batch", 10), "only with --examples"),
        (("--epsilon", 3, "--rounds", 1, "--batch", 10, "--examples", 5), "at most 1"),
        (("--epsilon", 3, "--rounds", 1, "--plot", "plan.pdf"), ".svg or .png"),
        (("--epsilon", 3, "--rounds", 1, "--delta", 0), "delta"),
    ],
)
def test_a_plan_that_cannot_be_is_told_in_three_lines(fedkd: Run, arguments: tuple[object, ...], message: str) -> None:
    code, out, err = fedkd("budget", "plan", *arguments)
    assert (code, out) == (1, "") and message in err and "Traceback" not in err


def test_a_plan_after_several_ledgers_is_refused(folder: Path, fedkd: Run) -> None:
    code, _, err = fedkd("budget", "plan", "--rounds", 1, "--ledger", folder)
    assert code == 1 and "2 ledgers" in err


def test_a_plan_is_drawn(folder: Path, fedkd: Run) -> None:
    code, out, _ = fedkd("budget", "plan", "--noise", 20, "--rounds", 5, "--plot", folder / "plan.svg")
    assert code == 0 and out.startswith("Noise multiplier 20 over 5 rounds")
    assert "</svg>" in (folder / "plan.svg").read_text()
