"""Is this certificate, key or server to be trusted? Every check says what is wrong and where, before Flower starts."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedkd.errors import ConfigError

_NIST = ("secp256r1", "secp384r1", "secp521r1")
_EXPIRED, _HOSTNAME, _ADDRESS = 10, 62, 64  # X509_V_ERR_* of OpenSSL


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificate(_read(path, "certificate"))
    except ValueError:
        raise ConfigError("not a certificate in PEM format", where=str(path), fix="see 'fedkd certs'") from None


def check_validity(certificate: x509.Certificate, path: Path) -> None:
    """Raise ConfigError for a certificate that has expired, or is not valid yet, by this machine's clock."""
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise ConfigError(
            f"the certificate expired on {expiry(certificate)}",
            where=str(path),
            fix="move it and its key away and run 'fedkd certs' again; relays keep the same ca.pem",
        )
    if now < certificate.not_valid_before_utc:
        raise ConfigError(
            f"the certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            where=str(path),
            fix="check this machine's clock",
        )


def expiry(certificate: x509.Certificate) -> str:
    """The day on which it ends."""
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"


def days_left(certificate: x509.Certificate) -> int:
    """Whole days until it expires, by this machine's clock."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)).days


def check_server(certificate: Path, key: Path) -> None:
    """Raise ConfigError unless the two belong together, are valid today, and the key is kept private."""
    own = read_certificate(certificate)
    check_validity(own, certificate)
    check_private(key)
    if private_key(key).public_key() != own.public_key():
        raise ConfigError(
            "the key is not the certificate's", where=f"{key} and {certificate}", fix="pair the right two"
        )


def check_authority(path: Path) -> None:
    """Raise ConfigError unless the file holds a certificate that is valid today."""
    check_validity(read_certificate(path), path)


def check_private(path: Path) -> None:
    """Raise ConfigError for a key that cannot be read, or that others may read."""
    _read(path, "key")
    mode = path.stat().st_mode
    if mode & 0o077:
        raise ConfigError(
            f"others may read this private key (mode {mode & 0o777:04o})", where=str(path), fix=f"chmod 600 {path}"
        )


def check_node_key(path: Path) -> None:
    """Raise ConfigError unless the file is a private node key, kept private."""
    check_private(path)
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("not a node key in OpenSSH format", where=str(path), fix="see 'fedkd certs'") from None
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _NIST):
        raise ConfigError("a node key must be an ECDSA key", where=str(path), fix="see 'fedkd certs'")


def node_keys(folder: Path) -> dict[str, bytes]:
    """Name -> public key (PEM) of every ``NAME.pub`` in the folder. Raises ConfigError for a file that is none."""
    if not folder.is_dir():
        raise ConfigError("the folder of node keys does not exist", where=str(folder), fix="see 'fedkd certs'")
    keys = {path.stem: _public_node_key(path) for path in sorted(folder.glob("*.pub"))}
    if not keys:
        raise ConfigError("there is no node key", where=str(folder), fix="put each client's NAME.pub there")
    return keys


def _public_node_key(path: Path) -> bytes:
    try:
        key = serialization.load_ssh_public_key(_read(path, "node key"))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _NIST):
        raise ConfigError("not an ECDSA public key in OpenSSH format", where=str(path), fix="see 'fedkd certs'")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def private_key(path: Path) -> PrivateKeyTypes:
    """The key in a PEM file that no password protects. Raises ConfigError."""
    try:
        return serialization.load_pem_private_key(_read(path, "key"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("not a private key in PEM format, without a password", where=str(path)) from None


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the {what} cannot be read: {error.strerror}", where=str(path), fix="check the path"
        ) from None


def probe(address: str, authority: Path, timeout: float = 5.0) -> None:
    """Shake hands with the server at ``host:port``. Raises ConfigError if its certificate cannot be trusted, OSError
    if nobody answers."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection((host, int(port)), timeout) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            pass
    except ssl.SSLCertVerificationError as error:
        raise _distrust(error, address, authority) from None


def _distrust(error: ssl.SSLCertVerificationError, address: str, authority: Path) -> ConfigError:
    if error.verify_code == _EXPIRED:
        return ConfigError(
            "the server's certificate has expired", where=address, fix="ask the server's operator for a new one"
        )
    if error.verify_code in (_HOSTNAME, _ADDRESS):
        return ConfigError(
            "the server's certificate is for another host",
            where=address,
            fix="use the name that it was made for, or make one with 'fedkd certs --host'",
        )
    return ConfigError(
        f"the server's certificate is not signed by {authority.name}: {error.verify_message}",
        where=address,
        fix="get the federation's ca.pem over a channel that you trust",
    )


def fingerprint(public_key: bytes) -> str:
    """Short name of a public key, for logs."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def expiring(certificates: Iterable[Path], days: int = 30) -> list[str]:
    """A sentence for each certificate that ends within ``days``."""
    ends = {path: read_certificate(path) for path in certificates}
    return [
        f"{path} expires on {expiry(one)}, in {days_left(one)} days"
        for path, one in ends.items()
        if days_left(one) < days
    ]
