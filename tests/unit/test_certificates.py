"""Certificates and keys: written once, private, and refused with a reason when they cannot be trusted."""

from __future__ import annotations

import shutil
import ssl
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_private_key

from fedkd import certificates, trust
from fedkd.certificates import issue
from fedkd.errors import ConfigError
from fedkd.processes import free_port, listen

Fedkd = Callable[..., tuple[int, str, str]]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Shakes hands once, with the certificate in the folder."""
    address = f"127.0.0.1:{free_port()}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with listen(address) as listening:
        listening.listen()
        listening.settimeout(20)

        def serve() -> None:
            try:
                with listening.accept()[0] as plain, context.wrap_socket(plain, server_side=True) as secured:
                    secured.recv(1)
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield address
        thread.join()


def test_private_keys_are_their_owners_alone(tmp_path: Path) -> None:
    issue(tmp_path / "certs", ["localhost"], ["hospital-a"])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "certs").rglob("*.key")}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "hospital-a.key": 0o600}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    issue(tmp_path, ["localhost"], ["a"])
    before = snapshot(tmp_path)
    for hosts, nodes in (["localhost"], []), ([], ["b", "a"]):
        with pytest.raises(ConfigError, match="not overwritten"):
            issue(tmp_path, hosts, nodes)
    assert snapshot(tmp_path) == before


def test_a_renewed_certificate_is_signed_by_the_same_authority(tmp_path: Path) -> None:
    issue(tmp_path, ["127.0.0.1"], [])
    authority = (tmp_path / "ca.pem").read_bytes()
    for name in ("server.pem", "server.key"):
        (tmp_path / name).unlink()
    issue(tmp_path, ["127.0.0.1"], [])
    assert (tmp_path / "ca.pem").read_bytes() == authority
    with server(tmp_path) as address:
        trust.probe(address, tmp_path / "ca.pem")


def test_a_node_key_is_what_flower_asks_for(tmp_path: Path) -> None:
    issue(tmp_path, [], ["a"])
    private = load_ssh_private_key((tmp_path / "keys/a.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name == "secp384r1"
    assert load_pem_public_key(trust.node_keys(tmp_path / "nodes")["a"]) == private.public_key()
    trust.check_node_key(tmp_path / "keys/a.key")


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        issue(tmp_path / "out", [], [name])
    assert list(tmp_path.iterdir()) == []


def test_an_expired_certificate_is_refused_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "_CLOCK_SKEW", timedelta(days=3))
    issue(tmp_path, ["127.0.0.1"], [], days=-1)
    with pytest.raises(ConfigError, match=r"expired on \d{4}-\d\d-\d\d"):
        trust.check_server(tmp_path / "server.pem", tmp_path / "server.key")
    with server(tmp_path) as address, pytest.raises(ConfigError, match="server's certificate has expired"):
        trust.probe(address, tmp_path / "ca.pem")


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    issue(tmp_path, ["fed.example", "192.0.2.1"], [])
    with server(tmp_path) as address, pytest.raises(ConfigError, match="for another host"):
        trust.probe(address, tmp_path / "ca.pem")


def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    issue(tmp_path / "ours", ["127.0.0.1"], [])
    issue(tmp_path / "theirs", ["127.0.0.1"], [])
    with server(tmp_path / "theirs") as address, pytest.raises(ConfigError, match=r"not signed by ca\.pem"):
        trust.probe(address, tmp_path / "ours/ca.pem")


def test_a_key_of_another_certificate_or_open_to_others_is_refused(tmp_path: Path) -> None:
    issue(tmp_path / "a", ["localhost"], ["a"])
    issue(tmp_path / "b", ["localhost"], [])
    with pytest.raises(ConfigError, match="not the certificate's"):
        trust.check_server(tmp_path / "a/server.pem", tmp_path / "b/server.key")
    for key in (tmp_path / "a/server.key", tmp_path / "a/keys/a.key"):
        key.chmod(0o640)
        with pytest.raises(ConfigError, match=r"others may read .* 0640"):
            trust.check_private(key)


def test_a_certificate_that_ends_soon_is_told(tmp_path: Path) -> None:
    issue(tmp_path, ["localhost"], [], days=12)
    [sentence] = trust.expiring([tmp_path / "server.pem", tmp_path / "ca.pem"])
    assert "server.pem expires on" in sentence and "in 11 days" in sentence


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_accepts_the_chain_under_its_strictest_rules(tmp_path: Path) -> None:
    issue(tmp_path, ["fed.example"], [])
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "fed.example"]
    done = subprocess.run(
        [*command, "-CAfile", tmp_path / "ca.pem", tmp_path / "server.pem"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("content", [b"", b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ", b"-----BEGIN CERTIFICATE-----"])
def test_a_file_that_is_no_node_key_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pub").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        trust.node_keys(tmp_path)
    assert caught.value.where.endswith("a.pub")
