"""What has left a device can be read, message by message, and every answer names what paid for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.journeys.conftest import sets

Run = Callable[..., tuple[int, str, str]]


def test_everything_that_left_a_client_is_shown_and_every_answer_is_paid_for(tmp_path: Path, fedkd: Run) -> None:
    out = tmp_path / "run"
    assert fedkd("simulate", "--workers", 1, "--out", out, *sets("baselines=false"))[0] == 0
    code, text, _ = fedkd("wire", "show", out, "--client", "client-1", "--json")
    messages = json.loads(text)
    assert code == 0
    assert [one["kind"] for one in messages] == ["hello", "agreement", "answers", "answers", "learned"]
    assert {one["client"] for one in messages} == {"client-1"}
    outbox = out / "clients" / "client-1" / "state" / "outbox"
    for one in messages:
        if one["kind"] == "answers":
            assert (outbox / one["digest"]).stat().st_size == one["bytes"]
            assert one["paid_by"].startswith("dp_sgd (per example, add_remove), run ")
            assert set(one["fields"]) == {"run", "client", "round", "plan", "rows", "head"}
    code, text, _ = fedkd("wire", "show", out)
    assert code == 0 and "paid by: dp_sgd" in text and "15 messages" in text


def test_an_answer_that_nothing_paid_for_is_pointed_out(tmp_path: Path, fedkd: Run) -> None:
    out = tmp_path / "run"
    assert fedkd("simulate", "--workers", 1, "--out", out, *sets("baselines=false"))[0] == 0
    journal = out / "clients" / "client-0" / "state" / "sent.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    stolen = {**next(line for line in lines if line["kind"] == "answers"), "digest": "0" * 64}
    journal.write_text("".join(json.dumps(line) + "\n" for line in [*lines, stolen]))
    code, text, _ = fedkd("wire", "show", out)
    assert code == 1 and "no charge of the ledger is for these bytes" in text


def test_a_folder_from_which_nothing_was_sent_is_an_error(tmp_path: Path, fedkd: Run) -> None:
    code, _, err = fedkd("wire", "show", tmp_path)
    assert code == 1 and "no client has sent anything" in err
