"""The bodies of the built-in networks: modules from [n, *shape] to logits [n, classes].

All of them may be trained with DP-SGD: an example passes through on its own, batches may be empty, and every layer has
per-example gradients in Opacus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.config import Architecture
from fedkd.errors import ConfigError

LONGEST = 1024  # steps or tokens of an example


def linear(dim: int, classes: int) -> nn.Module:
    """One layer on features [dim], which starts at zero."""
    layer = nn.Linear(dim, classes)
    nn.init.zeros_(layer.weight)  # convex: every start ends in the same place, and this one favours no class
    nn.init.zeros_(layer.bias)
    return layer


def mlp(dim: int, config: Architecture, classes: int) -> nn.Module:
    """Hidden layers on features [dim]."""
    layers: list[nn.Module] = []
    widths = (dim, *config.hidden)
    for inside, outside in pairwise(widths):
        layers += [nn.Linear(inside, outside), nn.Tanh() if config.activation == "tanh" else nn.ReLU()]
        layers += [nn.Dropout(config.dropout)] if config.dropout else []
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


# -- convolutions -----------------------------------------------------------------------------------------------------


def cnn(shape: Sequence[int], config: Architecture, classes: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Convolutions over images [channels, height, width] or sequences [channels, length], and the names of the layers
    that have attention maps. About 30,000 parameters on images by default.

    Tanh bounds activations, and so gradients before clipping (Papernot et al. 2021, arXiv:2007.14191); GroupNorm as in
    Tramèr & Boneh 2021 (arXiv:2011.11660).
    """
    sides = shape[1:]
    image = len(sides) == 2 and all(8 <= side <= 64 for side in sides)
    if not image and not (len(sides) == 1 and 8 <= sides[0] <= LONGEST):
        raise ConfigError(
            f"a cnn takes images [channels, height, width] from 8 x 8 to 64 x 64, or sequences [channels, length] of 8 "
            f"to {LONGEST} steps, not examples {list(shape)}",
            where="key 'kind'",
            fix="use linear or mlp on features, or reshape the source's x",
        )
    layers: list[nn.Module] = []
    for number, (inside, outside) in enumerate(pairwise((shape[0], *config.channels))):
        stride = 2 if number == 0 and min(sides) >= 16 else 1
        layers += _block(len(sides), inside, outside, 5 if number == 0 else 3, stride)
        last = number == len(config.channels) - 1
        layers += [_pool(len(sides), 4)] if last else [_halve(len(sides))] if number == 0 else []
    maps = tuple(str(index) for index, layer in enumerate(layers) if isinstance(layer, nn.Tanh))
    head = nn.Linear(config.channels[-1] * 4 ** len(sides), classes)
    return nn.Sequential(*layers, nn.Flatten(), head), maps


