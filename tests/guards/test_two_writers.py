"""Two processes on one ledger: what keeps them apart is in the ledger itself, not only in the agent's lock."""

from __future__ import annotations

import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedkd.errors import BudgetExceeded, LedgerError
from fedkd.privacy.accounting import Pld
from fedkd.privacy.chain import COMMIT, RESERVE, Chain
from fedkd.privacy.contract import Refused
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.ledger import Ledger
from fedkd.tensors import digest
from fedkd.wire import Code
from tests import builders

EVENT = PrivacyEvent("dp_sgd", 5.0, 1.0, 2)
DATA = "d" * 64
FIT = 12
"""Rounds that the limit has room for, of twice as many that are tried."""


def opened(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.sqlite", "alice")


def start(work: Callable[[], None]) -> int:
    """Run it in a forked process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks beside threads
        child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def reserve(ledger: Ledger, round: int, plan: str) -> Any:
    return ledger.reserve("run-1", round, plan, DATA, lambda: os.urandom(32))


def answer_until_exhausted(folder: Path, plan: str) -> None:
    """Rounds one after the other, in a plan of this process's own; what the other one has begun is left to it."""
    with closing(opened(folder)) as ledger:
        agreed = ledger.contract("run-1")
        ledger.contract = lambda run: replace(agreed, rounds=2 * FIT)  # the limit alone is to hold them
        for round in range(1, 2 * FIT + 1):
            try:
                reservation = reserve(ledger, round, plan)
                ledger.commit(reservation, reservation.key, {"student": plan})
            except BudgetExceeded:
                return
            except (Refused, LedgerError):
                continue  # the other process's round, or one that it has gone past


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    epsilon = Pld().spent([EVENT] * FIT, 1e-5).epsilon
    with closing(opened(tmp_path)) as ledger:
        ledger.register(builders.contract(EVENT, rounds=FIT, epsilon=epsilon))
        reserve(ledger, 1, "a" * 64)
    return tmp_path


def test_two_processes_never_charge_more_than_the_limit_and_leave_one_chain(folder: Path) -> None:
    children = [start(lambda plan=plan: answer_until_exhausted(folder, plan)) for plan in ("a" * 64, "b" * 64)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    with closing(opened(folder)) as ledger:
        assert ledger.verify() == 1 + sum(1 for _ in ledger._chain.bodies(RESERVE, COMMIT))
        rounds = Counter(body["round"] for body in ledger._chain.bodies(RESERVE))
        commits = list(ledger._chain.bodies(COMMIT))
        history, head = ledger.history(), ledger.export()["head"]
    assert max(rounds.values()) == 1 and len(rounds) == FIT
    assert sum(event.steps for event in history) == len(rounds) * EVENT.steps
    assert Pld().spent(history, 1e-5).epsilon <= Pld().spent([EVENT] * FIT, 1e-5).epsilon
    assert {body["round"] for body in commits} <= set(rounds)
    for body in commits:
        assert digest((folder / "outbox" / body["digest"]).read_bytes()) == body["digest"]
    assert Ledger.read(folder / "ledger.sqlite")["head"] == head


def test_two_processes_that_enter_one_reservation_release_it_once(folder: Path) -> None:
    with closing(opened(folder)) as one, closing(opened(folder)) as other:
        first, second = (reserve(ledger, 1, "a" * 64) for ledger in (one, other))
        assert first == second
        one.commit(first, b"answer", {})
        with pytest.raises(LedgerError, match="no open reservation"):
            other.commit(second, b"another", {})
        with pytest.raises(Refused) as refused:
            reserve(other, 2, "a" * 64) and reserve(one, 1, "a" * 64)
        assert refused.value.code is Code.ORDER
        assert one.released("run-1", 1, "a" * 64) == other.released("run-1", 1, "a" * 64) == b"answer"


def test_a_commit_erases_its_own_key_and_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its commit and the erasure another process may have begun the next round."""
    with closing(opened(folder)) as one, closing(opened(folder)) as other:
        first = reserve(one, 1, "a" * 64)
        begun: list[Any] = []
        locked = Chain.locked

        @contextmanager
        def meanwhile(chain: Chain) -> Iterator[None]:
            if chain is one._chain and not begun and any(chain.bodies(COMMIT)):
                begun.append(reserve(other, 2, "a" * 64))
            with locked(chain):
                yield

        monkeypatch.setattr(Chain, "locked", meanwhile)
        one.commit(first, b"answer", {})
        other.commit(begun[0], b"next answer", {})
        assert [body["round"] for body in one._chain.bodies(COMMIT)] == [1, 2]
        assert not (folder / "key").exists()
