"""The diagonal of the Fisher information of a network on public examples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXAMPLES = 256  # proxies that it is estimated on, at the most


def fisher(network: nn.Module, x: Tensor, draws: torch.Generator, examples: int = EXAMPLES) -> dict[str, Tensor]:
    """Mean over examples of the squared gradient of log p(y|x), y drawn from the network itself, by parameter.

    The true Fisher, not the empirical one of the labels (Kunstner et al. 2019, arXiv:1905.12558, equation 5): it needs
    no labels. ``x`` [n, ...] should be public; of many examples a random few are taken.
    """
    network.eval()
    some = x[torch.randperm(len(x), generator=draws)[:examples]]
    named = dict(network.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for one in some:
        said = F.log_softmax(network(one[None]), dim=1)[0]
        drawn = torch.multinomial(said.detach().exp(), 1, generator=draws)
        for name, gradient in zip(named, torch.autograd.grad(said[drawn[0]], list(named.values())), strict=True):
            total[name] += gradient.square() / len(some)
    return total
