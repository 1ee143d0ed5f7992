"""What ``fedkd client``, ``fedkd agent`` and ``fedkd relay`` do, until they are stopped."""

from __future__ import annotations

import grp
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from client.service import serve
from client.supervise import RelayProcess, start_relay
from fedkd import logs
from fedkd.config import AGGREGATES, ClientConfig, RelayConfig, load
from fedkd.errors import ConfigError, FedkdError
from fedkd.processes import interrupted_by_sigterm

if TYPE_CHECKING:
    from client.agent import Agent  # brings torch, which a relay has no use for

_log = logging.getLogger(__name__)

LONGEST_SOCKET_PATH = 90  # bytes; the system's limit is a little over a hundred
ONE_USER = (
    "agent and relay run as one user, and code that the server ships could read the private data: fine for "
    "development; in production start 'fedkd agent' and 'fedkd relay' as two users"
)


def client(path: Path, log: logs.Form = "text") -> None:
    """Agent and relay in one command. Returns after SIGTERM or Ctrl-C."""
    logs.configure(log, sys.stderr)
    with _until_stopped(), _agent(path) as (agent, address):
        relay = start_relay(_own_relay(agent, path, address))
        try:
            _log.info(
                "client %s: agent and relay are running for %s; %s", agent.name, agent.config.address, _terms(agent)
            )
            _log.warning(ONE_USER)
            _between_rounds(agent, path)
        finally:
            relay.stop()


def agent(path: Path, log: logs.Form = "text") -> None:
    """The agent alone; the relay is another user's."""
    logs.configure(log, sys.stderr)
    with _until_stopped(), _agent(path) as (opened, address):
        _log.info("client %s: the agent answers on %s; %s", opened.name, address, _terms(opened))
        if opened.config.socket_group is None:
            _log.warning("there is no 'socket_group', so that the relay must be the same user: %s", ONE_USER)
        _between_rounds(opened, path)


def relay(path: Path, log: logs.Form = "text") -> None:
    """The relay alone. It needs neither data nor policy, and its user should be able to read neither."""
    logs.configure(log, sys.stderr)
    config, base = load(RelayConfig, path), path.resolve().parent
    process = RelayProcess(
        superlink=config.address,
        agent=f"unix:{base / config.socket}",
        home=base / config.home,
        root_certificates=base / config.tls.ca if config.tls else None,
        private_key=base / config.node_key if config.node_key else None,
    )
    with _until_stopped():
        service = start_relay(process)
        try:
            _log.info("the relay is running for %s, agent at %s", config.address, process.agent)
            if shares_user(base / config.socket):
                _log.warning(ONE_USER)
            _wait()
        finally:
            service.stop()


def shares_user(socket: Path) -> bool:
    """Whether the agent's socket is this process's own user's, or this process may read everybody's files."""
    return os.geteuid() == 0 or (socket.exists() and socket.stat().st_uid == os.geteuid())


# -- the agent ---------------------------------------------------------------------------------------------------------


@contextmanager
def _agent(path: Path) -> Iterator[tuple[Agent, str]]:
    """An agent that answers on its address."""
    import torch

    from client.agent import Agent

    torch.set_num_threads(1)  # the same bytes on every machine, and as in a simulation
    config, base = load(ClientConfig, path), path.resolve().parent
    state = base / config.state
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        opened = Agent(path, _log.info)
        stack.callback(opened.close)
        address = stack.enter_context(_address(config, base))
        server = serve(_exporting(opened), address)
        stack.callback(_stop, server)
        if config.socket_group is not None:
            os.chown(address.removeprefix("unix:"), -1, _group(config.socket_group, path))
        yield opened, address


def _stop(server: grpc.Server) -> None:
    server.stop(grace=5).wait()


@contextmanager
def _address(config: ClientConfig, base: Path) -> Iterator[str]:
    """Where the agent listens: the configured socket, or one in the state folder, or in a private folder where that
    path is too long."""
    if config.socket is not None:
        wanted = base / config.socket
        wanted.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        yield f"unix:{wanted}"
        return
    if config.socket_group is not None:
        raise ConfigError("the relay's user cannot reach a socket in the state folder", fix="give 'socket' as well")
    wanted = (base / config.state).resolve() / "agent.sock"
    if len(os.fsencode(wanted)) <= LONGEST_SOCKET_PATH:
        yield f"unix:{wanted}"
        return
    with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
        yield f"unix:{folder}/agent.sock"


def _group(name: str, path: Path) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {name!r}", where=f"{path}, key 'socket_group'", fix="create it") from None


class _exporting:
    """The agent's handler; after each change the student can be used from student.safetensors."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        if agent.ledger.state("student") is not None:  # a kill may have come between a commit and this
            self._save()

    def _save(self) -> None:
        self._agent.learner.model.save(self._agent.state / "student.safetensors")

    def __call__(self, method: str, payload: bytes) -> bytes:
        before, began = self._agent.ledger.state("student"), time.monotonic()
        reply = self._agent.handle(method, payload)
        if self._agent.ledger.state("student") != before:
            self._save()
            seconds = time.monotonic() - began  # for this console alone: it depends on private data
            _log.info("client %s: the student has learned and answered in %.2f s", self._agent.name, seconds)
        return reply


def _terms(agent: Agent) -> str:
    policy = agent.policy
    if policy.noise == "simulation":
        _log.warning("the policy says 'noise: simulation': reproducible noise gives NO privacy guarantee")
    from fedkd.privacy.costs import cost_of  # the relay, which has no policy, is not to load what this needs

    mechanisms = " or ".join((policy.mechanism, *policy.also))
    if policy.mechanism == "none":
        return f"policy {mechanisms}: NO privacy, epsilon is infinite"
    unit = cost_of(policy.mechanism, policy, 1, AGGREGATES[policy.mechanism][0]).unit
    return f"policy {mechanisms}, epsilon {policy.epsilon:g} at delta {policy.delta:g} per {unit}"


def _own_relay(agent: Agent, path: Path, address: str) -> RelayProcess:
    config, base = agent.config, path.resolve().parent
    return RelayProcess(
        superlink=config.address,
        agent=address,
        home=agent.state / "relay",
        root_certificates=base / config.tls.ca if config.tls else None,
        private_key=base / config.node_key if config.node_key else None,
    )


# -- a process that lives long -----------------------------------------------------------------------------------------


@contextmanager
def _until_stopped() -> Iterator[None]:
    try:
        with interrupted_by_sigterm():
            yield
    except KeyboardInterrupt:
        _log.info("stopped")


def _wait(seconds: float | None = None) -> None:
    threading.Event().wait(seconds)


def _between_rounds(agent: Agent, path: Path) -> None:
    """Wait; a client that goes on learning looks after its stream and its versions meanwhile."""
    live = agent.config.live
    if live is None:
        return _wait()
    from client.upkeep import Upkeep

    upkeep = Upkeep(agent, path.resolve().parent, _log.info)
    while True:
        upkeep.look()
        _wait(live.every)


def main() -> int:
    """Command line of ``python -m client CONFIG``."""
    if len(sys.argv) != 2:
        print("usage: python -m client CONFIG", file=sys.stderr)
        return 2
    try:
        client(Path(sys.argv[1]))
    except FedkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
