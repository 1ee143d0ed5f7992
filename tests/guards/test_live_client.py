"""A client that goes on learning charges every block of its stream for itself, and learns nothing else meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from client import lineage
from client.agent import Agent
from client.command import _exporting
from client.upkeep import Upkeep
from fedkd import wire
from fedkd.device.serving import Serving
from fedkd.device.versions import Versions
from fedkd.distill.model import Model
from fedkd.errors import ConfigError, FedkdError
from fedkd.privacy.accounting import Pld
from fedkd.privacy.blocks import by_block
from fedkd.privacy.contract import draw_up
from fedkd.privacy.limits import Past
from fedkd.wire import Answers, Code, Refusal
from tests.guards.conftest import REPLIES, Device, NewDevice, examples

PERIOD = 100
ANYTHING = {"max_accuracy_drop": 1.0, "max_class_forgetting": 1.0}


class Clock:
    """What an agent thinks the time is."""

    def __init__(self) -> None:
        self.now = PERIOD

    def over(self, block: int) -> None:
        """The block has just ended."""
        self.now = (block + 1) * PERIOD


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(Agent, "_now", staticmethod(lambda: made.now))
    return made


@pytest.fixture
def device(new_device: NewDevice) -> Device:
    return living(new_device)


def living(new_device: NewDevice, policy: dict[str, Any] | None = None, **client: Any) -> Device:
    live = {"source": "inbox", "period": PERIOD, "held_out": 0, **client.pop("live", {})}
    made = new_device(policy={"block_rounds": 2, **(policy or {})}, client={"data": None, "live": live, **client})
    (made.base / "inbox").mkdir()
    return made


def fill(device: Device, block: int, n: int = 20) -> None:
    x, y = examples(n, seed=block + 1)
    np.savez(device.base / "inbox" / f"{block}.npz", x=x, y=y, time=np.full(n, block * PERIOD + 0.5))


def ask(device: Device, agent: Agent, round: int) -> Answers | Refusal:
    reply = wire.decode(device.ask(agent, device.plan(round, soft=0.5)), *REPLIES)
    assert isinstance(reply, Answers | Refusal)
    return reply


# -- what is learned ---------------------------------------------------------------------------------------------------


def test_a_round_learns_the_block_that_is_over_and_nothing_else(device: Device, clock: Clock) -> None:
    agent = device.start()
    device.agree(agent, rounds=9)
    for block, n in ((0, 20), (1, 30)):
        fill(device, block, n)
        clock.over(block)
        assert isinstance(ask(device, agent, block + 1), Answers)
        assert len(agent.learner.data.y) == n
    assert [event.blocks for event in agent.ledger.history()] == [("time-0",), ("time-1",)]


def test_an_empty_block_is_answered_and_charged_like_any_other(device: Device, clock: Clock) -> None:
    agent = device.start()
    device.agree(agent, rounds=9)
    clock.over(5)
    assert isinstance(ask(device, agent, 1), Answers)
    assert len(agent.learner.data.y) == 0
    assert [event.blocks for event in agent.ledger.history()] == [("time-5",)]


def test_a_source_that_is_away_stops_nothing(device: Device, clock: Clock) -> None:
    agent = device.start()
    device.agree(agent, rounds=9)
    (device.base / "inbox").rmdir()
    assert isinstance(ask(device, agent, 1), Answers)
    assert any("inbox" in line for line in device.console)


def test_what_comes_after_its_block_was_charged_is_never_learned(device: Device, clock: Clock) -> None:
    agent = device.start()
    device.agree(agent, rounds=9)
    fill(device, 0)
    ask(device, agent, 1)
    x, y = examples(5, seed=9)
    np.savez(device.base / "inbox" / "late.npz", x=x, y=y, time=np.full(5, 1.0))
    ask(device, agent, 2)
    assert len(agent.learner.data.y) == 20


def test_a_stream_that_fails_in_any_way_stops_no_answer(
    device: Device, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code that depended on what a record is would tell the server so, uncharged."""
    agent = device.start()
    device.agree(agent, rounds=9)
    monkeypatch.setattr(agent.stream, "ingest", lambda: (_ for _ in ()).throw(KeyError("x")))
    assert isinstance(ask(device, agent, 1), Answers)


def test_one_look_at_a_wrong_clock_closes_one_block(device: Device, clock: Clock) -> None:
    agent = device.start()
    device.agree(agent, rounds=9)
    fill(device, 0)
    clock.over(0)
    agent.look()
    clock.over(1_000_000)
    agent.look()
    clock.over(2)
    fill(device, 2)
    assert isinstance(ask(device, agent, 1), Answers) and len(agent.learner.data.y) == 20
    clock.over(1)
    agent.look()
    assert any("the clock" in line for line in device.console)


