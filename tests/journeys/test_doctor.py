"""``fedkd doctor`` says what is wrong, and where, before a run finds out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from fedkd.certificates import issue
from tests.journeys.conftest import sets

Fedkd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def federation(fedkd: Fedkd) -> Iterator[Path]:
    """In a folder that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="fedkd-") as name:
        Path(name).chmod(0o755)
        code, _, err = fedkd("prepare", "--out", f"{name}/f", *sets("clients=1", "privacy.nominal_examples=300"))
        assert code == 0, err
        yield Path(name) / "f"


def edit(file: Path, **keys: object) -> None:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **keys}))


def findings(fedkd: Fedkd, *arguments: object) -> tuple[int, dict[str, list[str]]]:
    code, out, err = fedkd("doctor", "--json", *arguments)
    assert not err, err
    found: dict[str, list[str]] = {"ok": [], "note": [], "problem": []}
    for finding in json.loads(out):
        found[finding["level"]].append(finding["what"])
    return code, found


def test_a_sound_installation_has_no_problem(fedkd: Fedkd) -> None:
    code, found = findings(fedkd)
    assert (code, found["problem"]) == (0, [])
    assert "the packages server, client, simulations are fedkd's" in found["ok"]


def test_a_file_that_hides_our_packages_is_named(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("")
    code = "from fedkd.cli import doctor; print(doctor._packages().what)"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert "the package 'server' is not fedkd's" in done.stdout and str(tmp_path) in done.stdout


def test_fresh_configurations_are_sound(federation: Path, fedkd: Fedkd) -> None:
    for file in (federation / "server.yaml", federation / "clients/client-0/client.yaml"):
        code, found = findings(fedkd, file)
        assert (code, found["problem"]) == (0, []), found


def test_a_server_hears_of_every_fault(federation: Path, fedkd: Fedkd) -> None:
    issue(federation / "certs", ["fed.example"], ["client-0"], days=12)
    (federation / "certs/nodes/client-0.pub").write_text("no key")
    tls = {"certificate": "certs/server.pem", "key": "certs/server.key"}
    edit(federation / "server.yaml", tls=tls, nodes="certs/nodes")
    _, found = findings(fedkd, federation / "server.yaml")
    assert any("expires on" in note for note in found["note"])
    assert any("not an ECDSA public key" in problem for problem in found["problem"])
    (federation / "certs/server.key").chmod(0o644)
    (federation / "proxy.safetensors").write_bytes(b"damaged")
    code, found = findings(fedkd, federation / "server.yaml")
    assert code == 1
    assert any("others may read this private key" in problem for problem in found["problem"])
    assert any("damaged" in problem or "proxy" in problem for problem in found["problem"])
    edit(federation / "server.yaml", tls=None, nodes=None, address="fed.example:443")
    _, found = findings(fedkd, federation / "server.yaml")
    assert "fed.example:443 is not on this machine, and there is no 'tls'" in found["problem"]


def test_a_client_hears_of_every_fault(federation: Path, fedkd: Fedkd) -> None:
    client = federation / "clients/client-0"
    edit(client / "policy.yaml", noise="simulation", seed=1, proxies=["0" * 64])
    (client / "state/relay").mkdir(parents=True)
    (client / "door").mkdir()
    (client / "door").chmod(0o777)
    edit(client / "client.yaml", socket="door/agent.sock", tls={"ca": "ca.pem"})
    for folder in (client, client / "state"):
        folder.chmod(0o755)
    code, found = findings(fedkd, client / "client.yaml")
    text = "\n".join(found["problem"])
    assert code == 1
    for part in (
        "does not allow the proxy set", "NO privacy guarantee", "look into the state folder",
        "may read the private data", "no 'node_key'",
        "every user may write to", "the certificate cannot be read",
    ):  # fmt: skip
        assert part in text, part
    assert "share user" in text or "the relay runs as root" in text
    assert any("no agent answers" in note for note in found["note"])


def test_a_relays_file_is_recognised(tmp_path: Path, fedkd: Fedkd) -> None:
    (tmp_path / "relay.yaml").write_text("socket: agent.sock\naddress: 127.0.0.1:1\n")
    code, found = findings(fedkd, tmp_path / "relay.yaml")
    assert (code, found["problem"]) == (0, [])
    assert "connections on 127.0.0.1:1 are not encrypted, and do not leave this machine" in found["note"]
