"""A full disk: nothing leaves that could not be written down, and with room again the run goes on."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedkd import wire
from fedkd.tensors import digest
from fedkd.wire import Answers, Code, Learned, Refusal

LIMITS = (0, 100, 1000, 4096, 20_000, 33_000, 50_000)  # of one file: the write-ahead log, the student, the bytes


@contextmanager
def full(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes: the system refuses, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_agent_on_a_full_disk_answers_nothing_and_later_the_same_bytes_for_one_charge(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    codes = set()
    for size in LIMITS:
        with full(size):
            reply = wire.decode(device.ask(agent, device.plan(1)), Answers, Learned, Refusal)
        if isinstance(reply, Refusal):
            codes.add(reply.code)
        assert len(agent.ledger.export()["events"]) <= 1
    reply = device.ask(agent, device.plan(1))
    assert isinstance(wire.decode(reply, Answers, Refusal), Answers), device.console
    assert codes == {Code.FAILED}
    [event] = agent.ledger.export()["events"]
    assert (event["state"], event["digest"]) == ("released", digest(reply))
    assert agent.ledger.verify() == 3
    assert device.ask(agent, device.plan(1)) == reply
    assert not list((device.base / "state").rglob("*.tmp"))


def test_a_full_disk_is_told_on_the_clients_console_alone(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    with full(0):
        reply = device.ask(agent, device.plan(1))
    assert wire.decode(reply, Refusal).code is Code.FAILED
    assert any("disk" in line or "File too large" in line for line in device.console), device.console
    assert b"disk" not in reply and b"large" not in reply
