"""Charged before released: whatever crashes, nothing is under-counted, and nothing is released twice for one charge."""

from __future__ import annotations

import json
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.agent
import fedkd.privacy.ledger
from client.learner import Learner
from client.lineage import Lineage
from fedkd import wire
from fedkd.errors import BudgetExceeded, FedkdError, LedgerError
from fedkd.privacy.accounting import Pld
from fedkd.privacy.chain import Chain
from fedkd.privacy.contract import Contract, Refused
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.filters import RenyiFilter
from fedkd.privacy.keys import Held, KeyFile
from fedkd.privacy.ledger import Ledger
from fedkd.tensors import digest
from fedkd.wire import Agreement, Answers, Code, Learned, Refusal
from tests import builders

KEY = bytes(range(200, 232))
PLAN, DATA = "a" * 64, "d" * 64
EVENT = PrivacyEvent("dp_sgd", 5.0, 1.0, 2)


def contract(run: str = "run-1", *, rounds: int = 3, epsilon: float = 3.0) -> Contract:
    return builders.contract(EVENT, run=run, rounds=rounds, epsilon=epsilon)


@pytest.fixture
def open_ledger(tmp_path: Path) -> Iterator[Callable[[], Ledger]]:
    """Opens the one ledger of this test; called again, it opens it anew."""
    opened: list[Ledger] = []

    def again(client: str = "alice") -> Ledger:
        for ledger in opened:
            ledger.close()
        opened[:] = [Ledger(tmp_path / "ledger.sqlite", client)]
        return opened[0]

    yield again
    for ledger in opened:
        ledger.close()


def reserve(ledger: Ledger, round: int = 1, *, run: str = "run-1", plan: str = PLAN, data: str = DATA) -> Any:
    return ledger.reserve(run, round, plan, data, lambda: os.urandom(32))


def spent(ledger: Ledger) -> float:
    return Pld().spent(ledger.history(), 1e-5).epsilon


def answers(reply: bytes) -> Answers:
    return wire.decode(reply, Answers)


def refusal(reply: bytes) -> Code:
    return wire.decode(reply, Refusal).code


# -- the order of things ----------------------------------------------------------------------------------------------


