"""A trained student as one file for a runtime without fedkd: ONNX or ExecuTorch, float32 or int8."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from fedkd.data.proxy import ProxySet
from fedkd.data.sources import as_float
from fedkd.device import executorch_file, onnx_file
from fedkd.device.graph import Calibration
from fedkd.distill.model import Model
from fedkd.errors import DataError, FedkdError
from fedkd.state import write_atomic

Format = Literal["onnx", "executorch"]
WRITERS = {"onnx": onnx_file, "executorch": executorch_file}
CALIBRATED_ON = 256  # proxy examples


def export(model: Model, format: Format, calibration: ProxySet | None = None) -> bytes:
    """The file's bytes: public features and student in one graph, one example [1, *shape] float32 to probabilities
    [1, classes].

    With ``calibration``, the proxy set that the model was made with, the student is int8: the ranges of its values are
    those on the first examples of the set; a recurrent student has int8 weights, and no ranges. Raises DataError for
    any other set, FedkdError when the format's package is not installed or the network cannot be said in the format.
    """
    examples = None if calibration is None else _calibration(model, calibration)
    need(format, WRITERS[format].WRITES)
    write: Callable[[Model, Calibration | None], bytes] = WRITERS[format].write
    return write(model, examples)


def export_file(model: Model, format: Format, path: Path, calibration: ProxySet | None = None) -> None:
    """``export`` into a file, written whole or not at all."""
    write_atomic(path, export(model, format, calibration))


def need(format: str, modules: Sequence[str]) -> None:
    """Raises FedkdError when a module is missing that reads or writes a format."""
    try:
        with executorch_file.quiet():
            for module in modules:
                importlib.import_module(module)
    except ImportError as error:
        raise FedkdError(
            f"{format} needs packages that are not installed: {error}", fix=f"pip install 'fedkd[{format}]'"
        ) from None


def _calibration(model: Model, proxy: ProxySet) -> Calibration:
    """Ranges of values go into the file, and would tell of private examples."""
    if proxy.hash != model.proxy:
        raise DataError(
            f"int8 is calibrated on the model's own proxy set and on nothing else: its hash is {model.proxy}, "
            f"not {proxy.hash}",
            fix="give the proxy set that all parties of the run hold",
        )
    return Calibration(proxy.hash, as_float(proxy.examples[:CALIBRATED_ON]))
