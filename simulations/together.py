"""Where clients of a simulation wait for each other, so that they are trained together.

Every agent keeps its own course (check, reserve, learn, answer, commit) on a thread of its own, one at a time in a
process. Only inside ``learn`` does it let the others go on; when all that were called are there, or have ended, they
are trained.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedkd.distill.cohort import Cohort
from fedkd.distill.trainer import ALONE, Lesson, Round, Trainer, Velocity, check_finite
from fedkd.errors import FedkdError
from simulations.host import Host
from simulations.poison import Liars

MOST_THREADS = 1000
TABLE = 25
"""Clients that may share tensors: enough to save most of what small operations cost. Whose places are in which tensors
must not depend on the number of processes, since it decides how sums are rounded."""


def tables(clients: Sequence[str]) -> list[list[str]]:
    """Clients in order of their names, so many at a table."""
    names = sorted(clients)
    return [names[start : start + TABLE] for start in range(0, len(names), TABLE)]


class Meeting:
    """Counts the calls that are on their way, wherever they are answered, and has them trained when as many wait as can
    come."""

    def __init__(self, clients: int, train: Callable[[], None]) -> None:
        """``train`` lets everybody go on who waits."""
        self._threads, self._train = min(clients, MOST_THREADS), train
        self._lock = threading.RLock()
        self._expected = self._waiting = 0

    def gathered(self) -> AbstractContextManager[Any]:
        """Nobody is trained before all calls that belong together have been announced."""
        return self._lock

    def expect(self, call: Future[Any]) -> None:
        """A call is on its way; when it has ended, however it ended, nobody waits for it."""
        with self._lock:
            self._expected += 1
        call.add_done_callback(self._ended)

    def _ended(self, call: Future[Any]) -> None:
        with self._lock:
            self._expected -= 1
            self._train_if_all_wait()

    def arrived(self) -> None:
        """One more waits."""
        with self._lock:
            self._waiting += 1
            self._train_if_all_wait()

    def _train_if_all_wait(self) -> None:
        # when every thread waits, those calls that have none yet cannot come
        if self._waiting and self._waiting >= min(self._expected, self._threads):
            self._waiting = 0
            self._train()

    def pool(self) -> ThreadPoolExecutor:
        """A thread for every call, since each may have to wait for the others."""
        return _Announcing(self._threads, self)


class _Announcing(ThreadPoolExecutor):
    """Tells a meeting of every call that it is given."""

    def __init__(self, threads: int, meeting: Meeting) -> None:
        super().__init__(threads)
        self._meeting = meeting

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future = super().submit(call, *arguments, **named)
        self._meeting.expect(future)
        return future


@dataclass(eq=False)
class _Waiting:
    work: Round | Lesson
    trained: threading.Event = field(default_factory=threading.Event)
    velocity: Velocity = field(default_factory=dict)
    error: Exception | None = None


class Room:
    """The agents of one process, and those of them that wait to be trained."""

    def __init__(self, folders: Mapping[str, Path], test: Path, liars: Liars, arrived: Callable[[], None]) -> None:
        """``arrived`` is called by everyone who begins to wait."""
        self._tables, self._arrived = tables(list(folders)), arrived
        self._host = Host(folders, test, liars, lambda client: _Seat(self, client))
        self._cohort: Cohort | None = None
        self._baton = threading.RLock()  # whoever has it runs
        self._waiting: dict[str, _Waiting] = {}
        self._closed = False

    def call(self, client: str, method: str, argument: Any) -> Any:
        """Run it, when its turn comes."""
        with self._baton:
            return self._host.call(client, method, argument)

    def takes(self, client: str, work: Round | Lesson) -> bool:
        """Whether it can be trained with others'. For the thread whose turn it is."""
        if self._cohort is None:
            members = self._host.members()
            self._cohort = Cohort({c: members[c] for c in table if c in members} for table in self._tables)
        return self._cohort.takes(client, work)

    def wait(self, client: str, work: Round | Lesson) -> Velocity:
        """Let the others go on until this has been trained. For the thread whose turn it is."""
        waiting = self._waiting[client] = _Waiting(work)
        self._baton.release()
        try:
            self._arrived()
            waiting.trained.wait()
        finally:
            self._baton.acquire()
        if waiting.error is not None:
            raise waiting.error
        return waiting.velocity

    def train(self) -> None:
        """Train everybody who waits."""
        with self._baton:
            waiting, self._waiting = self._waiting, {}
            try:
                if self._closed:
                    raise FedkdError("the run has been given up")
                self._train(waiting)
            except Exception as error:  # it is for each of the agents to say that it has failed
                for one in waiting.values():
                    one.error = error
            for one in waiting.values():
                one.trained.set()

    def _train(self, waiting: Mapping[str, _Waiting]) -> None:
        if not waiting:
            return
        assert self._cohort is not None
        rounds = {client: one.work for client, one in waiting.items() if isinstance(one.work, Round)}
        for client, velocity in self._cohort.train(rounds).items():
            waiting[client].velocity = velocity
        self._cohort.distil({client: one.work for client, one in waiting.items() if isinstance(one.work, Lesson)})

    def give_up(self) -> None:
        """Nobody is trained any more: those who wait fail, and so do those who would."""
        self._closed, self._arrived = True, self.train
        self.train()

    def close(self) -> None:
        """Close the agents."""
        self._host.close()


class _Seat(Trainer):
    """One client's place in the room."""

    def __init__(self, room: Room, client: str) -> None:
        self._room, self._client = room, client

    def learn(self, round: Round) -> Velocity:
        """With the others, if their tensors have a place for it."""
        return self._room.wait(self._client, round) if self._takes(round) else ALONE.learn(round)

    def distil(self, lesson: Lesson) -> None:
        """As ``learn``. Raises FedkdError as ``fit`` does."""
        if not self._takes(lesson):
            return ALONE.distil(lesson)
        self._room.wait(self._client, lesson)
        check_finite(lesson.network)

    def _takes(self, work: Round | Lesson) -> bool:
        return self._room.takes(self._client, work)
