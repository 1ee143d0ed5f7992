"""Students as ONNX files, for onnxruntime; int8 by static quantisation (QDQ, a scale a channel), of recurrent students
by int8 weights alone."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedkd.data.user_code import last_line
from fedkd.device.graph import Calibration, Deployable, describe, example, recurrent, text, trace
from fedkd.distill.model import Model
from fedkd.errors import DataError, FedkdError

Floats = NDArray[np.float32]
WRITES, RUNS = ("onnx", "onnxscript", "onnxruntime"), ("onnxruntime",)
INPUT, OUTPUT = "x", "probabilities"
# Their results stay float32: eight bits for what a normalisation or a softmax spreads out again cost accuracy.
FLOAT_RESULTS = ["Conv", "Gemm", "MatMul"]


def write(model: Model, calibration: Calibration | None) -> bytes:
    """The file; its student is int8 if there are examples to calibrate on.

    Raises FedkdError when a part of the network has no ONNX counterpart.
    """
    import onnx

    proto = _convert(model, int8=calibration is not None)
    features = [node.name for node in proto.graph.node if _of_features(node)]
    _strip(proto)
    if calibration is not None:
        proto = _with_int8_weights(proto) if recurrent(model) else _quantise(proto, calibration.x, features)
    description = describe(model, "onnx", calibration)
    onnx.helper.set_model_props(proto, {"fedkd": text(description)})
    return bytes(proto.SerializeToString(deterministic=True))


def _convert(model: Model, int8: bool) -> Any:
    try:
        with _quiet():
            program = trace(Deployable(model, int8), example(model))
            made = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    except FedkdError:
        raise
    except Exception as error:
        raise FedkdError(
            f"the network has no ONNX counterpart: {last_line(error).splitlines()[0]}",
            where=f"architecture {model.architecture.kind}",
            fix="use layers that torch.onnx knows",
        ) from error
    assert made is not None
    return made.model_proto


def _of_features(node: Any) -> bool:
    scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
    return "'features'" in scopes


def _strip(proto: Any) -> None:
    """Take out what the exporter notes for debugging: stack traces with paths of this machine."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _quantise(proto: Any, x: Floats, features: list[str]) -> Any:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(proto, before)
        quantize_static(
            before,
            after,
            _Reader(x),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=features,
            extra_options={"OpTypesToExcludeOutputQuantization": FLOAT_RESULTS},
        )
        return onnx.load(after)


def _with_int8_weights(proto: Any) -> Any:
    """Every matrix int8 with a scale a row, widened once for all steps; what is multiplied with it stays float32."""
    from onnx import helper, numpy_helper

    graph, widened = proto.graph, []
    for held in [one for one in graph.initializer if len(one.dims) == 2 and min(one.dims) > 1]:
        matrix = numpy_helper.to_array(held)
        scale = np.maximum(np.abs(matrix).max(axis=1), np.finfo(np.float32).tiny) / np.float32(127)
        narrow = np.rint(matrix / scale[:, None]).astype(np.int8)
        names = [f"{held.name}_int8", f"{held.name}_scale"]
        graph.initializer.remove(held)
        graph.initializer.extend(numpy_helper.from_array(*pair) for pair in zip((narrow, scale), names, strict=True))
        widened.append(helper.make_node("DequantizeLinear", names, [held.name], axis=0))
    nodes = [*widened, *graph.node]  # in the order of their use
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


class _Reader:
    """Hands the examples to the calibration one by one."""

    def __init__(self, x: Floats) -> None:
        self._rest: Iterator[Floats] = iter(x[:, None])

    def get_next(self) -> dict[str, Floats] | None:
        """The next input, None at the end."""
        found = next(self._rest, None)
        return None if found is None else {INPUT: found}


class OnnxRunner:
    """Runs a file with onnxruntime on one thread."""

    batch = 1

    def __init__(self, content: bytes, where: str) -> None:
        """Raises DataError for bytes that are not such a file."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            found = self._session.get_modelmeta().custom_metadata_map["fedkd"]
            self.description: dict[str, Any] = json.loads(found)
        except Exception as error:  # onnxruntime's own errors have no common base
            raise DataError(f"not an ONNX file of fedkd: {last_line(error)}", where=where) from None

    def run(self, x: Floats) -> Floats:
        """Probabilities [1, classes] of one example [1, *shape]."""
        result: Floats = self._session.run([OUTPUT], {INPUT: x})[0]
        return result


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its own internals, which a user can do nothing about."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "root")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
