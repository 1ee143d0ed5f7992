"""Where clients of a simulation wait for each other, so that their rounds are trained together.

Every agent keeps its own course (check, reserve, learn, answer, commit) on a thread of its own, one at a time. Only
inside ``learn`` does it let the others go on; when all that were called are there, or have ended, they are trained.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedkd.distill.cohort import Cohort
from fedkd.distill.trainer import Round, TrainsRound, Velocity, learn_alone
from simulations.host import Host
from simulations.poison import Liars

MOST_THREADS = 1000


@dataclass(eq=False)
class _Waiting:
    round: Round
    trained: threading.Event = field(default_factory=threading.Event)
    velocity: Velocity = field(default_factory=dict)
    error: Exception | None = None


class Meeting:
    """Knows how many calls are on their way, and trains when as many rounds wait as can come."""

    def __init__(self, threads: int, cohort: Callable[[], Cohort]) -> None:
        """``cohort`` is made when the first round comes."""
        self._threads, self._make_cohort = threads, cohort
        self._cohort: Cohort | None = None
        self._baton = threading.RLock()  # whoever has it runs
        self._expected = 0
        self._waiting: dict[str, _Waiting] = {}

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else runs meanwhile."""
        with self._baton:
            yield

    def expect(self, call: Future[Any]) -> None:
        """A call is on its way; when it has ended, however it ended, nobody waits for it."""
        with self._baton:
            self._expected += 1
        call.add_done_callback(self._ended)

    def _ended(self, call: Future[Any]) -> None:
        with self._baton:
            self._expected -= 1
            self._train_if_all_wait()

    def trainer(self, client: str) -> TrainsRound:
        """What trains this client's rounds; for the thread whose turn it is."""

        def train(round: Round) -> Velocity:
            if self._cohort is None:
                self._cohort = self._make_cohort()
            return self._together(client, round) if self._cohort.takes(client, round) else learn_alone(round)

        return train

    def _together(self, client: str, round: Round) -> Velocity:
        waiting = self._waiting[client] = _Waiting(round)
        self._train_if_all_wait()
        self._baton.release()
        try:
            waiting.trained.wait()
        finally:
            self._baton.acquire()
        if waiting.error is not None:
            raise waiting.error
        return waiting.velocity

    def _train_if_all_wait(self) -> None:
        # when every thread waits, those calls that have none yet cannot come
        if not self._waiting or len(self._waiting) < min(self._expected, self._threads):
            return
        waiting, self._waiting = self._waiting, {}
        assert self._cohort is not None
        try:
            trained = self._cohort.train({client: one.round for client, one in waiting.items()})
            for client, one in waiting.items():
                one.velocity = trained[client]
        except Exception as error:  # it is for each of the agents to say that it has failed
            for one in waiting.values():
                one.error = error
        for one in waiting.values():
            one.trained.set()


class _Announcing(ThreadPoolExecutor):
    """Tells a meeting of every call that it is given."""

    def __init__(self, threads: int, meeting: Meeting) -> None:
        super().__init__(threads)
        self._meeting = meeting

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future = super().submit(call, *arguments, **named)
        self._meeting.expect(future)
        return future


class Together:
    """All agents in this process; the rounds of those with students of one shape are trained together."""

    def __init__(self, folders: Mapping[str, Path], test: Path, liars: Liars) -> None:
        self._threads = min(len(folders), MOST_THREADS)
        self._meeting = Meeting(self._threads, lambda: Cohort(self._host.members()))
        self._host = Host(folders, test, liars, self._meeting.trainer)

    def call(self, client: str, method: str, argument: Any) -> Any:
        """Run it here, when its turn comes."""
        with self._meeting.turn():
            return self._host.call(client, method, argument)

    def pool(self) -> ThreadPoolExecutor:
        """A thread for every call, since each may have to wait for the others."""
        return _Announcing(self._threads, self._meeting)

    def gathered(self) -> AbstractContextManager[None]:
        """No call runs before all of them have been announced."""
        return self._meeting.turn()

    def close(self) -> None:
        """Close the agents."""
        self._host.close()