# -- what is charged ---------------------------------------------------------------------------------------------------


def test_each_block_has_its_own_limit_and_a_spent_one_is_refused_while_learning_goes_on(
    device: Device, clock: Clock
) -> None:
    agent = device.start()
    device.agree(agent, rounds=9)
    round, codes = 0, []
    for block in (0, 1):
        fill(device, block)
        clock.over(block)
        for _ in range(3):
            round += 1
            before = agent.ledger.state("student")
            reply = ask(device, agent, round)
            codes.append(reply.code if isinstance(reply, Refusal) else None)
            assert agent.ledger.state("student") != before, "it learns from the teacher whatever is refused"
    assert codes == [None, None, Code.EXHAUSTED] * 2
    history = agent.ledger.history()
    spent = {block: Pld().spent(some, 1e-5).epsilon for block, some in by_block(history).items()}
    assert 2.5 < spent["time-0"] == spent["time-1"] <= 3.0 < Pld().spent(history, 1e-5).epsilon


def test_a_round_that_was_refused_is_asked_again_in_the_block_of_that_time(device: Device, clock: Clock) -> None:
    agent = device.start()
    device.agree(agent, rounds=9)
    for round in (1, 2):
        assert isinstance(ask(device, agent, round), Answers)
    spent = ask(device, agent, 3)
    assert isinstance(spent, Refusal) and spent.code is Code.EXHAUSTED
    clock.over(4)
    assert isinstance(ask(device, agent, 3), Answers)
    assert [event.blocks for event in agent.ledger.history()] == [("time-0",), ("time-4",)]


def test_a_refused_round_that_is_asked_again_teaches_nothing_more(device: Device, clock: Clock) -> None:
    agent = device.start()
    device.agree(agent, rounds=9)
    students = []
    for round in (1, 2, 3, 3, 3):
        ask(device, agent, round)
        students.append(agent.ledger.state("student"))
    assert len(set(students)) == 3 and students[2:] == students[2:3] * 3


def test_the_noise_is_that_of_the_rounds_of_one_block(device: Device) -> None:
    policy, many = device.start().policy, device.offer(rounds=40)
    whole = draw_up(policy.model_copy(update={"block_rounds": None}), many, Past(), "new").events[0]
    found = draw_up(policy, many, Past(), "new").events
    assert found == draw_up(policy, device.offer(rounds=2), Past(), "new").events
    assert whole.noise_multiplier > 2 * found[0].noise_multiplier


def test_a_lifetime_limit_takes_the_noise_of_all_rounds(device: Device) -> None:
    policy = device.start().policy.model_copy(update={"lifetime_epsilon": 3.0})
    few, many = (draw_up(policy, device.offer(rounds=n), Past(), "new").events[0] for n in (2, 40))
    assert many.noise_multiplier > 2 * few.noise_multiplier


def test_another_number_of_rounds_a_block_needs_another_contract(device: Device, clock: Clock) -> None:
    agent = device.start()
    device.agree(agent, rounds=9)
    agent.close()
    device.decide(block_rounds=5)
    reply = ask(device, device.start(), 1)
    assert isinstance(reply, Refusal) and reply.code is Code.CONTRACT


