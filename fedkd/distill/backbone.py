"""A user's own frozen front for public features: code in a file that all parties hold, weights in the proxy set.

The file's hash travels with the features, and is checked before the file is imported: a proxy set that somebody else
has built can name no code but what its owner has put there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.data.user_code import call, load_symbol
from fedkd.distill.students import load_arrays, seeded, state_arrays
from fedkd.errors import ConfigError
from fedkd.rng import generator
from fedkd.tensors import Arrays, digest


class Backbone:
    """A module in evaluation mode, made as ``Class(shape)``, from examples [n, *shape] to features [n, d]."""

    def __init__(self, name: str, shape: tuple[int, ...], base: Path, code: str | None = None) -> None:
        """Raises ConfigError where there is no such file in ``base``, where its SHA-256 is not ``code``, or where its
        class cannot be used."""
        self.name, self.code = name, _code(name, base, code)
        with seeded(0):
            module = call(name, load_symbol(name, base), shape)
        if not isinstance(module, nn.Module):
            raise ConfigError(f"{name} made a {type(module).__name__}, not a torch.nn.Module", where=name)
        self.module, self._shape = module.requires_grad_(False).eval(), shape

    def load(self, weights: Arrays) -> None:
        """Take these weights. Raises DataError for those of another network."""
        load_arrays(self.module, weights)

    def arrays(self) -> Arrays:
        """The weights."""
        return state_arrays(self.module)

    def check(self) -> None:
        """Refuse a module that answers no features, or remembers what it has seen: a private example's features must be
        a function of that example alone. A trial, not a proof. Raises ConfigError."""
        one, other = generator(0, "made-up examples").random((2, 1, *self._shape), dtype=np.float32)
        before = digest(b"".join(array.tobytes() for array in self.arrays().values()))
        first, _, again = (call(self.name, self, torch.from_numpy(x)) for x in (one, other, one))
        if not torch.equal(first, again) or before != digest(b"".join(a.tobytes() for a in self.arrays().values())):
            raise ConfigError("the features of an example depend on what was seen before it", where=self.name)

    def __call__(self, x: Tensor) -> Tensor:
        """Features [n, d], one example after another, so that an example gives the same bytes in any batch."""
        found = [self.module(one[None]) for one in x]
        for one in found[:1]:
            if not isinstance(one, Tensor) or one.dtype != torch.float32 or one.dim() != 2 or len(one) != 1:
                answer = f"{one.dtype} {list(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
                raise ConfigError(f"the backbone answered {answer}, not float32 features [1, d]", where=self.name)
        return torch.cat(found)


def _code(name: str, base: Path, expected: str | None) -> str:
    """SHA-256 of the module's file."""
    parts = name.partition(":")[0].split(".")
    files = [base.joinpath(*parts).with_suffix(".py"), base.joinpath(*parts, "__init__.py")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        fix = "a backbone is a file of yours, in the scenario's folder or in the one that 'code' names"
        raise ConfigError(
            f"there is no file {files[0].name} for the features {name}", where=str(base.resolve()), fix=fix
        )
    found = digest(path.read_bytes())
    if expected not in (None, found):
        raise ConfigError(
            f"the features were fitted with other code than this: its SHA-256 was {expected}, here it is {found}",
            where=str(path),
            fix="get the file from whoever built the proxy set, and read it before you use it",
        )
    return found