def test_the_charge_is_on_disk_before_private_data_is_touched(new_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device, seen = new_device(), []

    def touch(self: Learner, *arguments: Any) -> None:
        with sqlite3.connect(device.ledger) as other:  # another connection sees only what has been committed
            rows = other.execute("SELECT body FROM entries ORDER BY seq").fetchall()
            seen.append([json.loads(body)["kind"] for (body,) in rows])
        other.close()

    monkeypatch.setattr(Learner, "learn", touch)
    agent = device.start()
    device.agree(agent)
    device.ask(agent, device.plan())
    agent.close()
    assert seen == [["contract", "reserve"]]


def test_bytes_are_in_the_outbox_and_the_commit_on_disk_before_the_reply(
    new_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, order = new_device(), []
    write, put = fedkd.privacy.ledger.write_atomic, Chain.append

    def spy_write(path: Path, data: bytes) -> None:
        order.append("outbox")
        write(path, data)

    def spy_append(self: Chain, body: Any) -> str:
        order.append(body["kind"])
        return put(self, body)

    monkeypatch.setattr(fedkd.privacy.ledger, "write_atomic", spy_write)
    monkeypatch.setattr(Chain, "append", spy_append)
    agent = device.start()
    device.agree(agent)
    reply = device.ask(agent, device.plan())
    agent.close()
    assert order == ["contract", "reserve", "outbox", "commit"]
    assert (device.base / "state" / "outbox" / digest(reply)).read_bytes() == reply


def test_a_reservation_survives_the_loss_of_power(open_ledger: Any) -> None:
    ledger = open_ledger()
    settings = [ledger._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
    assert settings == [2, "wal"]  # 2 is FULL
    assert ledger._db.execute("PRAGMA secure_delete").fetchone()[0] == 1


def test_a_reservation_stays_charged_for_ever(open_ledger: Any) -> None:
    ledger = open_ledger()
    ledger.register(contract())
    reserve(ledger, 1)
    once = spent(ledger)
    assert once > 0
    assert spent(open_ledger()) == once
    reserve(open_ledger(), 2)
    assert spent(open_ledger()) > once
    assert [event["state"] for event in open_ledger().export()["events"]] == ["reserved", "reserved"]


# -- crashes ----------------------------------------------------------------------------------------------------------


def stop() -> None:
    os._exit(9)


def after_reserve(patch: pytest.MonkeyPatch) -> None:
    original = Ledger.reserve
    patch.setattr(Ledger, "reserve", lambda *arguments: (original(*arguments), stop()))


def after_compute(patch: pytest.MonkeyPatch) -> None:
    original = Learner.answer
    patch.setattr(Learner, "answer", lambda *arguments: (original(*arguments), stop()))


def after_outbox(patch: pytest.MonkeyPatch) -> None:
    original = fedkd.privacy.ledger.write_atomic
    patch.setattr(fedkd.privacy.ledger, "write_atomic", lambda path, data: (original(path, data), stop()))


def before_commit(patch: pytest.MonkeyPatch) -> None:
    original = Chain.append
    patch.setattr(Chain, "append", lambda self, body: stop() if body["kind"] == "commit" else original(self, body))


def after_commit(patch: pytest.MonkeyPatch) -> None:
    """Committed, but the key is still there."""
    original = Chain.transaction

    @contextmanager
    def transaction(self: Chain) -> Iterator[None]:
        with original(self):
            yield
        if any(self.bodies("commit")):
            stop()

    patch.setattr(Chain, "transaction", transaction)


def before_reply(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lineage, "tidy", lambda self: stop())


CRASHES = [after_reserve, after_compute, after_outbox, before_commit, after_commit, before_reply]


def in_a_process_that_dies(work: Callable[[], None]) -> None:
    """Run ``work`` in a forked process, which must come to ``stop``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def answer_once(device: Any, plan: Any) -> tuple[bytes, float, int]:
    """The reply, epsilon spent, and the number of charges."""
    agent = device.start()
    assert isinstance(device.agree(agent), Agreement)
    reply = device.ask(agent, plan)
    events = agent.ledger.history()
    agent.close()
    return reply, Pld().spent(events, 1e-5).epsilon, len(events)


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_costs_nothing_more_and_gives_the_identical_bytes(
    crash: Callable[[pytest.MonkeyPatch], None], new_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, undisturbed = new_device(), new_device()
    plan = device.plan(1, soft=0.25)

    def die() -> None:
        client.agent.fresh_key = lambda: KEY
        patch = pytest.MonkeyPatch()
        agent = device.start()
        device.agree(agent)
        crash(patch)
        device.ask(agent, plan)

    in_a_process_that_dies(die)
    resumed = answer_once(device, plan)  # whose own new key would be another
    monkeypatch.setattr(client.agent, "fresh_key", lambda: KEY)
    assert resumed == answer_once(undisturbed, plan)
    assert resumed[2] == 1
    assert not find(KEY, device.base)


def test_a_student_continues_from_its_file_with_weights_momentum_and_labels(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    device.ask(agent, device.plan(1, soft=0.25))
    before = agent.learner.save()
    assert agent.learner.velocity
    agent.close()
    again = device.start().learner
    assert again.save() == before and again.velocity


@pytest.mark.parametrize("step", [(Learner, "learn"), (Learner, "answer"), (Lineage, "save"), (Ledger, "commit")])
def test_an_error_after_the_charge_costs_nothing_more_and_a_retry_gives_the_identical_bytes(
    step: tuple[type, str], new_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.agent, "fresh_key", lambda: KEY)
    device, undisturbed = new_device(), new_device()
    owner, name = step
    original = getattr(owner, name)

    def fails_after(self: Any, *arguments: Any) -> None:
        if name != "commit":
            original(self, *arguments)
        raise OSError("no space left on device")

    agent = device.start()
    device.agree(agent)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails_after)
        assert refusal(device.ask(agent, device.plan())) is Code.FAILED
    reply, charges = device.ask(agent, device.plan()), len(agent.ledger.export()["events"])
    agent.close()
    assert (reply, charges) == (answer_once(undisturbed, device.plan())[0], 1)


def leaves(self: Learner, *arguments: Any) -> None:
    raise SystemExit(3)


def test_a_key_that_is_entered_again_meets_the_student_it_met_before(
    new_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two outputs under one noise: their difference would be private data, bare."""
    monkeypatch.setattr(client.agent, "fresh_key", lambda: KEY)
    device, undisturbed = new_device(), new_device()
    agent = device.start()
    device.agree(agent)
    restored: list[None] = []

    def restore_once(self: Lineage) -> None:
        restored.append(None)
        if len(restored) > 1:  # the student has been trained, and cannot be brought back
            raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "answer", leaves)
        assert refusal(device.ask(agent, device.plan())) is Code.FAILED
        patch.setattr(Lineage, "restore", restore_once)
        assert refusal(device.ask(agent, device.plan())) is Code.FAILED
    assert len(restored) == 2
    assert device.ask(agent, device.plan()) == answer_once(undisturbed, device.plan())[0]


def test_a_failed_round_does_not_change_the_student(new_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    before = agent.learner.save()
    for owner, name, answer in ((Learner, "answer", True), (Lineage, "save", False)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *arguments: 1 / 0)
            assert refusal(device.ask(agent, device.plan(1, soft=0.9, answer=answer))) is Code.FAILED
        assert agent.learner.save() == before


# -- retries, other plans, other rounds -------------------------------------------------------------------------------


def test_a_retry_gives_the_stored_bytes_without_touching_data(new_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    first = device.ask(agent, device.plan())
    monkeypatch.setattr(Learner, "learn", lambda *arguments: pytest.fail("private data was touched"))
    assert device.ask(agent, device.plan()) == first
    agent.close()
    assert answer_once(device, device.plan())[::2] == (first, 1)


def test_another_plan_for_an_answered_round_is_refused(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    answers(device.ask(agent, device.plan(1)))
    for other in (device.plan(1, soft=0.9), device.plan(1, temperature=2.0)):
        assert refusal(device.ask(agent, other)) is Code.PLAN
    assert len(agent.ledger.export()["events"]) == 1


def test_another_plan_for_an_open_reservation_is_refused(open_ledger: Any) -> None:
    ledger = open_ledger()
    ledger.register(contract())
    reserve(ledger)
    with pytest.raises(Refused) as refused:
        reserve(ledger, plan="b" * 64)
    assert refused.value.code is Code.PLAN
    assert len(ledger.export()["events"]) == 1


def test_rounds_go_forward_only(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    answers(device.ask(agent, device.plan(2)))
    assert refusal(device.ask(agent, device.plan(1))) is Code.ORDER
    answers(device.ask(agent, device.plan(3)))
    assert refusal(device.ask(agent, device.plan(4))) is Code.ROUNDS


def test_an_abandoned_reservation_is_never_entered_again(open_ledger: Any) -> None:
    ledger = open_ledger()
    ledger.register(contract())
    reserve(ledger, 1)
    reserve(ledger, 2)
    with pytest.raises(Refused) as refused:
        reserve(ledger, 1)
    assert refused.value.code is Code.ORDER


def test_a_reservation_is_committed_once(open_ledger: Any, tmp_path: Path) -> None:
    ledger = open_ledger()
    ledger.register(contract())
    reservation = reserve(ledger)
    ledger.commit(reservation, b"answer", {})
    with pytest.raises(LedgerError, match="no open reservation"):
        ledger.commit(reservation, b"another answer", {})
    with pytest.raises(Refused):
        reserve(ledger)
    assert ledger.released("run-1", 1, PLAN) == b"answer"
    assert len(ledger.export()["events"]) == 1


def test_every_reservation_has_a_key_of_its_own(open_ledger: Any) -> None:
    ledger = open_ledger()
    ledger.register(contract())
    first = reserve(ledger, 1)
    assert reserve(ledger, 1).key == first.key
    assert reserve(ledger, 2).key != first.key


def test_every_round_of_a_deployed_agent_draws_its_key_from_the_operating_system(
    new_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[bytes] = []
    monkeypatch.setattr(client.agent, "fresh_key", lambda: drawn.append(os.urandom(32)) or drawn[-1])
    device = new_device()
    agent = device.start()
    device.agree(agent)
    replies = {device.ask(agent, device.plan(round)) for round in (1, 2, 3)}
    agent.close()
    assert len(replies) == len(set(drawn)) == 3


def test_simulated_keys_differ_by_client_run_and_round(new_device: Any) -> None:
    policy = {"noise": "simulation", "seed": 1}
    agents = [new_device(policy=policy, name=name).start() for name in ("alice", "bob")]
    plans = [new_device().plan(round, run=run) for run in ("run-1", "run-2") for round in (1, 2)]
    assert len({agent._new_key(plan) for agent in agents for plan in plans}) == 8


# -- the key ----------------------------------------------------------------------------------------------------------


def find(secret: bytes, folder: Path) -> list[str]:
    """Files below a folder that hold the secret, as bytes or as text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(form in path.read_bytes() for form in (secret, secret.hex().encode()))]


def test_the_key_is_erased_at_commit(new_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device, there_before = new_device(), []
    monkeypatch.setattr(client.agent, "fresh_key", lambda: KEY)
    original = Learner.learn

    def look(*arguments: Any) -> None:
        there_before.extend(find(KEY, device.base))
        original(*arguments)

    monkeypatch.setattr(Learner, "learn", look)
    agent = device.start()
    device.agree(agent)
    device.ask(agent, device.plan())
    found = find(KEY, device.base)  # while the database is open, with its -wal and -shm
    agent.close()
    assert there_before == ["key"]  # never in the ledger, which others may read and copy
    assert not found and not find(KEY, device.base)


def test_the_key_is_overwritten_before_its_file_is_removed(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "key")
    keys.write(Held("run-1", 1, DATA, KEY))
    os.link(tmp_path / "key", tmp_path / "disk")  # what an undelete would find
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    keys.write(Held("run-1", 2, DATA, os.urandom(32)))
    assert not find(KEY, tmp_path)
    keys.erase()
    assert keys.read() is None and not (tmp_path / "key").exists()


def test_a_damaged_key_is_no_key(open_ledger: Any, tmp_path: Path) -> None:
    ledger = open_ledger()
    ledger.register(contract())
    reservation = reserve(ledger)
    (tmp_path / "key").write_bytes(b"{")
    with pytest.raises(Refused) as refused:
        reserve(ledger)
    assert refused.value.code is Code.ORDER
    with pytest.raises(LedgerError, match="no open reservation"):
        ledger.commit(reservation, b"answer", {})


def test_a_key_that_a_crash_left_is_erased_when_the_ledger_is_opened(new_device: Any) -> None:
    device = new_device()

    def die() -> None:
        client.agent.fresh_key = lambda: KEY
        agent = device.start()
        device.agree(agent)
        after_commit(pytest.MonkeyPatch())
        device.ask(agent, device.plan())

    in_a_process_that_dies(die)
    assert find(KEY, device.base)
    device.start()
    assert not find(KEY, device.base)


@pytest.mark.parametrize("change", [lambda x, y: (x[:-1], y[:-1]), lambda x, y: (x, 1 - y)], ids=["fewer", "labels"])
def test_other_data_never_meets_the_same_noise(change: Any, new_device: Any, private_examples: Any) -> None:
    device = new_device()

    def die() -> None:
        agent = device.start()
        device.agree(agent)
        after_reserve(pytest.MonkeyPatch())
        device.ask(agent, device.plan())

    in_a_process_that_dies(die)
    x, y = private_examples(20, 1)
    device.hold(*change(x, y))
    agent = device.start()
    assert refusal(device.ask(agent, device.plan(1))) is Code.FAILED
    answers(device.ask(agent, device.plan(2)))
    assert len(agent.ledger.export()["events"]) == 2


# -- the budget -------------------------------------------------------------------------------------------------------


def test_a_schedule_that_does_not_fit_is_never_registered(open_ledger: Any) -> None:
    ledger = open_ledger()
    fits = Pld().spent([EVENT] * 3, 1e-5).epsilon
    with pytest.raises(Refused) as refused:
        ledger.register(contract(rounds=3, epsilon=fits - 1e-4))
    assert refused.value.code is Code.EXHAUSTED
    assert ledger.contract("run-1") is None
    ledger.register(contract(rounds=3, epsilon=fits))


def test_a_charge_over_the_limit_is_refused_and_not_made(open_ledger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = open_ledger()
    ledger.register(contract())
    reserve(ledger, 1)
    tighter = contract(epsilon=spent(ledger) + 1e-4)
    monkeypatch.setattr(ledger, "contract", lambda run: tighter)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, 2)
    assert len(ledger.export()["events"]) == 1


def test_two_runs_share_the_limit_of_a_lifetime(new_device: Any) -> None:
    device = new_device(policy={"epsilon": 1.0})
    agent = device.start()
    device.agree(agent, run="run-1", rounds=2)
    answers(device.ask(agent, device.plan(1, run="run-1")))
    assert isinstance(device.agree(agent, run="run-2", rounds=2), Agreement)
    for round in (1, 2):
        answers(device.ask(agent, device.plan(round, run="run-2")))
    events = agent.ledger.history()
    assert [event.steps for event in events] == [2, 4] and events[1].noise_multiplier > events[0].noise_multiplier
    assert 0.95 < Pld().spent(events, 1e-5).epsilon <= 1.0
    # what the first contract had not used has been given to the second
    assert refusal(device.ask(agent, device.plan(2, run="run-1"))) is Code.NO_CONTRACT
    assert device.agree(agent, run="run-3") == Refusal("alice", Code.EXHAUSTED)


def test_agreements_grow_nothing_and_close_nothing(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    answers(device.ask(agent, device.plan(1)))
    head = agent.ledger.export()["head"]
    for run in range(20):
        assert isinstance(device.agree(agent, run=f"never-used-{run}"), Agreement)
    assert agent.ledger.export()["head"] == head
    answers(device.ask(agent, device.plan(2)))
    assert refusal(device.ask(agent, device.plan(1, run="never-used-3"))) is Code.NO_CONTRACT


def test_a_run_that_has_been_closed_is_never_agreed_to_again(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    for run in ("run-1", "run-2"):
        device.agree(agent, run=run)
        answers(device.ask(agent, device.plan(1, run=run)))
    assert device.agree(agent, run="run-1") == Refusal("alice", Code.CONTRACT)


def test_an_agreement_that_has_come_to_be_too_much_is_not_entered(open_ledger: Any) -> None:
    ledger = open_ledger()
    fits = Pld().spent([EVENT] * 4, 1e-5).epsilon
    ledger.register(contract("run-1", epsilon=fits))
    reserve(ledger, 1)
    ledger.register(contract("run-2", epsilon=fits))  # three more rounds
    reserve(ledger, 2)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, 1, run="run-2")
    assert reserve(ledger, 3).round == 3


def test_under_poisson_sampling_a_contract_that_follows_answers_is_limited_by_a_filter(new_device: Any) -> None:
    """PLD holds for schedules fixed in advance; a second one is chosen after the first one's answers."""
    device = new_device(policy={"sample_rate": 0.5, "epsilon": 8.0, "min_noise": 4.0})
    agent = device.start()
    device.agree(agent, run="run-1")
    answers(device.ask(agent, device.plan(1, run="run-1")))
    device.decide(sample_rate=0.5, epsilon=2.0)
    agent.close()
    agent = device.start()
    assert isinstance(device.agree(agent, run="run-2"), Agreement)
    second = agent.ledger.contract("run-2")
    whole = [*agent.ledger.history(), *second.schedule(3)]
    accountant = agent.ledger.past().accountant(second.events, 1e-5, another=True)
    assert isinstance(accountant, RenyiFilter)
    assert accountant.spent(whole, 1e-5).epsilon <= 2.0 < accountant.spent(whole, 1e-5).epsilon + 0.01
    assert Pld().spent(whole, 1e-5).epsilon < 2.0


def test_the_ledger_itself_refuses_a_sampled_contract_that_only_a_tight_composition_would_admit(
    open_ledger: Any,
) -> None:
    ledger, sampled = open_ledger(), replace(EVENT, sample_rate=0.5)
    tight = Pld().spent([sampled] * 6, 1e-5).epsilon
    ledger.register(builders.contract(sampled, run="run-1", epsilon=tight))
    for round in (1, 2, 3):
        reserve(ledger, round)
    with pytest.raises(Refused):
        ledger.register(builders.contract(sampled, run="run-2", epsilon=tight))
    ledger.register(builders.contract(EVENT, run="run-2", epsilon=20.0))


def test_an_exhausted_client_touches_no_private_data_and_still_learns_from_labels(
    new_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    monkeypatch.setattr(agent.ledger, "_fits", lambda contract, rounds, new: False)
    monkeypatch.setattr(Learner, "learn", lambda *arguments: pytest.fail("private data was touched"))
    before = agent.learner.answer()
    assert refusal(device.ask(agent, device.plan(1, soft=0.95))) is Code.EXHAUSTED
    after = agent.learner.answer()
    assert (after[0, :, 1] > before[0, :, 1]).all()
    assert agent.ledger.history() == []


def test_learning_from_labels_alone_costs_nothing(new_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = new_device()
    agent = device.start()
    monkeypatch.setattr(Learner, "learn", lambda *arguments: pytest.fail("private data was touched"))
    reply = device.ask(agent, device.plan(1, soft=0.9, answer=False))
    assert wire.decode(reply, Learned) == Learned("run-1", "alice", 1)
    assert agent.ledger.history() == []


# -- the file ---------------------------------------------------------------------------------------------------------


def written(open_ledger: Any) -> Ledger:
    ledger = open_ledger()
    ledger.register(contract())
    for round in (1, 2):
        ledger.commit(reserve(ledger, round), b"answer %d" % round, {"student": "s"})
    return ledger


@pytest.mark.parametrize(
    "statement", ["UPDATE entries SET body = '{}' WHERE seq = 2", "DELETE FROM entries WHERE seq = 5"]
)
def test_the_ledger_is_append_only(statement: str, open_ledger: Any) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        written(open_ledger)._db.execute(statement)


def test_altered_bytes_in_the_outbox_are_not_sent(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    reply = device.ask(agent, device.plan())
    (device.base / "state" / "outbox" / digest(reply)).write_bytes(reply[:-1] + b"\x01")
    assert refusal(device.ask(agent, device.plan())) is Code.FAILED


def test_the_ledger_of_another_client_is_refused(open_ledger: Any) -> None:
    open_ledger("alice")
    with pytest.raises(LedgerError, match="belongs to client 'alice'"):
        open_ledger("bob")


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "identity").write_bytes(bytes(32))
    (tmp_path / "ledger.sqlite").write_bytes(np.random.default_rng(0).bytes(9000))
    with pytest.raises(LedgerError, match="cannot be read"):
        Ledger(tmp_path / "ledger.sqlite", "alice")


def test_one_state_directory_has_one_agent(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    with pytest.raises(FedkdError, match="another agent"):
        device.start()
    agent.close()
    device.start().close()


def test_a_ledger_on_a_read_only_medium_can_be_read(open_ledger: Any, tmp_path: Path) -> None:
    expected = written(open_ledger).export()
    open_ledger().close()
    folder = tmp_path / "medium"
    folder.mkdir()
    (folder / "ledger.sqlite").write_bytes((tmp_path / "ledger.sqlite").read_bytes())
    with read_only(folder):
        assert Ledger.read(folder / "ledger.sqlite") == expected
    (folder / "ledger.sqlite-wal").write_bytes(b"newer entries")
    with read_only(folder), pytest.raises(LedgerError, match="not a readable ledger"):
        Ledger.read(folder / "ledger.sqlite")


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """As a medium that cannot be written to looks to SQLite, also to the superuser."""
    original = sqlite3.connect

    def connect(address: str, **options: Any) -> Any:
        if "immutable" not in address:
            raise sqlite3.OperationalError("unable to open database file")
        return original(address, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fedkd.privacy.ledger.sqlite3, "connect", connect)
        yield
