"""One writer a state directory."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from fedkd.errors import FedkdError


def hold(state: Path) -> IO[str]:
    """Keep others out of a state directory until the file that is returned is closed. Raises FedkdError if somebody is
    in there."""
    state.mkdir(parents=True, exist_ok=True)
    file = (state / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise FedkdError("another agent uses this state directory", where=str(state), fix="stop it first") from None
    return file
