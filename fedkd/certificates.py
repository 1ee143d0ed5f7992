"""Certificates and keys of a federation, written once.

TLS as in RFC 5280: a certificate authority of the federation's own signs the server's certificate (ECDSA P-256). A node
key is a relay's identity towards the server, in the form that Flower reads: ECDSA P-384, OpenSSH format.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedkd.config import NAME
from fedkd.errors import ConfigError
from fedkd.trust import check_validity, private_key, read_certificate

SERVER_DAYS = 365
AUTHORITY_DAYS = 3650
_CLOCK_SKEW = timedelta(hours=1)  # a machine whose clock is a little behind must not find a new certificate unborn
_PEM = serialization.Encoding.PEM


def issue(out: Path, hosts: Sequence[str], nodes: Sequence[str], days: int = SERVER_DAYS) -> list[Path]:
    """Write what is asked for into ``out`` and return the new files.

    ``hosts``, names or addresses: a certificate of the server for them, ``server.pem`` and ``server.key``, valid for
    ``days``, signed by ``ca.pem`` and ``ca.key``, which are made if they are not there. ``nodes``, names of clients:
    ``nodes/NAME.pub`` for the server, ``keys/NAME.key`` for the client. Private keys are readable by their owner
    alone. Raises ConfigError, before anything is written, if a file would be overwritten.
    """
    files = _server(out, hosts, days) if hosts else {}
    for name in nodes:
        files |= _node(out, name)
    for path in files:
        if path.exists():
            raise ConfigError("the file exists, and is not overwritten", where=str(path), fix="move it away first")
    for path, content in files.items():
        _write_new(path, content)
    return list(files)


def _server(out: Path, hosts: Sequence[str], days: int) -> dict[Path, bytes]:
    certificate_path, key_path = out / "ca.pem", out / "ca.key"
    files = {}
    if certificate_path.exists() or key_path.exists():
        authority, authority_key = read_certificate(certificate_path), _signing_key(key_path)
        check_validity(authority, certificate_path)
    else:
        authority_key = ec.generate_private_key(ec.SECP256R1())
        authority = _authority(authority_key)
        files = {certificate_path: authority.public_bytes(_PEM), key_path: _private(authority_key)}
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(authority, authority_key, key, hosts, days)
    return files | {out / "server.pem": certificate.public_bytes(_PEM), out / "server.key": _private(key)}


def _node(out: Path, name: str) -> dict[Path, bytes]:
    if not re.match(NAME, name):
        raise ConfigError(f"{name!r} cannot be a client's name", fix="use letters, digits, '.', '_' and '-'")
    key = ec.generate_private_key(ec.SECP384R1())
    openssh = serialization.PrivateFormat.OpenSSH
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return {
        out / "nodes" / f"{name}.pub": public + f" {name}\n".encode(),
        out / "keys" / f"{name}.key": key.private_bytes(_PEM, openssh, serialization.NoEncryption()),
    }


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedkd certificate authority")])
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(identity, critical=False)
        .sign(key, hashes.SHA256())
    )


def _certificate(
    authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str], days: int,
) -> x509.Certificate:  # fmt: skip
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedkd server")])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = (
        _builder(name, authority.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    return builder.sign(authority_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _CLOCK_SKEW,
        not_valid_after=now + timedelta(days=days),
    )


def _usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise ConfigError(
            f"{host!r} is not a host name", fix="write names in ASCII, as in 'xn--...', or addresses"
        ) from None


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write_new(path: Path, content: bytes) -> None:
    """Create the file, a private key for its owner alone; never follow a link, never replace."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if path.suffix == ".key" else 0o755)
    mode = 0o600 if path.suffix == ".key" else 0o644
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as file:
        file.write(content)


def _signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = private_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the authority's key is not an ECDSA key", where=str(path), fix="use another folder")
    return key
