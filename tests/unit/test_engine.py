"""Hosts of agents: who waits for whom, and what happens when a process dies or a run is given up."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedkd import config
from fedkd.config import Scenario
from fedkd.distill.trainer import Lesson
from fedkd.errors import FedkdError
from simulations import engine, together, workers
from simulations.engine import Engine
from simulations.poison import HONEST
from simulations.prepare import prepare
from simulations.split import client_names
from simulations.together import Meeting, Room, tables


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("run")
    scenario = config.load(Scenario, None, ["clients=4", "proxy.size=60", "proxy.tune_size=0"])
    prepare(scenario, out, Path.cwd())
    return {name: out / "clients" / name for name in client_names(scenario)}


@contextmanager
def opened(folders: dict[str, Path], count: int, **settings: Any) -> Iterator[Engine]:
    test = next(iter(folders.values())).parent.parent / "test.npz"
    with closing(Engine(folders, test, count, **settings)) as found:
        found.map("open")
        yield found


# -- a meeting ---------------------------------------------------------------------------------------------------------


def test_nobody_is_trained_before_all_have_come_or_ended() -> None:
    trained = threading.Event()
    meeting = Meeting(3, trained.set)
    announced, go = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        meeting.arrived()
        announced.release()
        assert trained.wait(60)

    with meeting.pool() as pool:
        with meeting.gathered():
            calls = [pool.submit(wait), pool.submit(wait), pool.submit(go.wait, 60)]
        assert announced.acquire(timeout=60) and announced.acquire(timeout=60)
        assert not trained.is_set()  # two wait, but a third may still come
        go.set()
        assert [call.result(60) for call in calls] == [None, None, True]


def test_those_who_have_no_thread_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "MOST_THREADS", 2)
    go = threading.Semaphore(0)
    meeting = Meeting(4, lambda: go.release(2))

    def call() -> None:
        meeting.arrived()
        assert go.acquire(timeout=60)

    with meeting.pool() as pool, meeting.gathered():
        calls = [pool.submit(call) for _ in range(4)]
    assert all(one.result() is None for one in calls)


def test_tables_do_not_depend_on_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[dict[str, Path]]] = []
    monkeypatch.setattr(engine, "Workers", lambda hands, *_, **__: made.append(list(hands)))
    folders = {f"client-{index:03}": Path(str(index)) for index in range(3 * together.TABLE + 2)}
    for count in (2, 3):
        engine._hosts(folders, Path(), count, HONEST, together=True)
    assert [len(hands) for hands in made] == [2, 3]
    for hands in made:
        assert sorted(table for hand in hands for table in tables(list(hand))) == tables(list(folders))


# -- a worker process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cohort", [False, True])
def test_every_call_to_a_worker_that_has_died_fails(
    cohort: bool, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "TABLE", 2)
    with opened(folders, 2, together=cohort) as found:
        assert isinstance(found._hosts, engine.Workers)
        victim = found._hosts._workers[0]
        assert victim._process.pid is not None
        os.kill(victim._process.pid, signal.SIGKILL)
        with pytest.raises(FedkdError, match="a worker process has died"):
            found.map("accuracy")
        with pytest.raises(FedkdError, match="a worker process has died"):
            found.map("accuracy")


def test_what_a_call_raises_in_a_worker_comes_back(folders: dict[str, Path]) -> None:
    with opened(folders, 2) as found, pytest.raises(FedkdError) as raised:
        found.map("export", lambda client: None)
    assert "TypeError" in raised.value.what


def test_a_worker_whose_main_process_is_gone_gives_up_those_who_wait(folders: dict[str, Path]) -> None:
    arrived = threading.Event()
    room = Room(folders, next(iter(folders.values())).parent.parent / "test.npz", HONEST, arrived.set)
    work = object.__new__(Lesson)
    with closing(room), ThreadPoolExecutor(1) as pool:

        def wait() -> None:
            with room._baton:
                room.wait("client-0", work)

        call = pool.submit(wait)
        assert arrived.wait(60)
        room.give_up()
        with pytest.raises(FedkdError, match="given up"):
            call.result(60)
        with pytest.raises(FedkdError, match="given up"):
            pool.submit(wait).result(60)


class _Pipe:
    """The other end of a line: a list of what was sent; nothing comes any more."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, reply: Any) -> None:
        pickle.dumps(reply)
        self.sent.append(reply)

    def recv(self) -> Any:
        raise EOFError


class Own(FedkdError):
    """A user's own kind of error, which needs more to be made than it keeps."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}", where="here", fix="this")


@pytest.mark.parametrize(
    ("happens", "what"),
    [
        (lambda: sys.exit(3), "SystemExit"),
        (lambda: threading.Lock(), "cannot pickle"),
        (lambda: (_ for _ in ()).throw(Own(1, 2)), "1 and 2"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["exit", "unpicklable", "own_error", "any"],
)
def test_whatever_happens_in_a_worker_there_is_an_answer(happens: Callable[[], Any], what: str) -> None:
    class Host:
        def call(self, *_: Any) -> Any:
            return happens()

    pipe = _Pipe()
    line = workers._Line(pipe)  # type: ignore[arg-type]
    line.answer(Host(), 7, "client-0", "open", None)  # type: ignore[arg-type]
    ((number, good, error),) = pipe.sent
    assert (number, good, type(error)) == (7, False, FedkdError)
    assert what in error.what
    assert line.next() == workers.END


def test_when_the_main_process_is_gone_what_has_not_begun_never_does(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    began, go = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, *_: Any) -> None:
            pass

        def call(self, client: str, *_: Any) -> None:
            began.set()
            assert go.wait(60)
            done.append(client)

        def close(self) -> None:
            done.append("closed")

    class Orders(_Pipe):
        orders = iter([(1, "a", "open", None), (2, "b", "open", None)])

        def recv(self) -> Any:
            for order in self.orders:
                return order
            assert began.wait(60)
            threading.Timer(0.2, go.set).start()
            raise EOFError

    monkeypatch.setattr(workers, "Host", Slow)
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
    workers._work(Orders(), folders, Path(), HONEST, False)  # type: ignore[arg-type]
    assert done == ["a", "closed"]
