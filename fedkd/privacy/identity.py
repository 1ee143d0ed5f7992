"""A client's own signature under the heads of its ledger: what a server hands back is known to be the client's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedkd.errors import LedgerError
from fedkd.state import write_atomic
from fedkd.tensors import canonical


@dataclass(frozen=True)
class Position:
    """A place in a chain: how many entries and how many charges it has up to here, and the hash of all of them."""

    counter: int
    charges: int
    hash: str


@dataclass(frozen=True)
class Head:
    """A position of one branch, signed by the client that it belongs to."""

    position: Position
    signature: str

    @property
    def text(self) -> str:
        """As it crosses the wire."""
        at = self.position
        return f"{at.counter}.{at.charges}.{at.hash}.{self.signature}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of ``text``, whose form has been checked."""
        counter, charges, mark, signature = text.split(".")
        return cls(Position(int(counter), int(charges), mark), signature)


class Identity:
    """An Ed25519 key that never leaves the state directory; its signatures are deterministic."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @classmethod
    def open(cls, path: Path, new: bytes | None = None) -> Self:
        """Read the key, or make one: ``new``, or from the operating system. Raises LedgerError for a damaged file."""
        if not path.exists():
            write_atomic(path, new or os.urandom(32), mode=0o600)
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the key. Raises OSError, LedgerError for a damaged file."""
        seed = path.read_bytes()
        if len(seed) != 32:
            raise LedgerError("the client's identity key is damaged", where=str(path), fix="restore it from a backup")
        return cls(seed)

    @property
    def public(self) -> str:
        """The public key, in hexadecimal."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, client: str, branch: str, position: Position) -> Head:
        """A head of the ledger's branch for one server, or of the whole chain (``""``)."""
        return Head(position, self._key.sign(_text(client, branch, position)).hex())


def verifies(public: str, client: str, branch: str, head: Head) -> bool:
    """Whether the holder of that key has signed this head."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(head.signature), _text(client, branch, head.position))
    except (InvalidSignature, ValueError):
        return False
    return True


def _text(client: str, branch: str, position: Position) -> bytes:
    return canonical(["fedkd.head/1", client, branch, position.counter, position.charges, position.hash])


class HeadFile:
    """The newest head, in a file beside the ledger: an older copy of the ledger does not pass for the newest."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, public: str, client: str) -> Head | None:
        """The head; None if there is no file. Raises LedgerError for anything that the client has not signed."""
        try:
            head = Head.parse(self._path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            head = None
        if head is None or not verifies(public, client, "", head):
            raise LedgerError(
                "the head beside the ledger is damaged, or was not signed with the ledger's key",
                where=str(self._path),
                fix="restore it; without it, an older copy of the ledger cannot be told from the newest",
            )
        return head

    def write(self, head: Head) -> None:
        """Replace the file."""
        write_atomic(self._path, head.text.encode())
