"""A worker process that hosts agents, and the line to it: calls and replies with a number, in any order."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError
from simulations.host import Host
from simulations.poison import Liars
from simulations.together import MOST_THREADS, Room


class Worker:
    """One process, as seen from the main one."""

    def __init__(
        self, folders: Mapping[str, Path], test: Path, liars: Liars, arrived: Callable[[], None] | None = None
    ) -> None:
        """With ``arrived``, its clients wait for others that are trained with them, and it is called for each."""
        # spawn: a forked copy of a process that has used threads (torch, gRPC) may hang
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        host = (dict(folders), test, liars, arrived is not None)
        self._process = context.Process(target=_work, args=(theirs, *host), daemon=True)
        self._process.start()
        theirs.close()
        self._numbers, self._sends = itertools.count(), threading.Lock()
        self._calls: dict[int, tuple[str, Future[Any]]] = {}
        self._lost = False
        self._reader = threading.Thread(target=self._read, args=(arrived,), daemon=True)
        self._reader.start()

    def call(self, client: str, method: str, argument: Any) -> Any:
        """Have it done there. Raises what the call raised there, FedkdError if the worker is gone."""
        answer: Future[Any] = Future()
        with self._sends:
            number = next(self._numbers)
            self._calls[number] = (client, answer)
            with suppress(OSError):  # then the reader notices too, once it has read what is left
                self._pipe.send((number, client, method, argument))
            if self._lost:
                self._lose()
        return answer.result()

    def train(self) -> None:
        """Train those who wait there."""
        with self._sends, suppress(OSError):  # of a worker that has died every call fails
            self._pipe.send(None)

    def end(self) -> None:
        """Ask it to end; nothing is on its way any more."""
        with self._sends, suppress(OSError):
            self._pipe.send(END)

    def close(self) -> None:
        """Wait for its end."""
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
        self._reader.join()
        self._pipe.close()

    def _read(self, arrived: Callable[[], None] | None) -> None:
        try:
            while True:
                reply = self._pipe.recv()
                if reply is None:
                    assert arrived is not None
                    arrived()
                    continue
                number, good, result = reply
                _, answer = self._calls.pop(number, ("", None))
                if answer is not None:
                    answer.set_result(result) if good else answer.set_exception(result)
        except Exception:  # it has ended, or has sent what cannot be read: nothing that comes after it could be either
            self._lost = True
            self._lose()

    def _lose(self) -> None:
        """Every call that has no answer gets none any more."""
        for number in list(self._calls):
            client, answer = self._calls.pop(number, ("", None))
            if answer is not None:  # else it came after all
                answer.set_exception(FedkdError("a worker process has died", where=client, fix="resume the run"))


END = "end"


def _work(pipe: Connection, folders: Mapping[str, Path], test: Path, liars: Liars, together: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends the round first
    line = _Line(pipe)
    host: Host | Room = Room(folders, test, liars, line.arrived) if together else Host(folders, test, liars)
    pool = ThreadPoolExecutor(min(len(folders), MOST_THREADS) if together else 1)
    try:
        for order in iter(line.next, END):
            if order is not None:
                pool.submit(line.answer, host, *order)
            elif isinstance(host, Room):
                host.train()
    finally:
        # the main process may be gone: what has not begun never does, and what waits fails
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(host, Room):
            host.give_up()
        pool.shutdown(wait=True)
        host.close()


class _Line:
    """The worker's end."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._sends = pipe, threading.Lock()

    def next(self) -> Any:
        """The next order; ``END`` also when the main process has ended."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return END

    def arrived(self) -> None:
        """One more client waits."""
        self._send(None)

    def answer(self, host: Host | Room, number: int, client: str, method: str, argument: Any) -> None:
        """Do what was asked; whatever happens, there is an answer."""
        try:
            self._send((number, True, host.call(client, method, argument)))
        except FedkdError as error:
            self._send((number, False, error if type(error).__module__ == FedkdError.__module__ else _plain(error)))
        except BaseException as error:  # also what cannot be sent, and a user's sys.exit
            self._send((number, False, FedkdError(repr(error), where=client)))

    def _send(self, reply: object) -> None:
        with self._sends, suppress(OSError):  # the main process has ended, and ``next`` will notice
            self._pipe.send(reply)


def _plain(error: FedkdError) -> FedkdError:
    """A user's own kind of error, as one that the main process knows."""
    return FedkdError(error.what, where=error.where, fix=error.fix)
