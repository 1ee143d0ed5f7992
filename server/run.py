"""The server's run directory: checkpoint, metrics and teacher, each replaced atomically."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedkd import wire
from fedkd.errors import DataError
from fedkd.state import read_packed, write_atomic, write_json
from fedkd.tensors import Arrays, pack


@dataclass(frozen=True)
class Row:
    """One round. Bytes are payload bytes of all clients together; ``more`` is what a harness adds."""

    round: int
    teacher_accuracy: float | None
    answered: int
    refused: int
    failed: int
    bytes_up: int
    bytes_down: int
    seconds: float
    more: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """JSON-able, flat."""
        plain = {**asdict(self), **self.more}
        del plain["more"]
        return plain


class RunDirectory:
    """Files of one run. ``run_id`` is what its contracts are made under: it stays the same when the run continues."""

    def __init__(self, path: Path, run_id: str | None = None) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        marker = path / "run.id"
        if not marker.exists():
            write_atomic(marker, (run_id or secrets.token_hex(8)).encode())
        self.run_id = marker.read_text()

    @property
    def teacher(self) -> Path:
        """The trained teacher."""
        return self.path / "teacher.safetensors"

    def save(self, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint; the rows in ``meta`` also become metrics.jsonl."""
        write_atomic(self.path / "checkpoint.safetensors", pack(arrays, meta))
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in meta["rows"]]
        write_atomic(self.path / "metrics.jsonl", "".join(lines).encode())

    def load(self) -> tuple[Arrays, dict[str, Any]] | None:
        """The checkpoint, if there is one."""
        path = self.path / "checkpoint.safetensors"
        return read_packed(path) if path.exists() else None


class Heads:
    """The newest ledger heads that clients have signed, by client, in a file that all runs of a server share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, str]:
        """What has been seen so far. Raises DataError for a damaged file: without it no rollback would be noticed."""
        if not self._path.exists():
            return {}
        try:
            found = json.loads(self._path.read_text())
            if isinstance(found, dict) and all(wire.HEAD.fullmatch(str(head)) for head in found.values()):
                return {str(client): str(head) for client, head in found.items()}
        except (OSError, ValueError):
            pass
        raise DataError("not a file of ledger heads", where=str(self._path), fix="restore it from a backup")

    def save(self, heads: Mapping[str, str]) -> None:
        """Replace the file, keeping clients that this run has not met."""
        write_json(self._path, dict(sorted({**self.load(), **heads}.items())))