def _block(axes: int, inside: int, outside: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d if axes == 2 else nn.Conv1d
    return [
        convolution(inside, outside, kernel, stride, kernel // 2),
        nn.GroupNorm(math.gcd(8, outside), outside),
        nn.Tanh(),
    ]


def _halve(axes: int) -> nn.Module:
    return nn.MaxPool2d(2) if axes == 2 else nn.MaxPool1d(2)


def _pool(axes: int, size: int) -> nn.Module:
    return nn.AdaptiveAvgPool2d(size) if axes == 2 else nn.AdaptiveAvgPool1d(size)


# -- sequences --------------------------------------------------------------------------------------------------------


class Rnn(nn.Module):
    """Recurrent layers over sequences [n, channels, length], or over the rows of images [n, channels, height, width];
    the last state is classified."""

    def __init__(self, shape: Sequence[int], config: Architecture, classes: int) -> None:
        super().__init__()
        steps, width = _steps("an rnn", shape)
        if steps > LONGEST:
            raise _too_long("an rnn", shape)
        self.layers = nn.ModuleList(_Recurrent(i, o, config.cell) for i, o in pairwise((width, *config.hidden)))
        self.head = nn.Linear(config.hidden[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        seen = x.permute(0, 2, 1, 3).flatten(2) if x.dim() == 4 else x.transpose(1, 2)  # [n, steps, width]
        for layer in self.layers:
            seen = layer(seen)
        logits: Tensor = self.head(seen[:, -1])
        return logits


class _Recurrent(nn.Module):
    """Sequences [n, steps, inside] to states [n, steps, outside].

    Opacus' cells, rather than its layers: those keep every weight twice in their state.
    """

    def __init__(self, inside: int, outside: int, cell: Literal["gru", "lstm"]) -> None:
        super().__init__()
        from opacus.layers.dp_rnn import DPGRUCell, DPLSTMCell  # imported late: Opacus takes seconds

        self.cell = (DPGRUCell if cell == "gru" else DPLSTMCell)(inside, outside, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        state, states = None, []
        for step in x.unbind(dim=1):
            state = self.cell(step, state)
            states.append(state[0] if isinstance(state, tuple) else state)  # of an lstm also its memory
        return torch.stack(states, dim=1)


class Transformer(nn.Module):
    """A small encoder (Vaswani et al. 2017, arXiv:1706.03762) with LayerNorm first (Xiong et al. 2020,
    arXiv:2002.04745) over the patches of images, as in arXiv:2010.11929, or over stretches of sequences; the mean token
    is classified. Positions are sines: they have no parameters that noise would have to cover.
    """

    def __init__(self, shape: Sequence[int], config: Architecture, classes: int) -> None:
        super().__init__()
        sides = shape[1:]
        _steps("a transformer", shape)
        self.patch, width = config.patch, config.width
        if math.prod(-(-side // self.patch) for side in sides) > LONGEST:
            raise _too_long("a transformer", shape)
        self.tokens = nn.Linear(shape[0] * self.patch ** len(sides), width)
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(_patches(x, self.patch))
        tokens = tokens + _sines(tokens.shape[1], tokens.shape[2])
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(dim=1))
        return logits


class _Block(nn.Module):
    """Tokens [n, steps, width] to tokens: attention, then two layers on each token, each beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = _Attention(width, heads)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        seen: Tensor = x + self.narrow(F.gelu(self.wide(self.norms[1](x))))
        return seen


class _Attention(nn.Module):
    """Self-attention from linear layers, which have per-example gradients. (Opacus 1.6's own layer mixes up heads and
    steps when batches come first.)"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]), dim=3)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return mixed


def _patches(x: Tensor, side: int) -> Tensor:
    """Images or sequences [n, channels, *sides] as patches [n, tokens, channels · side ...], with zeros at the end."""
    axes = x.dim() - 2
    borders = [border for size in reversed(x.shape[2:]) for border in (0, -size % side)]
    x = F.pad(x, borders)
    for axis in range(2, 2 + axes):
        x = x.unfold(axis, side, side)
    return x.movedim(1, 1 + axes).flatten(1 + axes).flatten(1, axes)


def _sines(steps: int, width: int) -> Tensor:
    """Positions [steps, width] (arXiv:1706.03762, section 3.5)."""
    rates = 10_000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(steps)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


def _steps(what: str, shape: Sequence[int]) -> tuple[int, int]:
    """Steps of an example, and the width of one. Raises ConfigError."""
    if len(shape) not in (2, 3) or not all(shape):
        raise ConfigError(
            f"{what} takes images [channels, height, width] or sequences [channels, length], not {list(shape)}",
            where="key 'kind'",
            fix="use linear or mlp on features, or reshape the source's x",
        )
    return shape[1], shape[0] * math.prod(shape[2:])


def _too_long(what: str, shape: Sequence[int]) -> ConfigError:
    return ConfigError(
        f"{what} takes up to {LONGEST} steps, and examples {list(shape)} have more",
        where="key 'kind'",
        fix="use larger patches, or shorter examples",
    )
