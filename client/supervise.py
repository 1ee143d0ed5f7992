"""Keeping the relay running: a SuperNode of Flower that knows a server's address and the agent's, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedkd.errors import ConfigError
from fedkd.processes import Service, claim, environment, free_port, host_and_port, is_loopback
from fedkd.trust import check_authority, check_node_key, probe

# The relay runs code that the server ships: of this process's environment, where credentials and paths to data are
# often kept, it gets what it takes to start and to find the network.
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
_INHERITED = frozenset(
    (*("LANG", "LC_ALL", "TMPDIR", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"), *_PROXIES)
)


@dataclass(frozen=True)
class RelayProcess:
    """Where the relay connects to, and where it may write.

    ``home`` is the relay's own directory: logs, and the app that the server ships. Without ``root_certificates`` the
    connection is not encrypted, which is accepted on the loopback interface alone. ``private_key`` is the key with
    which the SuperNode proves who it is to a server that asks for it.
    """

    superlink: str
    agent: str
    home: Path
    root_certificates: Path | None = None
    private_key: Path | None = None


def start_relay(config: RelayProcess) -> Service:
    """Start the relay and keep it running; the caller stops the returned service.

    Raises ConfigError where the connection would be in the clear, or the agent's address cannot be passed on.
    """
    _check(config)
    home = config.home.absolute()
    service = Service(
        "relay",
        lambda: _command(config),
        environment(home, _INHERITED),
        home / "supernode.log",
        explain=explain,
        helper="flower-superexec",  # starts the ClientApps; without it a SuperNode stays connected and answers nothing
        claimed=claim(home),
    )
    service.start()
    return service


_REASONS = (
    ("certificate has expired", "the server's certificate has expired: ask its operator for a new one"),
    ("Hostname mismatch", "the server's certificate is for another host"),
    ("IP address mismatch", "the server's certificate is for another host"),
    ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is not signed by the configured 'tls.ca'"),
    ("does not know this node key", "the server does not know this node key: send its operator the NAME.pub of it"),
    ("could not be activated", "the server still believes the relay to be connected, for a minute at most"),
)


def explain(tail: str) -> str:
    """Why a SuperNode has ended, from the end of its log; empty if that does not say."""
    found = [(tail.rfind(sign), reason) for sign, reason in _REASONS if sign in tail]
    return max(found)[1] if found else ""


def _command(config: RelayProcess) -> Sequence[str]:
    return [
        "flower-supernode",
        *("--superlink", config.superlink),
        *_security(config),
        *("--host", "127.0.0.1"),
        *("--port", str(free_port())),
        *("--node-config", f'agent="{config.agent}"'),
    ]


def _security(config: RelayProcess) -> list[str]:
    if config.root_certificates is None:
        return ["--insecure"]
    options = ["--root-certificates", str(config.root_certificates.absolute())]
    if config.private_key is not None:
        options += ["--auth-supernode-private-key", str(config.private_key.absolute())]
    return options


def _check(config: RelayProcess) -> None:
    host_and_port(config.superlink)
    if config.root_certificates is not None:
        _check_trust(config, config.root_certificates)
    if config.root_certificates is None and not is_loopback(config.superlink):
        raise ConfigError(
            "the connection to the server would not be encrypted",
            where=config.superlink,
            fix="give 'tls.ca', the server's authority; without it only a server on this machine is accepted",
        )
    if not config.agent.startswith("unix:/") or set(config.agent) & set('"\\\n'):
        raise ConfigError(
            "the agent's address cannot be passed to the relay", where=config.agent, fix="write unix:/absolute/path"
        )


def _check_trust(config: RelayProcess, authority: Path) -> None:
    if config.private_key is None:
        raise ConfigError(
            "the relay has no key to prove who it is", where=config.superlink, fix="give 'node_key', see 'fedkd certs'"
        )
    check_authority(authority)
    check_node_key(config.private_key)
    with contextlib.suppress(OSError):  # nobody there yet: the relay waits for its server
        probe(config.superlink, authority)
