"""One learner through one experience."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedkd.config import Keeping
from fedkd.continual.methods import FineTune, Held, Now
from fedkd.distill.trainer import fit
from fedkd.rng import derive


def learn(network: nn.Module, method: FineTune, now: Now, keeping: Keeping, seed: int, *, online: bool) -> Held:
    """Train ``network`` in place: ``keeping.epochs`` passes (online: one) on a one-cycle schedule. Returns the most
    that the method has held meanwhile.

    Raises FedkdError when it diverges. An experience without examples leaves the network as it was.
    """
    data = method.begin(network, now)
    held = method.held
    epochs = 1 if online else keeping.epochs
    steps = epochs * -(-len(data.y) // keeping.batch_size)
    if steps:
        batches = _batches(len(data.y), keeping.batch_size, derive(seed, "batches", now.number))
        fit(
            network,
            lambda network: method.loss(network, next(batches)),
            steps=steps,
            learning_rate=keeping.learning_rate,
            weight_decay=keeping.weight_decay,
            seed=derive(seed, "experience", now.number),
        )
    method.end(network)
    return max(held, method.held)


def _batches(n: int, size: int, seed: int) -> Iterator[Tensor]:
    """Indices of mini-batches, every example once an epoch."""
    order = torch.Generator().manual_seed(seed % 2**63)
    while True:
        yield from torch.split(torch.randperm(n, generator=order), size)
