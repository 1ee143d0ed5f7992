"""What an agent tells its own user. None of it goes to a server."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from fedkd.errors import FedkdError

Write = Callable[[str], None]
MALFORMED_TOLD = 100
"""Messages that are none of which the console is told: a server that sends them for ever must not fill the disk."""


def stderr(text: str) -> None:
    """The default console."""
    print(text, file=sys.stderr, flush=True)


class Console:
    """Of one client, which every line names."""

    def __init__(self, client: str, write: Write) -> None:
        self._client, self._write = client, write
        self._failed, self._malformed = False, 0

    def say(self, text: str) -> None:
        """One line."""
        self._write(f"client {self._client}: {text}")

    def malformed(self, what: str) -> None:
        """A message that is none."""
        self._malformed += 1
        if self._malformed <= MALFORMED_TOLD:
            last = "; further ones are not told" if self._malformed == MALFORMED_TOLD else ""
            self.say(f"refused a message: {what}{last}")

    def failure(self) -> None:
        """The exception at hand: what a user can mend in its own words; of others the first with its traceback."""
        error = sys.exception()
        if isinstance(error, FedkdError):
            return self._write(f"client {self._client} failed: {error}")
        text = traceback.format_exc()
        told = f" {text.strip().splitlines()[-1]}" if self._failed else f"\n{text}"
        self._write(f"client {self._client} failed:{told}")
        self._failed = True
