"""The gate: a new version is served only when it does no worse than what is served now, on the device's own examples.

Its measurements are made of private data. They stay in ``STATE/serving``, and nothing of them reaches the lineage.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.config import Device, Gate
from fedkd.data.proxy import ProxySet
from fedkd.data.sources import Examples
from fedkd.device.export import export
from fedkd.device.measure import EagerRunner, Runner, latency, open_runner, predict
from fedkd.device.serving import Served, Serving
from fedkd.device.versions import Version, Versions
from fedkd.distill.model import Model
from fedkd.errors import ConfigError, DataError

ROUNDING = 1e-9  # a difference of two shares may come out above a limit that it is equal to
SUFFIX = {"safetensors": "safetensors", "onnx": "onnx", "executorch": "pte"}
RUNS = 50  # calls that are timed


@dataclass(frozen=True)
class Row:
    """Accuracy on held-out examples: of all, and class by class (None: no examples), with their counts."""

    accuracy: float
    by_class: tuple[float | None, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """What the gate sees of a version: its file's row, size and latency, and the accuracy of the float32 student."""

    row: Row
    student_accuracy: float
    bytes: int
    p50_us: float
    p95_us: float


@dataclass(frozen=True)
class Verdict:
    """Whether a version is served now; if not, why. ``damaged`` are served files that it could not be compared with."""

    version: Version
    promoted: bool
    reasons: tuple[str, ...]
    measured: Measured
    damaged: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def promote(
    state: Path, id: str, held_out: Examples, device: Device, *, proxy: ProxySet | None = None, code: Path | None = None
) -> Verdict:
    """Measure a registered version on held-out examples of this device and serve it if the gate lets it pass.

    It is compared with the files of the versions that were served, as far as they are whole. ``proxy`` is needed where
    the device serves int8. Raises ConfigError without examples, DataError for examples of another shape or label list.
    """
    if not len(held_out):
        raise ConfigError("the gate needs held-out examples", fix="give labelled examples that no training has seen")
    versions, serving = Versions(state, device.keep), Serving(state, device.keep)
    version = versions.find(id)
    model = Model.open(versions.path(version.id), code)
    if not 0 <= int(held_out.y.min()) <= int(held_out.y.max()) < version.classes:
        raise DataError(f"the examples have labels outside the version's list, 0 to {version.classes - 1}")
    content = _content(model, versions.read(version), device, proxy)
    with _opened(content, SUFFIX[device.format], code) as runner:
        measured = _measure(runner, model, len(content), held_out)
    stack, damaged = serving.stack(), serving.damaged()
    known = [one for one in stack if one not in damaged and _comparable(one, version)]
    rows = [_row(open_runner(serving.path(one), code), held_out) for one in known]
    reasons = [*_other_kind(stack, version), *judge(device.gate, measured, rows)]
    if not reasons:
        serving.switch(version, content, SUFFIX[device.format], asdict(measured))
    return Verdict(version, not reasons, tuple(reasons), measured, tuple(one.file for one in damaged))


def errors(state: Path, examples: Examples, keep: int, code: Path | None = None) -> list[bool]:
    """Which of some examples the served version gets wrong, in their order; none while nothing is served."""
    serving = Serving(state, keep)
    stack = serving.stack()
    if not stack or not len(examples):
        return []
    wrong = predict(open_runner(serving.path(stack[-1]), code), examples.x).argmax(axis=1) != examples.y
    return [bool(one) for one in wrong]


def judge(gate: Gate, new: Measured, rows: Sequence[Row]) -> Iterator[str]:
    """Every reason against serving a version: ``rows`` are those of the versions that were served, the newest last.

    A class is compared with the best that any of them knew it, so that small steps do not add up to a loss.
    """
    if rows and (drop := rows[-1].accuracy - new.row.accuracy) > gate.max_accuracy_drop + ROUNDING:
        yield _exceeds("accuracy drop", drop, gate.max_accuracy_drop)
    for label, (accuracy, count) in enumerate(zip(new.row.by_class, new.row.counts, strict=True)):
        best = max((known for row in rows if (known := row.by_class[label]) is not None), default=0.0)
        if accuracy is None or count < gate.min_class_examples:
            continue
        if (lost := best - accuracy) > gate.max_class_forgetting + ROUNDING:
            yield _exceeds(f"forgetting of class {label}", lost, gate.max_class_forgetting)
    if (drop := new.student_accuracy - new.row.accuracy) > gate.max_int8_drop + ROUNDING:
        yield _exceeds("accuracy drop of the exported file", drop, gate.max_int8_drop)
    if gate.max_bytes is not None and new.bytes > gate.max_bytes:
        yield _exceeds("size in bytes", new.bytes, gate.max_bytes)
    if gate.max_p95_us is not None and new.p95_us > gate.max_p95_us:
        yield _exceeds("p95 latency in microseconds", new.p95_us, gate.max_p95_us)


def _exceeds(what: str, value: float, limit: float) -> str:
    return f"{what}: {value:.4g} is more than {limit:.4g}"


def _comparable(one: Served, version: Version) -> bool:
    return (one.version.classes, one.version.shape) == (version.classes, version.shape)


def _other_kind(stack: Sequence[Served], version: Version) -> Iterator[str]:
    """Who uses the served version reads its answers by number."""
    if stack and not _comparable(stack[-1], version):
        served = stack[-1].version
        yield (
            f"it takes {list(version.shape)} and knows {version.classes} labels, "
            f"the served version takes {list(served.shape)} and knows {served.classes}"
        )


def _content(model: Model, original: bytes, device: Device, proxy: ProxySet | None) -> bytes:
    if device.format == "safetensors":
        return original
    if device.int8 and proxy is None:
        raise ConfigError("int8 needs the proxy set to calibrate on", where="key 'int8'", fix="--proxy FILE")
    return export(model, device.format, proxy if device.int8 else None)


class _opened:
    """A runner of bytes that are not served yet."""

    def __init__(self, content: bytes, suffix: str, code: Path | None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path, self._code = Path(self._folder.name, f"candidate.{suffix}"), code
        self._path.write_bytes(content)

    def __enter__(self) -> Runner:
        return open_runner(self._path, self._code)

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()


def _measure(runner: Runner, model: Model, size: int, held_out: Examples) -> Measured:
    row, took = _row(runner, held_out), latency(runner, RUNS)
    return Measured(row, _row(EagerRunner(model), held_out).accuracy, size, took.p50_us, took.p95_us)


def _row(runner: Runner, held_out: Examples) -> Row:
    right = predict(runner, held_out.x).argmax(axis=1) == held_out.y
    counts = np.bincount(held_out.y, minlength=int(runner.description["classes"]))
    hits = np.bincount(held_out.y[right], minlength=len(counts))
    by_class = [float(hit / count) if count else None for hit, count in zip(hits, counts, strict=True)]
    return Row(float(right.mean()), tuple(by_class), tuple(int(count) for count in counts))
