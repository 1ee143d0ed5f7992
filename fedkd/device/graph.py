"""A student and its public features as one graph, traced with zeros and with nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkd.data.user_code import last_line
from fedkd.distill import students
from fedkd.distill.features import arrays
from fedkd.distill.fronts import FrontNetwork
from fedkd.distill.model import LARGEST_INPUT, Model
from fedkd.errors import FedkdError
from fedkd.tensors import Arrays, canonical, digest, pack


@dataclass(frozen=True)
class Calibration:
    """Public examples x [n, *shape] on which the ranges of an int8 student are found, and their set's hash."""

    proxy: str
    x: NDArray[np.float32]


SMALL = 8192  # numbers; smaller matrices stay float32, because exporters would widen them again


class Deployable(nn.Module):
    """float32 examples [n, *shape], in the scale of the training data, to probabilities [n, classes].

    The same function as ``Model.predict``. With ``int8`` the large matrices of the public features are held as int8
    with a scale a column, and are multiplied as float32: they are most of a small student's bytes, and the values that
    they are multiplied with have too wide a range for eight bits.
    """

    def __init__(self, model: Model, int8: bool = False) -> None:
        super().__init__()
        self.features: nn.Module = nn.Identity()
        if model.network.takes == "features":
            self.features = model.features.network(_Int8Front if int8 else FrontNetwork)
        self.network = model.network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.network(self.features(x).clamp(-LARGEST_INPUT, LARGEST_INPUT)), dim=1)


class _Int8Front(FrontNetwork):
    """Public features whose large matrices are int8 [d, k] times a float32 scale [k]."""

    def __init__(self, kind: str, arrays: Arrays, backbone: nn.Module | None) -> None:
        super().__init__(kind, arrays, backbone)
        self._matrices = [n for n, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "f"]
        self._matrices = [n for n in self._matrices if arrays[n].size > SMALL]
        for name in self._matrices:
            matrix = self.get_buffer(name)
            scale = matrix.abs().amax(dim=0).clamp_min(torch.finfo(torch.float32).tiny) / 127
            delattr(self, name)
            self.register_buffer(f"{name}_int8", (matrix / scale).round().to(torch.int8))
            self.register_buffer(f"{name}_scale", scale)

    def held(self) -> dict[str, Tensor]:
        """The buffers, the matrices as float32 again."""
        whole = {n: self.get_buffer(n) for n in self.names if n not in self._matrices}
        wide = {n: self.get_buffer(f"{n}_int8").float() * self.get_buffer(f"{n}_scale") for n in self._matrices}
        return whole | wide


def recurrent(model: Model) -> bool:
    """Whether a state goes through the same layers step after step: int8 layers would round it at each of them."""
    return model.architecture.kind == "rnn"


def example(model: Model) -> Tensor:
    """What a graph is traced with: one example of zeros, in storage of its own.

    Formats may store the example, and with it the whole array that it is a view of: a slice of private data would
    take all of it along.
    """
    return torch.zeros(1, *model.features.spec["shape"])


def trace(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """The module's graph for one example. Raises FedkdError for a network that cannot be traced."""
    try:
        program = torch.export.export(module, (x,), strict=False)
    except Exception as error:
        raise FedkdError(
            f"the network cannot be traced: {last_line(error)}",
            fix="forward must not branch on the values of its input",
        ) from error
    decomposed: torch.export.ExportedProgram = program.run_decompositions({torch.ops.aten.hypot.default: _hypot})
    return decomposed


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    """No format has it."""
    return (a * a + b * b).sqrt()


def describe(model: Model, format: str, calibration: Calibration | None) -> dict[str, Any]:
    """What a file says of itself: what made it and what it takes. No path, no clock."""
    features = digest(pack(arrays(model.features), model.features.spec))
    return {
        "format": f"fedkd.{format}/1",
        "architecture": model.architecture.kind,
        "shape": list(model.features.spec["shape"]),
        "classes": model.classes,
        "proxy": model.proxy,
        "features": features if model.network.takes == "features" else None,
        "weights": students.digest(model.network),
        "int8": calibration is not None,
        "calibration": None if calibration is None or recurrent(model) else calibration.proxy,
    }


def text(description: dict[str, Any]) -> str:
    """The description as one line."""
    return canonical(description).decode()
