"""Size, latency and accuracy of exported students on Fashion-MNIST (or digits), as a Markdown table.

python benchmarks/device.py --formats onnx executorch --data digits
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedkd import config
from fedkd.config import Architecture, Scenario
from fedkd.data.sources import Examples
from fedkd.device.export import export_file
from fedkd.device.measure import EagerRunner, latency, open_runner, parity, predict
from fedkd.distill.losses import cross_entropy
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.trainer import Labelled, fit
from simulations import split
from simulations.prepare import build_proxy

SETTINGS = {
    "idx": ["data.source=idx", "proxy.size=4000", "proxy.tune_size=2000"],
    "digits": ["proxy.size=300", "proxy.tune_size=100"],
}
STUDENTS = (("linear", "scattering", 300), ("mlp", "pca", 60), ("cnn", "none", 1), ("rnn", "none", 1))
EXAMPLES, BATCH, TESTED = 20_000, 128, 5000
STEPS = {"rnn": 400}  # it takes long


def main() -> None:
    """Train, export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--formats", nargs="+", default=["onnx", "executorch"])
    parser.add_argument("--data", choices=sorted(SETTINGS), default="idx")
    parser.add_argument("--students", nargs="+", default=[name for name, _, _ in STUDENTS])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| student | file | bytes | p50 µs | p95 µs | accuracy | same first choice | largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for architecture, features, components in STUDENTS:
        settings = [*SETTINGS[given.data], f"features.kind={features}", f"features.components={components}"]
        if architecture in given.students:
            _rows(config.load(Scenario, None, settings), architecture, given.formats)


def _rows(scenario: Scenario, architecture: str, formats: list[str]) -> None:
    view = ProxyView(build_proxy(scenario, Path()), Path())
    parts = split.cut(scenario, Path())
    some = np.arange(min(EXAMPLES, len(parts.private)))
    model = _trained(Architecture(kind=architecture), view, parts.private.take(some))
    x, y = parts.test.x[:TESTED], parts.test.y[:TESTED]
    expected = predict(EagerRunner(model), x)
    with tempfile.TemporaryDirectory() as folder:
        files = {"PyTorch": Path(folder, "student.safetensors")}
        model.save(files["PyTorch"])
        for format in formats:
            for label, proxy in (("float32", None), ("int8", view.proxy)):
                files[f"{format} {label}"] = Path(folder, f"{format}-{label}")
                export_file(model, format, files[f"{format} {label}"], proxy)
        for name, file in files.items():
            runner = open_runner(file)
            rows, took = predict(runner, x), latency(runner)
            near, right = parity(rows, expected), float((rows.argmax(axis=1) == y).mean())
            print(
                f"| {architecture}, {scenario.features.kind} | {name} | {file.stat().st_size:,} | {took.p50_us:.0f} | "
                f"{took.p95_us:.0f} | {right:.2%} | {near.agreement:.2%} | {near.max_difference:.1g} |",
                flush=True,
            )


def _trained(architecture: Architecture, view: ProxyView, data: Examples) -> Model:
    model = Model.fresh(architecture, view, 0, Path())
    known = Labelled(model.inputs(data.x), torch.from_numpy(data.y))
    order = torch.Generator().manual_seed(0)

    def loss(network: nn.Module) -> torch.Tensor:
        some = torch.randint(len(known.y), (BATCH,), generator=order)
        return cross_entropy(network(known.x[some]), known.y[some]).mean()

    fit(model.network, loss, steps=STEPS.get(architecture.kind, 1500), learning_rate=0.005)
    return model


if __name__ == "__main__":
    main()
