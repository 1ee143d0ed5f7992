"""Architectures of students and teacher, their parameters as arrays, and what a network must obey."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedkd import tensors
from fedkd.config import Architecture
from fedkd.data.user_code import call, load_symbol
from fedkd.distill import networks
from fedkd.errors import ConfigError, DataError
from fedkd.rng import derive
from fedkd.tensors import Arrays

Takes = Literal["features", "raw"]

LEARNING_RATE = 0.5
LEARNING_RATES = {"mlp": 0.3, "cnn": 0.1, "rnn": 0.5, "transformer": 0.2}
"""What an architecture learns well with where the configuration says nothing, and all others; chosen on public tuning
splits, for sequences on MNIST-1D."""


class Network(nn.Module):
    """A module from examples [n, *input_shape] float32 to logits [n, classes].

    ``takes`` says what the examples are: public features [dim], or raw examples as the source has them. ``maps`` names
    the modules of the body that have attention maps, with their channels on ``map_axis``.
    """

    def __init__(
        self,
        body: nn.Module,
        takes: Takes,
        input_shape: tuple[int, ...],
        classes: int,
        maps: tuple[str, ...] = (),
        map_axis: int = 1,
    ) -> None:
        super().__init__()
        self.body = body
        self.takes: Takes = takes
        self.input_shape = input_shape
        self.classes = classes
        self.maps, self.map_axis = tuple(f"body.{name}" for name in maps), map_axis

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


def build(
    student: Architecture, features_dim: int, shape: tuple[int, ...], classes: int, seed: int, base: Path
) -> Network:
    """The network that a configuration names, in training mode, its parameters a pure function of ``seed``.

    ``linear`` (starts at zero) and ``mlp`` (tanh) take features [features_dim]; ``cnn``, ``rnn`` and ``transformer``
    take raw images or sequences, ``shape`` = [channels, height, width] or [channels, length]; ``module:Class`` is made
    as ``Class(input_shape, classes)`` and takes features unless it has ``takes = "raw"``. The global random state is
    left alone. Raises ConfigError for examples that do not suit, or a user's class that cannot be used, DataError for
    what that class answers.
    """
    with seeded(derive(seed, "student")):
        if student.kind == "linear":
            return Network(networks.linear(features_dim, classes), "features", (features_dim,), classes)
        if student.kind == "mlp":
            return Network(networks.mlp(features_dim, student, classes), "features", (features_dim,), classes)
        if student.kind == "cnn":
            body, maps = networks.cnn(shape, student, classes)
            return Network(body, "raw", shape, classes, maps)
        if student.kind == "rnn":
            maps = tuple(f"layers.{index}" for index in range(len(student.hidden)))
            return Network(networks.Rnn(shape, student, classes), "raw", shape, classes, maps, 2)
        if student.kind == "transformer":
            maps = tuple(f"blocks.{index}" for index in range(student.layers))
            return Network(networks.Transformer(shape, student, classes), "raw", shape, classes, maps, 2)
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
def seeded(seed: int) -> Iterator[None]:
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


def _user(name: str, features_dim: int, shape: tuple[int, ...], classes: int, base: Path) -> Network:
    make: Callable[..., Any] = load_symbol(name, base)
    takes: Takes = getattr(make, "takes", "features")
    if takes not in ("features", "raw"):
        raise ConfigError(f"'takes' must be 'features' or 'raw', not {takes!r}", where=name)
    input_shape = shape if takes == "raw" else (features_dim,)
    body = call(name, make, input_shape, classes)
    if not isinstance(body, nn.Module):
        raise ConfigError(f"{name} made a {type(body).__name__}, not a torch.nn.Module", where=name)
    network = Network(body, takes, input_shape, classes, *_maps(name, make, body)).eval()
    with torch.no_grad():
        check_output(call(name, network, torch.zeros(2, *input_shape)), 2, classes, name)
    odd = [key for key, value in network.state_dict().items() if not isinstance(value, Tensor)]
    odd += [key for key, value in network.named_parameters() if value.dtype != torch.float32]
    if odd:
        raise ConfigError(f"parameters must be float32: {', '.join(odd)}", where=name)
    return network.train()


def _maps(name: str, make: object, body: nn.Module) -> tuple[tuple[str, ...], int]:
    """What a user's class says of its attention maps."""
    maps, axis = tuple(getattr(make, "maps", ())), getattr(make, "map_axis", 1)
    known = {module for module, _ in body.named_modules()}
    odd = [one for one in maps if one not in known]
    if odd or not isinstance(axis, int):
        what = f"there is no module {odd[0]!r}" if odd else f"'map_axis' must be an integer, not {axis!r}"
        raise ConfigError(f"the attention maps cannot be used: {what}", where=name, fix="see 'maps' of the class")
    return maps, axis
