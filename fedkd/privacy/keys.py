"""The noise key of the one open reservation, in a file of its own.

A ledger that is read, copied or backed up while it is in use must hold no key: whoever has key and answer can take the
noise off. Overwriting erases what the file system and the disk let a program erase; on flash, only full-disk
encryption does better.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from fedkd.state import write_atomic


@dataclass(frozen=True)
class Held:
    """A key, the reservation that it belongs to, and the data under it."""

    run: str
    round: int
    snapshot: str
    key: bytes


class KeyFile:
    """At most one key, at ``path``; readable by the owner alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, held: Held) -> None:
        """Durably hold this key instead of the one before."""
        self.erase()
        record = {**asdict(held), "key": held.key.hex()}
        write_atomic(self._path, json.dumps(record).encode(), mode=0o600)

    def read(self) -> Held | None:
        """The key, or None if there is none that can be read."""
        try:
            record = json.loads(self._path.read_bytes())
            return Held(record["run"], record["round"], record["snapshot"], bytes.fromhex(record["key"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def erase(self) -> None:
        """Overwrite the key, and whatever a crash left half written, and remove it."""
        for path in (self._path, self._path.with_name(self._path.name + ".tmp")):
            if path.exists():
                _overwrite(path)
                path.unlink()


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
