"""The anchor: frozen soft labels of the public proxies, and which classes they can keep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.distill.losses import soften

FEWEST = 10.0
"""Proxies of a class, as the anchor sees them, below which it can hardly keep the class."""


def anchored(said: Tensor, before: Sequence[int], temperature: float) -> Tensor:
    """Soft labels [n, k] of logits ``said`` [n, k] at a temperature, all of their mass on the classes ``before``."""
    known = torch.zeros(said.shape[1], dtype=torch.bool)
    known[list(before)] = True
    return soften(said.masked_fill(~known, -torch.inf), temperature)


def coverage(rows: NDArray[np.float32], classes: Sequence[int]) -> dict[str, float]:
    """class -> how many proxies an anchor with these soft labels [n, k] holds of it: the sum of its column.

    Computed from public examples and a model's answers on them, never from private counts.
    """
    mass = rows.sum(axis=0, dtype=np.float64)
    return {str(label): round(float(mass[label]), 2) for label in classes}


def uncovered(found: dict[str, float]) -> list[str]:
    """The classes that an anchor cannot keep, since the proxy set has hardly any example that looks like them."""
    return [label for label, mass in found.items() if mass < FEWEST]
