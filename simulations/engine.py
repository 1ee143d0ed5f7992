"""Agents in worker processes of one machine, behind the same relay that a deployment uses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from client import channel
from client.app import app as relay
from fedkd.flower import LocalGrid, NodeConfig
from simulations.host import Host
from simulations.poison import HONEST, Liars
from simulations.together import Meeting, Room, tables
from simulations.workers import Worker


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


class Together(Hosts):
    """All agents in this process; those with students of one shape are trained together."""

    def __init__(self, folders: Mapping[str, Path], test: Path, liars: Liars) -> None:
        self._meeting = Meeting(len(folders), lambda: self._room.train())
        self._room = Room(folders, test, liars, self._meeting.arrived)

    def call(self, client: str, method: str, argument: Any) -> Any:
        """Run it here, when its turn comes."""
        return self._room.call(client, method, argument)

    def pool(self) -> ThreadPoolExecutor:
        """A thread for every call."""
        return self._meeting.pool()

    def gathered(self) -> AbstractContextManager[None]:
        """Nobody is trained before all calls have been announced."""
        return self._meeting.gathered()

    def close(self) -> None:
        """Close the agents."""
        self._room.close()


class Workers(Hosts):
    """Agents dealt out to worker processes; a client stays with its worker."""

    def __init__(self, hands: Sequence[Mapping[str, Path]], test: Path, liars: Liars, *, together: bool) -> None:
        """``hands`` are the folders of each worker's clients."""
        self._workers: list[Worker] = []
        self._meeting = Meeting(sum(map(len, hands)), self._train) if together else None
        arrived = None if self._meeting is None else self._meeting.arrived
        self._workers += [Worker(hand, test, liars, arrived) for hand in hands]
        self._of = {client: worker for hand, worker in zip(hands, self._workers, strict=True) for client in hand}

    def call(self, client: str, method: str, argument: Any) -> Any:
        """Have the client's worker do it."""
        return self._of[client].call(client, method, argument)

    def pool(self) -> ThreadPoolExecutor:
        """A thread a worker; for every call where they wait for each other."""
        return ThreadPoolExecutor(len(self._workers)) if self._meeting is None else self._meeting.pool()

    def gathered(self) -> AbstractContextManager[None]:
        """As ``Together``."""
        return super().gathered() if self._meeting is None else self._meeting.gathered()

    def close(self) -> None:
        """Ask every worker to end, and wait for all of them."""
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.close()

    def _train(self) -> None:
        for worker in self._workers:
            worker.train()


def _hosts(folders: Mapping[str, Path], test: Path, workers: int, liars: Liars, *, together: bool) -> Hosts:
    """As many workers as there are ``tables`` or clients to deal out; none for one."""
    at_tables = tables(list(folders)) if together else [[client] for client in sorted(folders)]
    hands = [[client for table in at_tables[first::workers] for client in table] for first in range(workers)]
    dealt = [{client: folders[client] for client in hand} for hand in hands if hand]
    if len(dealt) > 1:
        return Workers(dealt, test, liars, together=together)
    return Together(folders, test, liars) if together else Here(folders, test, liars)


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

    With ``together`` clients with students of one shape are trained together.
    """

    def __init__(
        self, folders: Mapping[str, Path], test: Path, workers: int, liars: Liars = HONEST, *, together: bool = False
    ) -> None:
        self.clients: Sequence[str] = sorted(folders)
        self._hosts = _hosts(folders, test, workers, liars, together=together)
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
