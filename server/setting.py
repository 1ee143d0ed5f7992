"""What one run of the loop is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedkd.config import Federation
from server.run import Row

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What one run of the loop is given. Timeouts in seconds; None waits for a grid in which nothing can vanish.

    A round below quorum asks again: ``attempts`` times in all, and for ``patience`` seconds while there are clients
    that have not been heard of.
    """

    config: Federation
    clients: int
    round_timeout: float | None = None
    join_timeout: float = 600.0
    attempts: int = 3
    patience: float = 0.0
    on_row: Callable[[Row], None] = lambda row: None
    more: Callable[[int], Mapping[str, Any]] = lambda round: {}
    tell: Tell = print
    stop: Callable[[], bool] = lambda: False
    name: str = "server"  # by which clients know this server, in all its runs
    heads: Callable[[], Mapping[str, str]] = dict  # of the clients' ledgers, as earlier runs have seen them
    keep_heads: Callable[[Mapping[str, str]], None] = lambda heads: None
    code: Path = field(default_factory=Path.cwd)  # where a user's own teacher is looked for
    anchor: NDArray[Any] | None = None  # soft labels [proxies, classes] of an earlier run, frozen for this one
    registered: Mapping[int, str] = field(default_factory=dict)  # node -> the client whose key the relay has shown
