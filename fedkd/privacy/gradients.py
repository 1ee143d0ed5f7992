"""What training with and without privacy have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedkd.errors import PrivacyError

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]  # (logits [n, k], targets [n]) -> [n], never reduced


def shortened(gradients: Sequence[Tensor | None], norm: float) -> list[Tensor | None]:
    """One gradient, given by parameter, scaled down to an L2 norm of at most ``norm`` over all parameters together."""
    length = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    factor = (norm / (length + 1e-12)).clamp(max=1.0)
    return [None if g is None else g * factor for g in gradients]


def check_sizes(**sizes: float) -> None:
    """Refuse settings of DP-SGD with which it would protect nothing. Raises PrivacyError naming the setting."""
    for name, value in sizes.items():
        if not (math.isfinite(value) and value > 0):
            raise PrivacyError(f"DP-SGD needs a finite {name} above 0, not {value}")
