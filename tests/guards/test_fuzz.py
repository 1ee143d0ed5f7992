"""Thousands of messages that are almost valid: nothing uncharged leaves an agent, and nothing in it breaks."""

from __future__ import annotations

import random
from typing import Any

import pytest

from client.console import MALFORMED_TOLD
from fedkd import wire
from fedkd.privacy.accounting import Pld
from fedkd.tensors import digest
from fedkd.wire import Agreement, Answers, Code, Hello, Learned, Refusal
from tests.fuzz import mutated

SCHEMA = {"hello": Hello, "agreement": Agreement, "answers": Answers, "learned": Learned, "refusal": Refusal}


@pytest.mark.parametrize("messages", [400, pytest.param(10_000, marks=pytest.mark.long)])
def test_an_agent_takes_any_bytes_and_gives_charged_releases_or_a_refusal(new_device: Any, messages: int) -> None:
    chance = random.Random(messages)
    device = new_device(policy={"max_rounds": 3})
    agent = device.start()
    device.agree(agent)
    valid = [wire.encode(message) for message in (device.offer(), *(device.plan(n) for n in (1, 2)), Hello("server"))]
    valid += [wire.encode(device.plan(2, soft=0.4)), wire.encode(device.plan(1, answer=False))]
    released, codes = set(), set()
    for _ in range(messages):
        message = chance.choice(valid)
        message = message if chance.random() < 0.1 else mutated(message, chance)
        reply = agent.handle(chance.choice(("describe", "agree", "answer", "Weights")), message)
        answer = decoded(reply)
        if isinstance(answer, Answers):
            released.add(digest(reply))
        if isinstance(answer, Refusal):
            codes.add(answer.code)
    ledger = agent.ledger.export()
    assert released and released == {event["digest"] for event in ledger["events"]}
    assert agent.ledger.verify() == 1 + 2 * len(released) and Pld().spent(agent.ledger.history(), 1e-5).epsilon <= 3.0
    assert Code.MALFORMED in codes and Code.FAILED not in codes, device.console
    assert not any("Traceback" in line for line in device.console)
    assert 0 < sum("refused a message" in line for line in device.console) <= MALFORMED_TOLD
    assert all(line.isprintable() for line in device.console), "what a server sends is shown to nobody's terminal"
    assert decoded(agent.handle("describe", b"")) == Hello("alice")


def decoded(reply: bytes) -> object:
    """Of the schema, or the test fails."""
    from fedkd.tensors import unpack

    return wire.decode(reply, SCHEMA[unpack(reply)[1]["kind"]])


def test_the_console_is_told_of_garbage_a_hundred_times_at_most(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    for _ in range(3 * MALFORMED_TOLD):
        agent.handle("answer", b"garbage")
    assert len(device.console) == MALFORMED_TOLD
    assert device.console[-1].endswith("further ones are not told")
