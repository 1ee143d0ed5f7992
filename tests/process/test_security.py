"""TLS and node keys with Flower's real processes: who gets in, and who does not."""

from __future__ import annotations

import logging
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from client.service import serve
from client.supervise import RelayProcess, explain, start_relay
from fedkd.certificates import issue
from fedkd.errors import ConfigError
from server import bundle, nodes, supervise
from server.supervise import Identity, ServerProcesses
from tests.process.test_flower import eventually

LOOP = """
import time
from pathlib import Path

from fedkd.flower import exchange, node_ids


def serve(grid, config):
    nodes = node_ids(grid, minimum=2, timeout=120)
    outcomes = exchange(grid, "answer", {node: b"ask" for node in nodes}, 120)
    print("answers", *sorted(outcome.decode() for outcome in outcomes.values()), flush=True)
    while not (Path(config).parent / "end").exists():
        time.sleep(0.1)
    print("nodes", len(grid.get_node_ids()), flush=True)
"""


@dataclass
class Federation:
    """A finished run behind the gate, and what was seen while it lasted."""

    status: str = ""
    lines: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    stranger: str = ""
    control: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with tempfile.TemporaryDirectory(prefix="fedkd-") as name, ExitStack() as stack:
        yield play(Path(name), stack)


def play(folder: Path, stack: ExitStack) -> Federation:
    certs, seen = folder / "certs", Federation()
    issue(certs, ["127.0.0.1"], ["a", "b", "stranger"])
    (certs / "nodes/stranger.pub").unlink()
    staged = bundle.stage(folder / "fedkd")
    (staged / "server/serve.py").write_text(LOOP)
    identity = Identity(certs / "server.pem", certs / "server.key", certs / "nodes")
    processes = ServerProcesses(folder / "server", folder / "server.yaml", supervise.free_address(), identity)
    logger, handler = logging.getLogger("server.gate"), logging.Handler()
    handler.emit = lambda record: seen.logged.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    relays = {}
    for name in ("a", "b", "stranger"):
        server = serve(lambda method, payload, name=name: name.encode(), f"unix:{folder}/{name}.sock")
        stack.callback(lambda server=server: server.stop(0).wait())
        relays[name] = start_relay(
            RelayProcess(
                processes.address,
                f"unix:{folder}/{name}.sock",
                folder / name,
                certs / "ca.pem",
                certs / f"keys/{name}.key",
            )
        )
        stack.callback(relays[name].stop)

    def on_line(line: str) -> None:
        seen.lines.append(line)
        if line.startswith("answers"):
            eventually(lambda: explain(relays["stranger"].log.read_text()) != "", 60)
            seen.stranger = explain(relays["stranger"].log.read_text())
            seen.control = [ask(processes.address, certs, path) for path in CLOSED]
            (folder / "end").touch()

    seen.status = supervise.run(processes, on_line, app=staged)
    seen.names = sorted(nodes.names(folder / "server").values())
    return seen


CLOSED = (
    "/v1/control/start-run", "/v1/control/register-node", "/v1/control/list-nodes", "/v1/runtime/pull-task", "/docs",
    "/v1/fleet/../control/list-nodes", "/v1/fleet/%2e%2e/control/list-nodes", "/v1/fleet/", "/health",
)  # fmt: skip


def ask(address: str, certs: Path, path: str) -> int:
    """The status of a POST to exactly this path."""
    context = ssl.create_default_context(cafile=certs / "ca.pem")
    with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
        request = client.build_request("POST", f"https://{address}")
        request.url = request.url.copy_with(raw_path=path.encode())
        return client.send(request).status_code


@pytest.mark.process
def test_registered_relays_are_asked_and_no_others(federation: Federation) -> None:
    assert federation.status == supervise.COMPLETED, federation.lines
    assert [line for line in federation.lines if line.startswith(("answers", "nodes"))] == ["answers a b", "nodes 2"]
    assert federation.names == ["a", "b"]


@pytest.mark.process
def test_an_unregistered_relay_is_told_on_both_sides(federation: Federation) -> None:
    [refused] = [line for line in federation.logged if line.startswith("refused")]
    assert refused.startswith("refused a relay from 127.0.0.1: its node key")
    assert refused.endswith("is not among the 2 registered")
    assert sorted(line for line in federation.logged if "has connected" in line) == [
        "the relay of a has connected from 127.0.0.1",
        "the relay of b has connected from 127.0.0.1",
    ]
    assert "does not know this node key" in federation.stranger


@pytest.mark.process
def test_nobody_gives_the_server_orders_through_the_gate(federation: Federation) -> None:
    assert federation.control and all(400 <= status < 500 for status in federation.control), federation.control


# -- What is refused before anything starts ----------------------------------------------------------------------------


def processes(folder: Path, address: str = "127.0.0.1:1") -> ServerProcesses:
    identity = Identity(folder / "server.pem", folder / "server.key", folder / "nodes")
    return ServerProcesses(folder / "server", folder / "server.yaml", address, identity)


def test_a_server_does_not_start_with_an_expired_certificate(tmp_path: Path) -> None:
    issue(tmp_path, ["127.0.0.1"], ["a"], days=0)
    with pytest.raises(ConfigError, match="the certificate expired on"):
        supervise.run(processes(tmp_path))


def test_a_server_does_not_start_without_knowing_its_relays(tmp_path: Path) -> None:
    issue(tmp_path, ["127.0.0.1"], [])
    with pytest.raises(ConfigError, match="folder of node keys does not exist"):
        supervise.run(processes(tmp_path))


def test_a_relay_shows_who_it_is_wherever_it_trusts(tmp_path: Path) -> None:
    issue(tmp_path, ["127.0.0.1"], ["a"])
    for authority, key, reason in [
        (tmp_path / "ca.pem", None, "no key to prove"),
        (tmp_path / "keys/a.key", tmp_path / "keys/a.key", "not a certificate"),
        (tmp_path / "ca.pem", tmp_path / "server.key", "not a node key"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            start_relay(RelayProcess("127.0.0.1:1", f"unix:{tmp_path}/a.sock", tmp_path / "r", authority, key))


def test_the_reason_of_the_last_end_is_the_one_that_is_told() -> None:
    log = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired\n[code: 0] the server does not know this node key"
    assert explain(log).startswith("the server does not know this node key")
    assert explain("ended") == ""
