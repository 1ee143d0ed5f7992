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
        self._reader = threading.Thread(target=self._read, args=(arrived,), daemon=True)
        self._reader.start()

    def call(self, client: str, method: str, argument: Any) -> Any:
        """Have it done there. Raises what the call raised there, FedkdError if the worker is gone."""
        answer: Future[Any] = Future()
        with self._sends:
            number = next(self._numbers)
            self._calls[number] = (client, answer)
            try:
                self._pipe.send((number, client, method, argument))
            except OSError:
                self._lose()
        return answer.result()

    def train(self) -> None:
        """Train those who wait there."""
        with self._sends, suppress(OSError):  # of a worker that has died every call fails
            self._pipe.send(None)

    def end(self) -> None:
        """Ask it to end, once its calls have been answered."""
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
                _, answer = self._calls.pop(number)
                answer.set_result(result) if good else answer.set_exception(result)
        except (EOFError, OSError):
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
    sends = threading.Lock()

    def send(reply: object) -> None:
        with sends, suppress(OSError):  # the main process has ended, and the loop below will notice
            pipe.send(reply)

    host: Host | Room = Room(folders, test, liars, lambda: send(None)) if together else Host(folders, test, liars)

    def answer(number: int, client: str, method: str, argument: Any) -> None:
        send((number, *_reply(host, client, method, argument)))

    with ThreadPoolExecutor(min(len(folders), MOST_THREADS) if together else 1) as pool:
        for order in iter(lambda: _next(pipe), END):
            if order is not None:
                pool.submit(answer, *order)
            elif isinstance(host, Room):
                host.train()
        if isinstance(host, Room):
            host.give_up()
        pool.submit(host.close)


def _next(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return END  # the main process has ended


def _reply(host: Host | Room, client: str, method: str, argument: Any) -> tuple[bool, Any]:
    try:
        return True, host.call(client, method, argument)
    except Exception as error:
        return False, error if isinstance(error, FedkdError) else FedkdError(repr(error), where=client)
