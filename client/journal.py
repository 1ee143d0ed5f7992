"""Everything that has left this client, one line a message: what ``fedkd wire show`` reads. It stays on the device."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedkd.errors import DataError
from fedkd.tensors import digest
from fedkd.wire import Message, Released

LIMIT = 4_000_000
"""Bytes of a journal before the older half is let go of: two files of half this size."""


class Journal:
    """``sent.jsonl`` and, before it, ``sent.jsonl.1``, in the client's state directory."""

    def __init__(self, state: Path) -> None:
        self._path = state / "sent.jsonl"

    def note(self, method: str, message: Message, payload: bytes) -> None:
        """Write down a message that is about to leave."""
        line = {"asked": method, **describe(message), "bytes": len(payload), "digest": digest(payload)}
        if self._path.exists() and self._path.stat().st_size > LIMIT // 2:
            self._path.replace(self._path.with_name("sent.jsonl.1"))
        with self._path.open("a+b") as file:
            file.write(self._mended(file) + json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def _mended(self, file: BinaryIO) -> bytes:
        """What ends a line that a crash has cut short: it must not take the next one with it."""
        if file.seek(0, os.SEEK_END) == 0:
            return b""
        file.seek(-1, os.SEEK_END)
        return b"" if file.read() == b"\n" else b"\n"


def read(state: Path) -> Iterator[dict[str, Any]]:
    """The messages that are still on record, oldest first."""
    for name in ("sent.jsonl.1", "sent.jsonl"):
        path = state / name
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                noted = json.loads(line)
            except ValueError:
                continue  # a crash cut the line short; the message did not leave
            if not isinstance(noted, dict) or not {"asked", "kind", "fields", "bytes", "digest"} <= set(noted):
                raise DataError("a line is none of this program's", where=str(path))
            yield noted


def describe(message: Message) -> dict[str, Any]:
    """A message field by field; arrays by type and shape."""
    return {"kind": message.kind, "fields": {f.name: _plain(getattr(message, f.name)) for f in fields(message)}}


def _plain(value: Any) -> Any:
    rows = value.rows if isinstance(value, Released) else value
    return f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else value
