"""Agents in worker processes of one machine, behind the same relay that a deployment uses."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from client import channel
from client.app import app as relay
from fedkd.errors import FedkdError
from fedkd.flower import LocalGrid, NodeConfig
from simulations.host import Host
from simulations.poison import HONEST, Liars
from simulations.together import Together


class Hosts(Protocol):
    """Carries a call to the process that hosts a client."""

    def call(self, client: str, method: str, argument: Any) -> Any: ...

    def pool(self) -> ThreadPoolExecutor:
        """Threads on which to call."""

    def gathered(self) -> AbstractContextManager[None]:
        """While calls are handed to the pool that belong together. Nobody waits for anybody, if a host says nothing."""
        return contextlib.nullcontext()

    def close(self) -> None: ...


class Here(Hosts):
    """All agents in this process."""

    def __init__(self, folders: Mapping[str, Path], test: Path, liars: Liars) -> None:
        self._host = Host(folders, test, liars)

    def call(self, client: str, method: str, argument: Any) -> Any:
        """Run it here."""
        return self._host.call(client, method, argument)

    def pool(self) -> ThreadPoolExecutor:
        """One thread: one call at a time."""
        return ThreadPoolExecutor(1)

    def close(self) -> None:
        """Close the agents."""
        self._host.close()


class Workers(Hosts):
    """Agents dealt out to worker processes; a client stays with its worker."""

    def __init__(self, folders: Mapping[str, Path], test: Path, workers: int, liars: Liars) -> None:
        # spawn: a forked copy of a process that has used threads (torch, gRPC) may hang
        context = multiprocessing.get_context("spawn")
        names = sorted(folders)
        self._of = {name: index % workers for index, name in enumerate(names)}
        self._pipes: list[Connection] = []
        self._turns = [threading.Lock() for _ in range(workers)]
        self._processes = []
        for index in range(workers):
            ours, theirs = context.Pipe()
            mine = {name: folders[name] for name in names if self._of[name] == index}
            process = context.Process(target=_work, args=(theirs, mine, test, liars), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def call(self, client: str, method: str, argument: Any) -> Any:
        """Send it to the client's worker. Raises what the call raised there, FedkdError if the worker is gone."""
        index = self._of[client]
        with self._turns[index]:
            try:
                self._pipes[index].send((client, method, argument))
                good, result = self._pipes[index].recv()
            except (EOFError, OSError):
                raise FedkdError("a worker process has died", where=client, fix="resume the run") from None
        if not good:
            raise result
        return result

    def pool(self) -> ThreadPoolExecutor:
        """A thread a worker."""
        return ThreadPoolExecutor(len(self._processes))

    def close(self) -> None:
        """Ask every worker to end, and wait for it."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()


def _work(pipe: Connection, folders: Mapping[str, Path], test: Path, liars: Liars) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends the round first
    host = Host(folders, test, liars)
    while True:
        try:
            pipe.send(_reply(host, *pipe.recv()))
        except (EOFError, OSError):
            return host.close()  # the main process has ended


def _reply(host: Host, client: str, method: str, argument: Any) -> tuple[bool, Any]:
    try:
        return True, host.call(client, method, argument)
    except Exception as error:
        return False, error if isinstance(error, FedkdError) else FedkdError(repr(error), where=client)


class _Gathering(LocalGrid):
    """A grid over hosts."""

    def __init__(self, nodes: Mapping[int, NodeConfig], hosts: Hosts) -> None:
        super().__init__(relay, nodes, pool=hosts.pool())
        self._hosts = hosts

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Start the app for each message, once all of them are there."""
        with self._hosts.gathered():
            return super().push_messages(messages)


class Engine:
    """The hosts, and a Grid on which the server loop finds their clients.

    With ``together`` all agents are in this process, and those with students of one shape are trained together;
    ``workers`` then does nothing.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        test: Path,
        workers: int,
        liars: Liars = HONEST,
        *,
        together: bool = False,
    ) -> None:
        self.clients: Sequence[str] = sorted(folders)
        workers = min(workers, len(folders))
        self._hosts: Hosts
        if together:
            self._hosts = Together(folders, test, liars)
        else:
            self._hosts = Workers(folders, test, workers, liars) if workers > 1 else Here(folders, test, liars)
        self._names = [f"{id(self)}-{name}" for name in self.clients]

    def map(
        self,
        method: str,
        argument: Callable[[str], Any] = lambda client: None,
        clients: Collection[str] | None = None,
    ) -> dict[str, Any]:
        """Call the host of these clients (none: all), the workers in parallel. Raises the first client's error."""
        some = [client for client in self.clients if clients is None or client in clients]
        with self._hosts.pool() as pool:
            with self._hosts.gathered():
                calls = {c: pool.submit(self._hosts.call, c, method, argument(c)) for c in some}
            return {client: call.result() for client, call in calls.items()}

    @contextlib.contextmanager
    def grid(self, clients: Collection[str] | None = None) -> Iterator[LocalGrid]:
        """A Grid whose nodes are these clients (none: all): messages go through the relay to the agents."""
        there = [n for n, c in zip(self._names, self.clients, strict=True) if clients is None or c in clients]
        nodes = {index + 1: {"agent": f"local:{name}"} for index, name in enumerate(there)}
        try:
            for name, client in zip(self._names, self.clients, strict=True):
                channel.register_local(name, partial(self._hosts.call, client))
            with _Gathering(nodes, self._hosts) as grid:
                yield grid
        finally:
            for name in self._names:
                channel.unregister_local(name)

    def close(self) -> None:
        """End the workers."""
        self._hosts.close()
