"""What ``fedkd doctor`` looks at in a configuration: files, permissions, keys, ports and users."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import yaml

from fedkd import trust
from fedkd.cli.finding import Finding, Findings
from fedkd.config import ClientConfig, Policy, RelayConfig, ServerConfig, load
from fedkd.errors import ConfigError, FedkdError
from fedkd.processes import host_and_port, is_loopback, listen


def configuration(path: Path) -> Findings:
    """Findings about the file and all that it names. Raises ConfigError for a file that is no configuration."""
    kind = _kind(path)
    base = path.resolve().parent
    if kind == "server":
        yield from _server(load(ServerConfig, path), base)
    elif kind == "client":
        yield from _client(load(ClientConfig, path), base)
    else:
        yield from _relay(load(RelayConfig, path), base)


def _kind(path: Path) -> str:
    """By the keys that only one of them requires."""
    try:
        keys = set(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"the configuration cannot be read: {error}", where=str(path)) from None
    if "clients" in keys:
        return "server"
    return "client" if keys & {"name", "data", "policy"} else "relay"


def _server(config: ServerConfig, base: Path) -> Findings:
    from fedkd.data.proxy import ProxySet

    yield _try(f"the proxy set {config.proxy} is whole", lambda: ProxySet.load(base / config.proxy))
    yield _port(config.address)
    if config.tls is None:
        yield _in_the_clear(config.address)
    else:
        certificate, key = base / config.tls.certificate, base / config.tls.key
        yield _try(
            f"the certificate {certificate.name} is valid, and its key private",
            lambda: trust.check_server(certificate, key),
        )
        yield from (Finding("note", text, "renew it with 'fedkd certs'") for text in _expiring(certificate))
        nodes = base / (config.nodes or "nodes")
        yield _try(f"node keys are in {nodes}", lambda: trust.node_keys(nodes))
    yield _private_folder(base / config.out / "flower", "Flower's folder")


def _client(config: ClientConfig, base: Path) -> Findings:
    yield from _decision(config, base)
    yield from _private_files(config, base)
    yield from _towards_the_server(config, base)
    yield from _users(config, base)


def _decision(config: ClientConfig, base: Path) -> Findings:
    from fedkd.data.proxy import ProxySet

    policy = load(Policy, base / config.policy)
    hash = ProxySet.load(base / config.proxy).hash
    if hash in policy.proxies:
        yield Finding("ok", "the policy allows the proxy set")
    else:
        yield Finding(
            "problem",
            f"the policy does not allow the proxy set {hash}",
            "check the file, or add the hash to the policy",
        )
    if policy.noise == "simulation" or policy.mechanism == "none":
        yield Finding("problem", "the policy gives NO privacy guarantee", "write 'mechanism: dp_sgd' and 'noise: os'")


def _private_files(config: ClientConfig, base: Path) -> Findings:
    from fedkd.privacy.ledger import Ledger

    yield _private_folder(base / config.state, "the state folder")
    ledger = base / config.state / "ledger.sqlite"
    if ledger.exists():
        yield _try("the ledger's chain is intact", lambda: Ledger.read(ledger))
    source = config.live.source if config.data is None and config.live else config.data and config.data.path
    data = base / source if source else None
    if data is not None and data.exists():
        reachable = _readable_by_others(data)
        yield (
            Finding("problem", f"other users may read the private data in {data}", f"chmod -R o-rwx {data}")
            if reachable
            else Finding("ok", "no other user may read the private data")
        )


def _relay(config: RelayConfig, base: Path) -> Findings:
    yield from _towards_the_server(config, base)
    yield _agent(base / config.socket)
    if (base / config.socket).exists():
        yield _separated((base / config.socket).stat().st_uid, os.geteuid())


def _towards_the_server(config: ClientConfig | RelayConfig, base: Path) -> Findings:
    if config.tls is None:
        yield _in_the_clear(config.address)
        return
    address, authority = config.address, base / config.tls.ca
    yield _try(f"the authority {authority.name} is valid", lambda: trust.check_authority(authority))
    if config.node_key is None:
        yield Finding(
            "problem", "there is no 'node_key'", "make one with 'fedkd certs --node', and send NAME.pub to the server"
        )
    else:
        key = base / config.node_key
        yield _try("the node key is private", lambda: trust.check_node_key(key))
    try:
        trust.probe(address, authority)
        yield Finding("ok", f"the server on {address} shows a certificate that is trusted")
    except OSError as error:
        yield Finding("note", f"no server answers on {address} now: {error}")
    except ConfigError as error:
        yield Finding("problem", f"{error.what} ({error.where})", error.fix)


def _users(config: ClientConfig, base: Path) -> Findings:
    own = base / config.state / "relay"
    if own.exists():
        yield _separated((base / config.state).stat().st_uid, own.stat().st_uid)
    if config.socket is not None:
        yield _agent(base / config.socket)
        yield _door(base / config.socket)


def _separated(agent: int, relay: int) -> Finding:
    if relay == 0:
        return Finding(
            "problem", "the relay runs as root, who may read everything", "start 'fedkd relay' as a user of its own"
        )
    if agent == relay:
        return Finding(
            "problem",
            f"agent and relay share user {agent}: code that the server ships could read the private data",
            "for development only; in production start 'fedkd agent' and 'fedkd relay' as two users",
        )
    return Finding("ok", f"agent (user {agent}) and relay (user {relay}) are apart")


def _agent(socket: Path) -> Finding:
    from client.service import is_healthy

    if is_healthy(f"unix:{socket}"):
        return Finding("ok", f"the agent answers on {socket}")
    return Finding("note", f"no agent answers on {socket} now")


def _door(socket: Path) -> Finding:
    for path in (socket, socket.parent):
        if path.exists() and path.stat().st_mode & 0o002:
            return Finding("problem", f"every user may write to {path}", f"chmod o-rwx {path}")
    return Finding("ok", "the socket is open to the agent's user and its group alone")


# -- files and ports ---------------------------------------------------------------------------------------------------


def _port(address: str) -> Finding:
    try:
        host_and_port(address)
        listen(address).close()
    except ConfigError as error:
        return Finding("note", f"{error.what} ({address})", "nothing, if the server is running")
    return Finding("ok", f"{address} is free")


def _in_the_clear(address: str) -> Finding:
    if is_loopback(address):
        return Finding("note", f"connections on {address} are not encrypted, and do not leave this machine")
    return Finding("problem", f"{address} is not on this machine, and there is no 'tls'", "see 'fedkd certs'")


def _private_folder(folder: Path, what: str) -> Finding:
    if not folder.exists():
        return Finding("ok", f"{what} is not there yet")
    if _readable_by_others(folder):
        return Finding("problem", f"other users may look into {what} {folder}", f"chmod 700 {folder}")
    return Finding("ok", f"{what} is private")


def _readable_by_others(path: Path) -> bool:
    """Whether the file, or the folder, can be reached and read by users who are neither owner nor in the group."""
    above = [parent for parent in path.resolve().parents if not parent.stat().st_mode & 0o001]
    return not above and bool(path.stat().st_mode & 0o004)


def _expiring(certificate: Path) -> list[str]:
    try:
        return trust.expiring([certificate])
    except FedkdError:
        return []


def _try(what: str, check: Callable[[], object]) -> Finding:
    """``what`` if the check raises nothing, else the error."""
    try:
        check()
    except FedkdError as error:
        return Finding("problem", f"{error.what} ({error.where})" if error.where else error.what, error.fix)
    except OSError as error:
        return Finding("problem", f"{error.strerror}: {error.filename}", "check the path and its permissions")
    return Finding("ok", what)
