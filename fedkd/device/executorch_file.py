"""Students as ExecuTorch programs, their heavy parts for XNNPACK; int8 by PyTorch's own quantisation of graphs."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedkd.data.user_code import last_line
from fedkd.device.graph import Calibration, Deployable, describe, example, recurrent, text, trace
from fedkd.distill.model import Model
from fedkd.errors import DataError, FedkdError

Floats = NDArray[np.float32]
WRITES, RUNS = ("executorch.exir", "torchao"), ("executorch.runtime",)


def write(model: Model, calibration: Calibration | None) -> bytes:
    """The file; its student is int8 if there are examples to calibrate on.

    Raises FedkdError when a part of the network has no ExecuTorch counterpart.
    """
    description = describe(model, "executorch", calibration)
    try:
        with quiet():
            return _lower(model, None if calibration is None else calibration.x, text(description))
    except FedkdError:
        raise
    except Exception as error:
        raise FedkdError(
            f"the network has no ExecuTorch counterpart: {last_line(error).splitlines()[0]}",
            where=f"architecture {model.architecture.kind}",
            fix="use layers that ExecuTorch's portable kernels know",
        ) from error


def _lower(model: Model, calibration: Floats | None, description: str) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    # the features stay float32: ExecuTorch would widen their int8 matrices again for every example
    module: torch.nn.Module = Deployable(model)
    if calibration is not None:
        examples = example(model).numpy() if recurrent(model) else calibration
        module = _quantised(module, example(model), examples, dynamic=recurrent(model))
    program = trace(module, example(model))
    partitioner: Any = XnnpackPartitioner()
    lowered = to_edge_transform_and_lower(program, partitioner=[partitioner], constant_methods={"fedkd": description})
    return bytes(lowered.to_executorch().buffer)


def _quantised(module: torch.nn.Module, x: torch.Tensor, calibration: Floats, *, dynamic: bool) -> torch.nn.Module:
    """``dynamic``: the ranges of what layers are given are found when they are given it, in every step anew."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    kind = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantiser = XNNPACKQuantizer().set_global(kind)
    quantiser.set_filter_function(lambda node: not _of_features(node))
    prepared = prepare_pt2e(torch.export.export(module, (x,), strict=False).module(), quantiser)
    with torch.no_grad():
        for row in calibration:
            prepared(torch.from_numpy(row[None].copy()))
    converted: torch.nn.Module = convert_pt2e(prepared)
    return converted


def _of_features(node: torch.fx.Node) -> bool:
    stack = node.meta.get("nn_module_stack") or {}
    return any(path == "features" or path.endswith("features") for path, _ in stack.values())


class ExecutorchRunner:
    """Runs a program with ExecuTorch's own runtime."""

    batch = 1

    def __init__(self, content: bytes, where: str) -> None:
        """Raises DataError for bytes that are not such a file."""
        from executorch.runtime import Runtime

        try:
            # a program refers to the bytes that it was read from
            self._content = content
            self._program = Runtime.get().load_program(content)
            (found,) = self._load("fedkd").execute([])
            self.description: dict[str, Any] = json.loads(found)
            self._forward = self._load("forward")
        except Exception as error:  # its errors have no common base
            raise DataError(f"not an ExecuTorch file of fedkd: {last_line(error)}", where=where) from None

    def _load(self, name: str) -> Any:
        method = self._program.load_method(name)
        assert method is not None
        return method

    def run(self, x: Floats) -> Floats:
        """Probabilities [1, classes] of one example [1, *shape]."""
        (result,) = self._forward.execute([torch.from_numpy(x)])
        rows: Floats = result.numpy().copy()  # the runtime uses its output again
        return rows


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ExecuTorch tells of its own internals, which a user can do nothing about."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
