"""Gradients of single examples by torch.func: an auditor takes them without the code that is audited."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedkd.distill.losses import cross_entropy
from fedkd.errors import FedkdError

Parameters = dict[str, Tensor]
CHUNK = 64


def parameters_of(network: nn.Module) -> Parameters:
    """Copies by name."""
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def each_gradient(network: nn.Module, at: Parameters, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Gradients [some, parameters] of the cross entropy of x [n, ...], y [n] at the weights ``at``, in chunks.
    Raises FedkdError for a network that torch.func cannot take apart."""

    def loss(parameters: Parameters, one: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(network, parameters, (one[None],)), label[None]).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    for some_x, some_y in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True):
        try:
            found = each(at, some_x, some_y)
        except RuntimeError as error:
            raise FedkdError(
                f"this student's gradients cannot be taken one by one: {error}",
                where="key 'students'",
                fix="audit the same policy with --set students=linear",
            ) from error
        yield torch.cat([g.flatten(1) for g in found.values()], dim=1)


def shifted(at: Parameters, by: Tensor) -> Parameters:
    """The weights ``at``, moved by a vector [parameters]."""
    parts = torch.split(by, [p.numel() for p in at.values()])
    return {name: p + part.view_as(p) for (name, p), part in zip(at.items(), parts, strict=True)}
