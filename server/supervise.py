"""A run from the outside: start Flower's server processes, submit the app, follow its log, and leave nothing behind.

The SuperLink (Flower's switchboard, with its database on disk) and the SuperExec (which starts the ServerApp) are
two processes, so that a run outlives a crash of the SuperLink. Each is started again when it ends. With certificates
the SuperLink stays on the loopback interface, behind a gate that speaks TLS with relays.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fedkd.certificates import issue
from fedkd.errors import ConfigError, FedkdError
from fedkd.processes import (
    Service,
    claim,
    environment,
    free_port,
    host_and_port,
    interrupted_by_sigterm,
    is_loopback,
    listen,
)
from fedkd.state import write_atomic
from fedkd.trust import check_server, expiring, node_keys
from server import bundle, nodes
from server.commands import COMPLETED, FINISHED, End, SuperLink
from server.gate import Gate, Upstream

__all__ = [
    "COMPLETED",
    "FINISHED",
    "Attached",
    "Identity",
    "ServerProcesses",
    "follow",
    "free_address",
    "run",
    "running",
]

_log = logging.getLogger(__name__)

_START_SECONDS = 180.0
_SILENCE_LIMIT = 60  # attempts, each of a few seconds: far longer than a SuperLink takes to start again
_LOOPBACK_DAYS = 3650
_RESTARTS = 5  # of a ServerApp that dies without a round between its deaths


@dataclass(frozen=True)
class Identity:
    """How the server proves who it is, and whom it lets in: certificate, its key, the folder of node keys."""

    certificate: Path
    key: Path
    nodes: Path


@dataclass(frozen=True)
class ServerProcesses:
    """Where the server listens and writes.

    ``home`` is the server's own directory: Flower's settings and database, logs, the staged app. ``app_config`` is
    the file the ServerApp reads. ``address`` is host:port for relays; without ``identity`` the connection is not
    encrypted and anybody may be a relay, so that only the loopback interface is accepted.
    """

    home: Path
    app_config: Path
    address: str = "127.0.0.1:8000"
    identity: Identity | None = None


@dataclass(frozen=True)
class Attached:
    """A SuperLink that runs already, at host:port, with its own SuperExec on this machine, which reads ``app_config``.
    Without ``authority`` the connection is not encrypted, so that only the loopback interface is accepted."""

    home: Path
    app_config: Path
    superlink: str
    authority: Path | None = None


def run(
    config: ServerProcesses | Attached,
    on_line: Callable[[str], None] = print,
    app: Path | None = None,
    progress: Callable[[], object] = lambda: None,
) -> str:
    """Run the federation once and return Flower's status of the run: ``finished:completed``, ``:failed``, ``:stopped``.

    ``on_line`` gets the ServerApp's log line by line. ``app`` is a staged app; without it the installed code is
    staged. A ServerApp that is killed is submitted again, to go on from its checkpoint; one that ends with an error of
    its own is not. ``progress`` tells how far it is: it may die a few times without any between. SIGTERM and Ctrl-C
    stop the run and every process, and leave as KeyboardInterrupt.
    """
    around = running(config) if isinstance(config, ServerProcesses) else attached(config)
    with interrupted_by_sigterm(), around as superlink:
        staged = app or bundle.stage(config.home / "app" / "fedkd")
        before, deaths = progress(), 0
        while True:
            end = _play(superlink, staged, config.app_config, on_line)
            if not end.by_a_kill:
                return end.status
            before, deaths = (before, deaths + 1) if progress() == before else (progress(), 1)
            if deaths > _RESTARTS:
                return end.status
            _log.warning("the ServerApp has died (%s); it goes on from its checkpoint", end.details)


def _play(superlink: SuperLink, staged: Path, app_config: Path, on_line: Callable[[str], None]) -> End:
    run_id = superlink.submit(staged, app_config)
    try:
        return follow(superlink, run_id, on_line)
    except BaseException:
        superlink.stop(run_id)
        raise


@contextlib.contextmanager
def running(config: ServerProcesses) -> Iterator[SuperLink]:
    """The SuperLink, up and answering, with SuperExec and (with an identity) gate; all are stopped at the end."""
    _check(config)
    database = config.home.absolute() / f"superlink-{version('flwr')}.db"  # Flower does not read another version's
    with contextlib.ExitStack() as stack:
        stack.enter_context(claim(config.home))
        listen(config.address).close()
        new = not database.exists()
        superlink = _plain(config) if config.identity is None else _behind_gate(config)
        superlink.remember()
        write_atomic(_secret(config), secrets.token_bytes(32), mode=0o600)
        service = _superlink(config, superlink, database)
        stack.callback(service.stop)
        service.start()
        _wait_until_listening(superlink.address, service)
        if not new:
            superlink.stop_unfinished()
        if config.identity is not None:
            gate = _gate(config, config.identity, superlink, new)
            stack.callback(gate.stop)
            gate.start()
        executor = _superexec(config, superlink)
        stack.callback(executor.stop)
        executor.start()
        yield superlink


@contextlib.contextmanager
def attached(config: Attached) -> Iterator[SuperLink]:
    """Somebody else's SuperLink. Nothing is started but the run, and nothing but the run is stopped."""
    if config.authority is None and not is_loopback(config.superlink):
        raise ConfigError(
            "the app would be sent in the clear", where=config.superlink, fix="give 'superlink_ca', its authority"
        )
    with claim(config.home):
        superlink = SuperLink(config.home, config.superlink, config.authority)
        superlink.remember()
        yield superlink


