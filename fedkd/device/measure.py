"""What a file costs and how well it answers: latency, size, accuracy, and how near it is to the student in PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedkd.data.sources import Pixels, as_float
from fedkd.device import executorch_file, onnx_file
from fedkd.device.executorch_file import ExecutorchRunner
from fedkd.device.export import need
from fedkd.device.onnx_file import OnnxRunner
from fedkd.distill.model import Model
from fedkd.errors import DataError
from fedkd.rng import generator

Floats = NDArray[np.float32]
WARM_UP = 20  # calls before the clock starts: the first ones allocate


class Runner(Protocol):
    """Runs a model. ``batch`` is how many examples a call may have."""

    @property
    def description(self) -> dict[str, Any]:
        """What the file says of itself: format, architecture, shape, classes, proxy, int8, ..."""

    @property
    def batch(self) -> int:
        """Exports take one example at a time."""

    def run(self, x: Floats) -> Floats:
        """Probabilities [n, classes] of examples [n, *shape], n <= batch."""


class EagerRunner:
    """A student in PyTorch, as ``Model.predict`` has it."""

    batch = 1024

    def __init__(self, model: Model) -> None:
        self._model = model
        self.description: dict[str, Any] = {
            "format": "fedkd.model/1",
            "architecture": model.architecture.kind,
            "shape": list(model.features.spec["shape"]),
            "classes": model.classes,
            "proxy": model.proxy,
            "int8": False,
        }

    def run(self, x: Floats) -> Floats:
        """Probabilities [n, classes] of examples [n, *shape]."""
        return self._model.predict(x)


def open_runner(path: Path, code: Path | None = None) -> Runner:
    """What runs a file: a student of fedkd, or an export of one. Raises DataError for any other file, FedkdError when
    its runtime is not installed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path), fix="check the path") from None
    if content[8:9] == b"{":  # safetensors: a length, then a JSON header
        return EagerRunner(Model.open(path, code))
    if content[4:6] == b"ET":  # a flatbuffer's identifier
        need("executorch", executorch_file.RUNS)
        return ExecutorchRunner(content, str(path))
    need("onnx", onnx_file.RUNS)
    return OnnxRunner(content, str(path))


def predict(runner: Runner, x: Pixels) -> Floats:
    """Probabilities [n, classes] of any number of examples [n, *shape]. Raises DataError for another shape."""
    shape = tuple(runner.description["shape"])
    if x.shape[1:] != shape:
        raise DataError(f"examples of shape {x.shape[1:]}, but the model takes {shape}")
    floats = as_float(x)
    starts = range(0, len(floats), runner.batch)
    rows = [runner.run(np.ascontiguousarray(floats[i : i + runner.batch])) for i in starts]
    return np.concatenate(rows) if rows else np.zeros((0, int(runner.description["classes"])), np.float32)


@dataclass(frozen=True)
class Latency:
    """Of one example at a time on one thread, in microseconds."""

    p50_us: float
    p95_us: float
    runs: int


def latency(runner: Runner, runs: int = 200, clock: Callable[[], int] = time.perf_counter_ns) -> Latency:
    """Calls the runner on made-up examples. What else the machine does at the time is measured too."""
    x = generator(0, "latency").random((1, *runner.description["shape"]), np.float32)
    for _ in range(WARM_UP):
        runner.run(x)
    took = []
    for _ in range(runs):
        start = clock()
        runner.run(x)
        took.append(clock() - start)
    p50, p95 = np.percentile(np.array(took) / 1e3, [50, 95])
    return Latency(round(float(p50), 1), round(float(p95), 1), runs)


@dataclass(frozen=True)
class Parity:
    """How near two models are on n examples: largest difference of a probability, share of equal first choices."""

    max_difference: float
    agreement: float
    examples: int


def parity(one: Floats, two: Floats) -> Parity:
    """Of probabilities [n, classes] for the same n > 0 examples."""
    same = one.argmax(axis=1) == two.argmax(axis=1)
    return Parity(float(np.abs(one - two).max()), float(same.mean()), len(one))


def made_up(shape: tuple[int, ...], n: int = 64) -> Floats:
    """Uniform examples in [0, 1], for a comparison where nobody has given any."""
    return generator(0, "made up").random((n, *shape), np.float32)


def record(value: Latency | Parity) -> dict[str, Any]:
    """As JSON has it."""
    return asdict(value)