def test_what_is_not_dp_sgd_is_charged_to_all_blocks(new_device: NewDevice, clock: Clock) -> None:
    device = living(new_device, {"mechanism": "gaussian", "accept_low_utility": True, "block_rounds": 1})
    agent = device.start()
    device.agree(agent, rounds=2)
    for round in (1, 2):
        clock.over(round)
        assert isinstance(ask(device, agent, round), Answers)
    (event,) = agent.ledger.history()
    assert event.blocks == ("all",) and event.steps == 2


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_a_round_that_crashed_is_entered_again_with_its_own_block_however_late(
    device: Device, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(device, 0)
    fill(device, 1)
    agent = device.start()
    device.agree(agent, rounds=9)
    with monkeypatch.context() as broken:
        broken.setattr(lineage, "write_atomic", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        assert isinstance(ask(device, agent, 1), Refusal)
    agent.close()
    clock.over(7)
    again = device.start()
    again.look()  # which forgets what is over
    assert isinstance(ask(device, again, 1), Answers)
    assert len(again.learner.data.y) == 20
    assert [(event.blocks, event.steps) for event in again.ledger.history()] == [(("time-0",), 2)]


def test_a_student_that_a_kill_kept_from_its_file_is_there_after_the_next_start(device: Device, clock: Clock) -> None:
    agent = device.start()
    device.agree(agent, rounds=9)
    ask(device, agent, 1)
    agent.close()  # before the file was written
    _exporting(device.start())
    found = Model.open(device.base / "state" / "student.safetensors")
    assert found.predict(examples(3, seed=0)[0]).shape == (3, 2)


# -- what is served ----------------------------------------------------------------------------------------------------


def serving(new_device: NewDevice, **serve: Any) -> Device:
    live = {"held_out": 0.3}
    return living(new_device, {"noise": "simulation", "seed": 3}, live=live, serve={"keep": 2, **serve})


def live_on(device: Device, clock: Clock, blocks: int = 3) -> list[bytes]:
    agent = device.start()
    device.agree(agent, rounds=9)
    upkeep, replies = Upkeep(agent, device.base, device.console.append), []
    for block in range(blocks):
        fill(device, block, 60)
        clock.over(block)
        replies.append(device.ask(agent, device.plan(block + 1, soft=0.5)))
        agent.learner.model.save(agent.state / "student.safetensors")
        upkeep.look()
        upkeep.look()
    agent.close()
    return replies


def test_every_student_becomes_a_version_and_a_good_one_is_served(new_device: NewDevice, clock: Clock) -> None:
    device = serving(new_device, gate=ANYTHING)
    live_on(device, clock)
    versions, stack = Versions(device.base / "state").all(), Serving(device.base / "state").stack()
    assert [one.number for one in versions] == [one.version.number for one in stack] == [2, 3]
    assert versions[-1].epsilon is not None and 0 < float(versions[-1].epsilon) <= 3.0
    assert Path(Serving(device.base / "state").path(stack[-1])).exists()


def test_a_version_that_was_rolled_back_stays_so_after_a_restart(new_device: NewDevice, clock: Clock) -> None:
    device = serving(new_device, gate=ANYTHING)
    live_on(device, clock, blocks=2)
    served = Serving(device.base / "state")
    assert served.rollback().version.number == 1
    agent = device.start()
    Upkeep(agent, device.base, device.console.append).look()
    assert served.served().version.number == 1
    agent.close()


def test_what_trains_and_answers_is_the_same_whatever_is_served(new_device: NewDevice, clock: Clock) -> None:
    lives = [live_on(serving(new_device, gate=gate), clock) for gate in (ANYTHING, {"max_bytes": 1})]
    assert lives[0] == lives[1]


def test_no_held_out_record_is_learned(new_device: NewDevice, clock: Clock) -> None:
    device = serving(new_device)
    fill(device, 0, 200)
    agent = device.start()
    device.agree(agent, rounds=9)
    ask(device, agent, 1)
    held = {row.numpy().tobytes() for row in agent.learner.model.inputs(agent.held_out()[0].x)}
    learned = {row.numpy().tobytes() for row in agent.learner.data.x}
    assert len(held) + len(learned) == 200 and not held & learned


@pytest.mark.parametrize("kind", ["adwin", "page_hinkley"])
def test_a_change_of_the_records_is_told_and_new_records_alone_judge_from_then_on(
    new_device: NewDevice, clock: Clock, kind: str
) -> None:
    pytest.importorskip("river")
    device = serving(new_device, drift=kind, gate=ANYTHING)
    agent = device.start()
    device.agree(agent, rounds=9)
    upkeep = Upkeep(agent, device.base, device.console.append)
    fill(device, 0, 400)
    clock.over(0)
    ask(device, agent, 1)
    agent.learner.model.save(agent.state / "student.safetensors")
    upkeep.look()
    x, _ = examples(2000, seed=7)
    y = agent.learner.model.predict(x).argmax(axis=1)
    for part, labels in enumerate((y, 1 - y)):  # what the student says, and then the opposite
        time = np.full(2000, PERIOD * (part + 2.0))
        np.savez(device.base / "inbox" / f"more-{part}.npz", x=x, y=labels, time=time)
        upkeep.look()
        assert any("have changed" in line for line in device.console) == (part == 1)
    assert 0 < len(agent.held_out(upkeep._since)[0]) < 700 < len(agent.held_out()[0])


def test_a_watch_without_its_package_is_told(new_device: NewDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river", None)
    device = serving(new_device, drift="adwin")
    with pytest.raises(FedkdError) as caught:
        Upkeep(device.start(), device.base, device.console.append)
    assert "fedkd[drift]" in caught.value.fix


# -- what an owner may write -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"source": "npz", "path": "data.npz"}},
        {"live": None},
        {"live": {"source": "inbox", "by": "hash"}},
        {"block": "monday"},
        {"live": {"source": "inbox", "held_out": 0}, "serve": {}},
        {"live": None, "data": {"source": "npz", "path": "data.npz"}, "serve": {}},
    ],
)
def test_settings_that_contradict_each_other_are_refused(device: Device, changes: dict[str, Any]) -> None:
    path = device.base / "client.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    with pytest.raises(ConfigError):
        device.start()