def follow(superlink: SuperLink, run_id: int, on_line: Callable[[str], None]) -> End:
    """Pass on the run's log until it ends, through restarts of the SuperLink; return how it has ended."""
    seen, silence = 0, 0
    while silence < _SILENCE_LIMIT:
        seen = superlink.log(run_id, seen, on_line)
        end = superlink.end(run_id)
        if end is not None and end.status.startswith(FINISHED):
            return end
        silence = silence + 1 if end is None else 0
        time.sleep(1.0)
    raise FedkdError("the SuperLink does not answer any more", where=superlink.address, fix=f"see {superlink.home}")


def free_address() -> str:
    """An address of the loopback interface that is free right now."""
    return f"127.0.0.1:{free_port()}"


# -- Flower's processes ------------------------------------------------------------------------------------------------


def _plain(config: ServerProcesses) -> SuperLink:
    return SuperLink(config.home, config.address)


def _behind_gate(config: ServerProcesses) -> SuperLink:
    """On a free port, with a certificate for the loopback interface: the server's own may be for other names only."""
    folder = config.home.absolute() / "loopback"
    shutil.rmtree(folder, ignore_errors=True)
    issue(folder, ["127.0.0.1"], [], _LOOPBACK_DAYS)
    (folder / "ca.key").unlink()  # nobody signs with it again
    return SuperLink(config.home, free_address(), folder / "ca.pem")


def _superlink(config: ServerProcesses, superlink: SuperLink, database: Path) -> Service:
    host, port = host_and_port(superlink.address)
    command = ["flower-superlink", "--host", host, "--port", str(port)]
    command += ["--isolation", "process", "--database", str(database)]
    command += ["--superexec-auth-secret-file", str(_secret(config)), "--disable-runtime-dependency-installation"]
    if superlink.authority is None:
        command += ["--insecure"]
    else:
        folder = superlink.authority.parent
        command += ["--ssl-ca-certfile", str(superlink.authority), "--ssl-certfile", str(folder / "server.pem")]
        command += ["--ssl-keyfile", str(folder / "server.key"), "--enable-supernode-auth"]
    return _service(config, "superlink", command)


def _superexec(config: ServerProcesses, superlink: SuperLink) -> Service:
    command = ["flower-superexec", "--runtime-api-address", superlink.address]
    command += ["--superexec-auth-secret-file", str(_secret(config))]
    command += ["--insecure"] if superlink.authority is None else ["--root-certificates", str(superlink.authority)]
    command += ["--parent-pid", str(os.getpid())]  # ends with this process even when that is killed
    return _service(config, "superexec", command)


def _service(config: ServerProcesses, name: str, command: list[str]) -> Service:
    home = config.home.absolute()
    return Service(name, lambda: command, environment(home), home / f"{name}.log")


def _gate(config: ServerProcesses, identity: Identity, superlink: SuperLink, new: bool) -> Gate:
    assert superlink.authority is not None
    keys = nodes.admit(superlink, identity.nodes, new)
    upstream = Upstream(superlink.address, superlink.authority)
    return Gate(config.address, identity.certificate, identity.key, upstream, keys)


def _secret(config: ServerProcesses) -> Path:
    """Shared by SuperLink and SuperExec: without it any process of the machine could take the ServerApp's place."""
    return config.home.absolute() / "superexec.secret"


def _wait_until_listening(address: str, service: Service) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(host_and_port(address), timeout=1.0):
            return
        time.sleep(0.1)
    raise FedkdError(
        "the SuperLink did not start",
        where=address,
        fix=f"see {service.log}; superlink-*.db beside it may be moved away, a run goes on without it",
    )


def _check(config: ServerProcesses) -> None:
    if set(str(config.app_config.absolute())) & set("'\n"):
        raise ConfigError("the path of the configuration cannot be passed to Flower", where=str(config.app_config))
    if config.identity is not None:
        check_server(config.identity.certificate, config.identity.key)
        node_keys(config.identity.nodes)
        for warning in expiring([config.identity.certificate]):
            _log.warning(warning)
    elif not is_loopback(config.address):
        raise ConfigError(
            "the server would accept connections in the clear",
            where=config.address,
            fix="give 'tls' and 'nodes' ('fedkd certs' makes them), or listen on 127.0.0.1",
        )
