"""What many clients say together about the proxy set: an aggregation rule makes it, the teacher learns from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Consensus:
    """Probabilities ``rows`` [n, classes] float32, and which of them are ``known`` [n] bool."""

    rows: NDArray[np.float32]
    known: NDArray[np.bool_]

    def into(self, before: Consensus | None, asked: NDArray[np.uint32], examples: int) -> Consensus:
        """On the whole proxy set: these rows at the positions ``asked`` (none: all), elsewhere what was known."""
        if not len(asked):
            asked = np.arange(examples, dtype=np.uint32)
        rows = np.zeros((examples, self.rows.shape[1]), np.float32) if before is None else before.rows.copy()
        known = np.zeros(examples, np.bool_) if before is None else before.known.copy()
        new = asked[self.known]
        rows[new], known[new] = self.rows[self.known], True
        return Consensus(rows, known)
