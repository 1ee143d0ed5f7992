"""From examples to raw coefficients, and from those to features: what a fitted feature map does with its arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.distill import patches, scattering
from fedkd.tensors import Arrays

Front = Callable[[Tensor, int], Tensor]  # a chunk of examples [n, *shape], and how many are real, to raw rows [n, d]
# A product with fewer columns may be summed in another order for other rows of one chunk.
_NARROWEST = 16


def front(kind: str, held: Mapping[str, Tensor]) -> Front:
    """The front of a built-in kind of features."""
    if kind == "scattering":
        return lambda x, real: scattering.scatter(x, held)
    if kind == "patches":
        return one_by_one(partial(patches.encode, held=held))
    return lambda x, real: x.flatten(1)


def one_by_one(encode: Callable[[Tensor], Tensor]) -> Front:
    """Examples do not share a kernel here, so those that only fill a chunk up are left out."""

    def front(x: Tensor, real: int) -> Tensor:
        found = encode(x[: max(real, 1)])
        return torch.cat([found, found.new_zeros(len(x) - len(found), found.shape[1])])

    return front


def affine(held: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Raw rows [n, d] to features [n, dim]: less their mean, times a scale or a basis."""
    if "basis" not in held:
        return lambda raw: (raw - held["mean"]) * held["scale"]
    kept = held["basis"].shape[1]
    if kept >= _NARROWEST:
        return lambda raw: (raw - held["mean"]) @ held["basis"]
    wide = functional.pad(held["basis"], (0, _NARROWEST - kept))
    return lambda raw: ((raw - held["mean"]) @ wide)[:, :kept]


class FrontNetwork(nn.Module):
    """One front and what follows it as a network without parameters: float32 examples [n, *shape] to [n, dim].

    ``backbone`` is the front where it is a network of the user's own.
    """

    def __init__(self, kind: str, arrays: Arrays, backbone: nn.Module | None) -> None:
        super().__init__()
        self.kind, self.backbone = kind, backbone
        self.names = tuple(arrays)
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array))

    def held(self) -> dict[str, Tensor]:
        """The arrays of the map by name."""
        return {name: self.get_buffer(name) for name in self.names}

    def forward(self, x: Tensor) -> Tensor:
        held = self.held()
        raw = front(self.kind, held)(x, len(x)) if self.backbone is None else self.backbone(x)
        return affine(held)(raw)


class JoinedNetwork(nn.Module):
    """Networks of features beside one another."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=1)
