"""Which ends are final: a round waits for clients that start again, a killed app goes on, a failing one does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.errors import ClientFailure
from server.commands import End
from tests.unit.test_garbage import federation, honest, scenario


def test_a_round_waits_for_a_client_that_starts_again(tmp_path: Path) -> None:
    calls, told = 0, list[str]()

    def starting(name: str, method: str, payload: bytes) -> bytes:
        nonlocal calls
        calls += method == "answer"
        if method == "answer" and calls <= 2:
            raise ConnectionError("the agent starts again")
        return honest(name, method, payload)

    config = scenario(2, 1).model_copy(update={"quorum": 1.0})
    with federation(tmp_path, config, starting, told) as loop:
        object.__setattr__(loop._setting, "patience", 60.0)
        assert loop.run()
        assert [row["answered"] for row in loop.rows] == [2]
    assert [line.partition(":")[0] for line in told] == ["round 1, attempt 1", "round 1, attempt 2"]
    assert all("1 clients have not been heard of" in line for line in told)


def test_a_round_is_given_up_when_its_patience_is_over(tmp_path: Path) -> None:
    def silent(name: str, method: str, payload: bytes) -> bytes:
        raise ConnectionError("the agent is gone")

    config = scenario(2, 1).model_copy(update={"quorum": 1.0})
    with (
        federation(tmp_path, config, silent, []) as loop,
        pytest.raises(ClientFailure, match="only 1 clients answered"),
    ):
        object.__setattr__(loop._setting, "patience", 0.001)
        loop.run()


def test_an_app_that_ends_with_an_error_of_its_own_is_not_started_again() -> None:
    assert End("finished:failed", "No heartbeat received from the task").by_a_kill
    assert not End("finished:failed", "ServerApp failed with exception: only 1 clients answered").by_a_kill
    assert not End("finished:completed", "").by_a_kill
    assert not End("finished:stopped", "").by_a_kill
