"""The gate before the SuperLink: any bytes, and any number of them, reach nothing but what is meant for relays."""

from __future__ import annotations

import logging
import random
import socket
import ssl
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import server.allowance
import server.gate
from fedkd.certificates import issue
from fedkd.flower import NODE_KEY_HEADER
from fedkd.processes import free_port, host_and_port
from fedkd.trust import node_keys
from server.allowance import A_SECOND, AT_ONCE, BURST, Allowance
from server.gate import Gate, Upstream

FLEET = "/v1/fleet/pull-messages"


@dataclass
class Door:
    """A gate whose SuperLink does not answer, so that a call that is passed on shows by its 503."""

    address: str
    trusted: ssl.SSLContext
    keys: dict[str, bytes]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"https://{self.address}", verify=self.trusted, trust_env=False, timeout=60)

    def header(self, name: str) -> dict[str, str]:
        return {NODE_KEY_HEADER: b64encode(self.keys[name]).decode()}


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of twenty calls that do not fill up again."""
    monkeypatch.setattr(server.allowance, "BURST", 20)
    monkeypatch.setattr(server.gate, "Allowance", lambda: Allowance(lambda: 0.0))


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    issue(tmp_path, ["127.0.0.1"], ["a", "b"])
    keys, address = node_keys(tmp_path / "nodes"), f"127.0.0.1:{free_port()}"
    upstream = Upstream(f"127.0.0.1:{free_port()}", tmp_path / "ca.pem")
    gate = Gate(address, tmp_path / "server.pem", tmp_path / "server.key", upstream, keys)
    gate.start()
    yield Door(address, ssl.create_default_context(cafile=tmp_path / "ca.pem"), keys)
    gate.stop()


def test_a_relay_has_so_many_calls_at_once_and_so_many_a_second() -> None:
    now = 0.0
    allowance = Allowance(lambda: now)
    assert [allowance.enter() for _ in range(AT_ONCE + 1)] == [True] * AT_ONCE + [False]
    for _ in range(AT_ONCE):
        allowance.leave()

    def calls() -> int:
        count = 0
        while allowance.enter():
            allowance.leave()
            count += 1
        return count

    assert calls() == BURST - AT_ONCE
    now = 1.0
    assert calls() == A_SECOND
    now = 1e9
    assert calls() == BURST


def test_a_flood_of_one_relay_is_turned_away_and_told_once_and_others_are_served(
    stopped_clock: None, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "server.gate")
    with door.client() as client:
        said = Counter(client.post(FLEET, headers=door.header("a"), content=b"x").json()["detail"] for _ in range(30))
        other = client.post(FLEET, headers=door.header("b"), content=b"x").json()["detail"]
    assert said == {"the SuperLink does not answer": 20, "too many calls of one relay": 10}
    assert other == "the SuperLink does not answer"
    assert [record.getMessage() for record in caplog.records] == [
        "the relay of a at 127.0.0.1 makes too many calls; the surplus is turned away"
    ]


@pytest.mark.parametrize("requests", [100, pytest.param(10_000, marks=pytest.mark.long)])
def test_any_request_of_a_stranger_is_refused_and_the_log_stays_short(
    door: Door, caplog: pytest.LogCaptureFixture, requests: int
) -> None:
    caplog.set_level(logging.WARNING, "server.gate")
    chance = random.Random(requests)
    paths = (
        FLEET,
        "/",
        "/v1/control/start-run",
        "/v1/fleet/../control/x",
        "/%2e%2e/",
        "/v1/fleet/%00",
        "/" + "x" * 3000,
    )
    with door.client() as client:
        for _ in range(requests):
            key = chance.choice((b"", b"garbage", chance.randbytes(200), door.keys["a"][:-2]))
            headers = {
                NODE_KEY_HEADER: chance.choice((b64encode(key).decode(), key.hex())),
                "X-Forwarded-For": "1.2.3.4",
            }
            method, body = chance.choice(("POST", "POST", "GET", "PUT")), chance.randbytes(chance.randint(0, 2000))
            answer = client.request(method, chance.choice(paths), headers=headers, content=body)
            assert 400 <= answer.status_code < 500
    assert 0 < len(caplog.records) <= 1000
    assert all(record.getMessage().startswith("refused a relay from 127.0.0.1: ") for record in caplog.records)


def test_bytes_that_are_no_request_leave_the_gate_standing(door: Door) -> None:
    chance = random.Random(1)
    for _ in range(20):
        with socket.create_connection(host_and_port(door.address), timeout=10) as plain:
            plain.sendall(chance.randbytes(500))
        with door.trusted.wrap_socket(
            socket.create_connection(host_and_port(door.address)), server_hostname="127.0.0.1"
        ) as it:
            it.sendall(
                chance.choice((b"POST /v1/fleet/x HTTP/1.1\r\nContent-Length: -1\r\n\r\n", chance.randbytes(500)))
            )
    with door.client() as client:
        assert client.post(FLEET, headers=door.header("b"), content=b"x").status_code == 503
