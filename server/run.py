"""The server's run directory: checkpoint, metrics and teacher, each replaced atomically."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedkd import wire
from fedkd.errors import DataError
from fedkd.state import read_packed, write_atomic, write_json
from fedkd.tensors import Arrays, digest, pack

_log = logging.getLogger(__name__)
SCHEMA = 1
"""Of a checkpoint. One of another version is refused, and not read by guesses."""


@dataclass(frozen=True)
class Row:
    """One round. Bytes are payload bytes of all clients together; ``distilling`` is the part of ``seconds`` for which
    the server aggregated and trained the teacher; ``more`` is what a harness adds."""

    round: int
    teacher_accuracy: float | None
    answered: int
    refused: int
    failed: int
    bytes_up: int
    bytes_down: int
    seconds: float
    distilling: float
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

    @property
    def checkpoint(self) -> Path:
        """What a resumed run goes on from. Beside it ``.previous`` is the one of a round before."""
        return self.path / "checkpoint.safetensors"

    def save(self, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint and keep the one before; the rows in ``meta`` also become metrics.jsonl."""
        whole = {**meta, "schema": SCHEMA}
        content = pack(arrays, {**whole, "digest": digest(pack(arrays, whole))})
        if self.checkpoint.exists():
            self._previous.unlink(missing_ok=True)
            os.link(self.checkpoint, self._previous)
        write_atomic(self.checkpoint, content)
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in meta["rows"]]
        write_atomic(self.path / "metrics.jsonl", "".join(lines).encode())

    def load(self, *, again: bool) -> tuple[Arrays, dict[str, Any]] | None:
        """The checkpoint, if there is one. If it is damaged, the one before where a round may be played ``again``:
        clients send its bytes once more at no cost, but what the server has noised itself would be noised twice.

        Raises DataError if none can be used."""
        if not self.checkpoint.exists():
            return None
        try:
            return _read(self.checkpoint)
        except DataError as error:
            if not (again and self._previous.exists()):
                raise
            _log.warning("the last checkpoint cannot be used, so that a round is played again: %s", error)
            return _read(self._previous)

    @property
    def _previous(self) -> Path:
        return self.checkpoint.with_suffix(".safetensors.previous")


def _read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    arrays, meta = read_packed(path)
    if meta.get("schema") != SCHEMA:
        raise DataError(
            "the checkpoint is of another version of fedkd", where=str(path), fix="finish the run with that version"
        )
    mark = meta.pop("digest", None)
    if mark != digest(pack(arrays, meta)):
        raise DataError("the checkpoint is damaged", where=str(path), fix="restore it from a backup")
    return arrays, meta


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
