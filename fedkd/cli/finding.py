"""What ``fedkd doctor`` finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. A problem stops a federation or a guarantee; a note is for the reader to judge."""

    level: Level
    what: str
    fix: str = ""


Findings = Iterator[Finding]
