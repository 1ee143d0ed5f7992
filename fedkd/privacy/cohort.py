"""DP-SGD for many clients at once: networks of linear layers, one client's beside another's in the same tensors.

What is done for a client is what ``dp_sgd`` does: every example's gradient clipped, keyed noise in every coordinate, a
public divisor. Clients share operations, never a sum: the first axis of every tensor is the client.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.privacy.gradients import PerExampleLoss, check_sizes
from fedkd.privacy.noise import NoiseSource

Activation = Literal["tanh", "relu"]
_ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.Tanh: "tanh", nn.ReLU: "relu"}


@dataclass(frozen=True)
class Shape:
    """Linear layers with biases, from ``widths[0]`` inputs to ``widths[-1]`` logits, and what is between them."""

    widths: tuple[int, ...]
    activation: Activation = "tanh"

    @classmethod
    def of(cls, body: nn.Module) -> Shape | None:
        """That of a module, if it is nothing but such layers, all of them trained; else None."""
        layers = list(body) if type(body) is nn.Sequential else [body]
        linear = [layer for layer in layers[::2] if type(layer) is nn.Linear and layer.bias is not None]
        between = {type(layer) for layer in layers[1::2]}
        if len(layers) != 2 * len(linear) - 1 or len(between) > 1 or not between <= set(_ACTIVATIONS):
            return None
        if not all(p.requires_grad and p.dtype == torch.float32 for p in body.parameters()):
            return None
        widths = (linear[0].in_features, *(layer.out_features for layer in linear))
        return cls(widths, *(_ACTIVATIONS[kind] for kind in between))

    @property
    def parameters(self) -> list[tuple[int, ...]]:
        """Shapes in the order of a network's parameters: weight [out, in] and bias [out] of each layer."""
        return [size for inside, outside in pairwise(self.widths) for size in ((outside, inside), (outside,))]


@dataclass(frozen=True)
class Stack:
    """Networks of one shape. ``parameters``: weights [clients, out, in] and biases [clients, out], layer by layer."""

    shape: Shape
    parameters: list[Tensor]

    @classmethod
    def of(cls, shape: Shape, networks: Sequence[nn.Module | None]) -> Stack:
        """Copies of the networks' weights; zeros where there is no network."""
        stacked = [torch.zeros(len(networks), *size) for size in shape.parameters]
        for client, network in enumerate(networks):
            if network is not None:
                for own, together in zip(network.parameters(), stacked, strict=True):
                    together[client] = own.detach()
        return cls(shape, stacked)

    def forward(self, x: Tensor) -> list[Tensor]:
        """For x [clients, n, in]: what each layer is given, and the logits [clients, n, out] last."""
        seen = [x]
        for layer in range(0, len(self.parameters), 2):
            weight, bias = self.parameters[layer : layer + 2]
            if layer:
                seen[-1] = torch.tanh(seen[-1]) if self.shape.activation == "tanh" else torch.relu(seen[-1])
            seen.append(torch.baddbmm(bias[:, None, :], seen[-1], weight.transpose(1, 2)))
        return seen

    def deltas(self, seen: Sequence[Tensor], y: Tensor, loss: PerExampleLoss) -> list[Tensor]:
        """Gradients [clients, n, out] of each example's loss with respect to each layer's output."""
        logits = seen[-1].detach().flatten(0, 1).requires_grad_()
        (last,) = torch.autograd.grad(loss(logits, y.flatten()).sum(), logits)
        found = [last.view_as(seen[-1])]
        for layer in range(len(seen) - 2, 0, -1):
            slope = 1 - seen[layer].square() if self.shape.activation == "tanh" else (seen[layer] > 0).to(last.dtype)
            found.append(torch.bmm(found[-1], self.parameters[2 * layer]) * slope)
        return found[::-1]


def weighted_sums(seen: Sequence[Tensor], deltas: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """Each client's sum of its examples' gradients times ``weights`` [clients, n], by parameter."""
    sums = []
    for given, delta in zip(seen, deltas, strict=False):
        weighted = delta * weights[:, :, None]
        sums += [torch.bmm(weighted.transpose(1, 2), given), weighted.sum(dim=1)]
    return sums


def gradient_norms(seen: Sequence[Tensor], deltas: Sequence[Tensor]) -> Tensor:
    """L2 norms [clients, n] of per-example gradients over all parameters, without the gradients themselves.

    A linear layer's gradients are delta x^T for the weight and delta for the bias, of norms |delta||x| and |delta|
    (Goodfellow 2015, arXiv:1510.01799, section 3).
    """
    squares = [
        delta.square().sum(dim=2) * (given.square().sum(dim=2) + 1) for given, delta in zip(seen, deltas, strict=False)
    ]
    return torch.stack(squares).sum(dim=0).sqrt()


class CohortSteps:
    """The private part of many clients' steps: for each a Gaussian mechanism of L2 sensitivity ``clip``.

    See ``dp_sgd.PrivateSteps``, of which this is the counterpart; the settings are public, and the clients' contracts
    have them in common.
    """

    def __init__(self, *, clip: float, noise_multiplier: float, nominal_batch: float) -> None:
        """Raises PrivacyError for a setting that protects nothing."""
        check_sizes(clip=clip, noise_multiplier=noise_multiplier, nominal_batch=nominal_batch)
        self._clip, self._std, self._nominal_batch = clip, noise_multiplier * clip, nominal_batch

    def gradients(
        self,
        stack: Stack,
        pieces: Iterable[tuple[Tensor, Tensor, Tensor]],
        loss: PerExampleLoss,
        sources: Sequence[NoiseSource | None],
    ) -> list[Tensor]:
        """Noised gradients by parameter, [clients, ...].

        ``pieces`` are the clients' samples: x [clients, n, in], y [clients, n], and where there is an example at all
        [clients, n]: what fills up a shorter sample counts for nothing. A client whose sample is empty gets noise, one
        without a source takes no part.
        """
        sums = [torch.zeros_like(p) for p in stack.parameters]
        for x, y, there in pieces:
            for total, more in zip(sums, self._clipped_sums(stack, x, y, there, loss), strict=True):
                total += more
        return [total / self._nominal_batch for total in self._noised(sums, sources)]

    def _clipped_sums(self, stack: Stack, x: Tensor, y: Tensor, there: Tensor, loss: PerExampleLoss) -> list[Tensor]:
        """An example whose gradient is not finite contributes nothing, as in ``dp_sgd``."""
        seen = stack.forward(x)
        deltas = stack.deltas(seen, y, loss)
        norms = gradient_norms(seen, deltas)
        factors = (self._clip / (norms + 1e-6)).clamp(max=1.0) * there
        finite = norms.isfinite()
        if not bool(finite.all()):
            # zero times infinity would be NaN, and make the whole sum so
            factors = torch.where(finite, factors, 0.0)
            seen, deltas = ([torch.where(finite[:, :, None], one, 0.0) for one in many] for many in (seen, deltas))
        return weighted_sums(seen, deltas, factors)

    def _noised(self, sums: Sequence[Tensor], sources: Sequence[NoiseSource | None]) -> list[Tensor]:
        noise = [np.zeros(tuple(total.shape)) for total in sums]
        for client, source in enumerate(sources):
            if source is not None:
                for all_of_them in noise:  # weight, bias, weight, ... as they come in the stream of a client alone
                    all_of_them[client] = source.normal(all_of_them.shape[1:], self._std)
        return [(total.double() + torch.from_numpy(n)).float() for total, n in zip(sums, noise, strict=True)]
