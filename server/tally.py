"""What has come of a round's requests, client by client, and who is asked no more because of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

STRIKES = 3
"""Messages outside the schema after which a client is left out for the rest of the run."""


@dataclass
class Tally:
    """One round's outcomes and bytes. ``failed`` holds reasons for people; of these clients, ``broken`` have said
    themselves that they failed, or have sent garbage: they are there, and waiting alone will not mend them."""

    answered: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    up: int = 0
    down: int = 0

    def silent(self, expected: int) -> int:
        """How many of the expected clients have not been heard of: they may be starting again."""
        return expected - len(self.answered | self.broken | set(self.refused))

    def reachable(self, expected: int) -> int:
        """How many clients could still have answered in the end: all that have not said no."""
        return expected - len(set(self.refused) - self.answered)

    def reasons(self) -> str:
        """Why clients have not answered."""
        return "; ".join(f"{client}: {reason}" for client, reason in self.unanswered().items())

    def unanswered(self) -> dict[str, str]:
        """Client -> reason, sorted."""
        reasons = {**self.refused, **self.failed}
        return {client: reasons[client] for client in sorted(reasons) if client not in self.answered}


class Quarantine:
    """Clients that have sent garbage so often that they are asked no more in this run."""

    def __init__(self, strikes: Mapping[str, int] | None = None) -> None:
        self._strikes = Counter(strikes or {})

    def __contains__(self, client: str) -> bool:
        return self._strikes[client] >= STRIKES

    def strike(self, client: str) -> bool:
        """Count one more message that is none; true when the client is left out from now on."""
        self._strikes[client] += 1
        return self._strikes[client] == STRIKES

    def record(self) -> dict[str, int]:
        """JSON-able, for the checkpoint."""
        return dict(sorted(self._strikes.items()))
