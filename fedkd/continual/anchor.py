"""The anchor: frozen soft labels of the public proxies, and which classes they can keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.distill.losses import soften


def anchored(said: Tensor, before: Sequence[int], temperature: float) -> Tensor:
    """Soft labels [n, k] of logits ``said`` [n, k] at a temperature, all of their mass on the classes ``before``."""
    known = torch.zeros(said.shape[1], dtype=torch.bool)
    known[list(before)] = True
    return soften(said.masked_fill(~known, -torch.inf), temperature)
