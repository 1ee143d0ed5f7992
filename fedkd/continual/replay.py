"""A bounded memory of private examples: a uniform sample of all that have come."""

from __future__ import annotations

import torch
from torch import Tensor

from fedkd.distill.trainer import Labelled
from fedkd.rng import derive


class Buffer:
    """The ``capacity`` examples with the smallest marks, which are drawn when an example comes.

    That is a reservoir (Vitter 1985) which does not depend on where batches end. Membership depends on a count, so that
    no parallel composition holds for it: under differential privacy replay is refused.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self._capacity, self._seed = capacity, seed

    def add(self, memory: dict[str, Tensor], data: Labelled, logits: Tensor) -> dict[str, Tensor]:
        """The memory after examples have come, with what the network says of them [n, k]."""
        seen = int(memory["seen"]) if memory else 0
        draws = torch.Generator().manual_seed(derive(self._seed, "buffer", seen))
        new = {"x": data.x, "y": data.y, "logits": logits, "mark": torch.rand(len(data.y), generator=draws)}
        both = {name: torch.cat([memory[name], value]) if memory else value for name, value in new.items()}
        kept = both["mark"].argsort(stable=True)[: self._capacity]
        return {**{name: value[kept] for name, value in both.items()}, "seen": torch.tensor(seen + len(data.y))}
