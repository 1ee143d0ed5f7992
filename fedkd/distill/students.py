"""Architectures of students and teacher, their parameters as arrays, and what a network must obey."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedkd import tensors
from fedkd.config import Architecture
from fedkd.data.user_code import call, load_symbol
from fedkd.errors import ConfigError, DataError
from fedkd.rng import derive
from fedkd.tensors import Arrays

Takes = Literal["features", "raw"]

# What an architecture learns well with where the configuration does not say otherwise; chosen on public tuning splits.
DEFAULTS: dict[str, dict[str, float]] = {"mlp": {"learning_rate": 0.3}, "cnn": {"learning_rate": 0.1}}


class Network(nn.Module):
    """A module from examples [n, *input_shape] float32 to logits [n, classes].

    ``takes`` says what the examples are: public features [dim], or raw examples as the source has them.
    """

    def __init__(self, body: nn.Module, takes: Takes, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.body = body
        self.takes: Takes = takes
        self.input_shape = input_shape
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


def build(
    student: Architecture, features_dim: int, shape: tuple[int, ...], classes: int, seed: int, base: Path
) -> Network:
    """The network that a configuration names, in training mode, its parameters a pure function of ``seed``.

    ``linear`` (starts at zero) and ``mlp`` (tanh) take features [features_dim]; ``cnn`` takes raw images ``shape`` =
    [channels, height, width]; ``module:Class`` is made as ``Class(input_shape, classes)`` and takes features
    unless it has ``takes = "raw"``. The global random state is left alone. Raises ConfigError for a user's class that
    cannot be used, DataError for what it answers.
    """
    with _seeded(derive(seed, "student")):
        if student.kind == "linear":
            return Network(_linear(features_dim, classes), "features", (features_dim,), classes)
        if student.kind == "mlp":
            return Network(_mlp(features_dim, student, classes), "features", (features_dim,), classes)
        if student.kind == "cnn":
            return Network(_cnn(shape, classes), "raw", shape, classes)
        return _user(student.kind, features_dim, shape, classes, base)


def check_output(output: object, n: int, classes: int, where: str) -> None:
    """Refuse an answer that is not finite floating-point logits [n, classes]. Raises DataError."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or tuple(output.shape) != (n, classes):
        found = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise DataError(f"the network answered {found}, expected logits [{n}, {classes}]", where=where)
    if not bool(torch.isfinite(output).all()):
        raise DataError("the network's answer is NaN or infinite", where=where, fix="use a smaller learning rate")


def state_arrays(module: nn.Module) -> Arrays:
    """Copies of all parameters and buffers by their dotted names."""
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


def load_arrays(module: nn.Module, arrays: Arrays) -> None:
    """Inverse of state_arrays. Raises DataError, the module unchanged, unless all names, shapes and types match."""
    own = module.state_dict()
    if own.keys() != arrays.keys():
        odd = sorted(own.keys() ^ arrays.keys())
        raise DataError(f"the parameters are those of another network: {', '.join(odd[:5])}")
    for name, value in own.items():
        wanted, array = value.detach().cpu().numpy(), arrays[name]
        # a file gives a scalar one axis
        if (array.shape or (1,)) != (wanted.shape or (1,)) or array.dtype != wanted.dtype:
            found = f"{array.dtype} {list(array.shape)}, expected {wanted.dtype} {list(wanted.shape)}"
            raise DataError(f"the parameters are those of another network: {name} is {found}")
    module.load_state_dict({n: torch.from_numpy(arrays[n].copy()).reshape(v.shape) for n, v in own.items()})


def digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers."""
    return tensors.digest(tensors.pack(state_arrays(module), {}))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Everything random inside depends on the seed alone, a user's code with numpy or random included."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _linear(dim: int, classes: int) -> nn.Module:
    layer = nn.Linear(dim, classes)
    nn.init.zeros_(layer.weight)  # convex: every start ends in the same place, and this one favours no class
    nn.init.zeros_(layer.bias)
    return layer


def _mlp(dim: int, student: Architecture, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    widths = (dim, *student.hidden)
    for inside, outside in pairwise(widths):
        layers += [nn.Linear(inside, outside), nn.Tanh() if student.activation == "tanh" else nn.ReLU()]
        layers += [nn.Dropout(student.dropout)] if student.dropout else []
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def _cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """About 30,000 parameters. Tanh bounds activations, and so gradients before clipping (Papernot et al. 2021,
    arXiv:2007.14191); GroupNorm as in Tramèr & Boneh 2021 (arXiv:2011.11660).
    """
    if len(shape) != 3 or not all(8 <= side <= 64 for side in shape[1:]):
        raise ConfigError(
            f"a cnn takes images [channels, height, width] from 8 x 8 to 64 x 64, not examples {list(shape)}",
            where="key 'kind'",
            fix="use linear or mlp on features, or reshape the source's x",
        )
    stride = 1 if min(shape[1:]) < 16 else 2
    block1 = [nn.Conv2d(shape[0], 32, 5, stride, 2), nn.GroupNorm(8, 32), nn.Tanh(), nn.MaxPool2d(2)]
    block2 = [nn.Conv2d(32, 64, 3, 1, 1), nn.GroupNorm(8, 64), nn.Tanh(), nn.AdaptiveAvgPool2d(4)]
    return nn.Sequential(*block1, *block2, nn.Flatten(), nn.Linear(64 * 4 * 4, classes))


def _user(name: str, features_dim: int, shape: tuple[int, ...], classes: int, base: Path) -> Network:
    make: Callable[..., Any] = load_symbol(name, base)
    takes: Takes = getattr(make, "takes", "features")
    if takes not in ("features", "raw"):
        raise ConfigError(f"'takes' must be 'features' or 'raw', not {takes!r}", where=name)
    input_shape = shape if takes == "raw" else (features_dim,)
    body = call(name, make, input_shape, classes)
    if not isinstance(body, nn.Module):
        raise ConfigError(f"{name} made a {type(body).__name__}, not a torch.nn.Module", where=name)
    network = Network(body, takes, input_shape, classes).eval()
    with torch.no_grad():
        check_output(call(name, network, torch.zeros(2, *input_shape)), 2, classes, name)
    odd = [key for key, value in network.state_dict().items() if not isinstance(value, Tensor)]
    odd += [key for key, value in network.named_parameters() if value.dtype != torch.float32]
    if odd:
        raise ConfigError(f"parameters must be float32: {', '.join(odd)}", where=name)
    return network.train()
