"""How much of the server one relay may take up: a relay that floods it must not be in the way of the others."""

from __future__ import annotations

import time
from collections.abc import Callable

AT_ONCE = 16
"""Calls of one relay that are under way together; each may hold a message's piece in memory."""

A_SECOND = 50.0
BURST = 500.0
"""Calls, after which there are so many a second. A relay at work makes a few; a message of 64 MB takes fourteen."""


class Allowance:
    """Of one relay: calls at once, and a bucket of calls that fills up again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._under_way = clock, 0
        self._left, self._seen = BURST, clock()

    def enter(self) -> bool:
        """Whether one more call may begin; then ``leave`` must follow."""
        now = self._clock()
        self._left = min(BURST, self._left + A_SECOND * (now - self._seen))
        self._seen = now
        if self._left < 1 or self._under_way >= AT_ONCE:
            return False
        self._left -= 1
        self._under_way += 1
        return True

    def leave(self) -> None:
        """A call is over."""
        self._under_way -= 1
