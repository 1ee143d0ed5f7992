"""Processor time of a step of DP-SGD against one of SGD, alone and in a cohort, as a Markdown table.

python benchmarks/dp_step.py --students linear mlp cnn --clients 10 --examples 256

A step takes every example, on 28 x 28 images or 784 features, and has no teacher; SGD is that of no privacy.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from fedkd.config import Student
from fedkd.distill import students
from fedkd.distill.cohort import Cohort, Member
from fedkd.distill.trainer import ALONE, Labelled, Optimiser, Round
from fedkd.privacy.cohort import Shape
from fedkd.privacy.contract import Contract, Training
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.limits import Limits
from fedkd.privacy.noise import NoiseSource, simulation_key

FEATURES, SHAPE, CLASSES = 784, (1, 28, 28), 10


def main() -> None:
    """Measure every student in every way that it can be trained."""
    options = _arguments()
    torch.set_num_threads(1)
    print("| student | way | SGD, ms | DP-SGD, ms | ratio |", "| --- | --- | --- | --- | --- |", sep="\n")
    for kind in options.students:
        for together in (False, True):
            if together and Shape.of(_network(kind, 0).body) is None:
                continue
            plain, private = (_step(kind, mechanism, together, options) for mechanism in ("none", "dp_sgd"))
            way = "cohort" if together else "alone"
            print(f"| {kind} | {way} | {plain:.2f} | {private:.2f} | {private / plain:.1f} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--students", nargs="+", default=["linear", "mlp", "cnn"])
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--examples", type=int, default=256, help="of a client, all in every step")
    parser.add_argument("--steps", type=int, default=10)
    return parser.parse_args()


def _network(kind: str, client: int) -> students.Network:
    return students.build(Student(kind=kind), FEATURES, SHAPE, CLASSES, client, Path())


def _step(kind: str, mechanism: str, together: bool, options: argparse.Namespace) -> float:
    """Milliseconds a step and client; the faster of two times."""
    times: list[float] = []
    for number in (1, 2):
        rounds = {str(client): _round(kind, mechanism, client, number, options) for client in range(options.clients)}
        shapes = {client: Shape.of(_network(kind, 0).body) for client in rounds}
        members = {client: Member(shape, options.examples) for client, shape in shapes.items() if shape is not None}
        cohort = Cohort([members]) if together else None
        began = time.process_time()
        if cohort is not None:
            cohort.train(rounds)
        else:
            for round in rounds.values():
                ALONE.learn(round)
        times.append((time.process_time() - began) / options.clients / options.steps)
    return min(times) * 1000


def _round(kind: str, mechanism: str, client: int, number: int, options: argparse.Namespace) -> Round:
    random, network = torch.Generator().manual_seed(client), _network(kind, client)
    x = torch.randn(options.examples, *network.input_shape, generator=random)
    y = torch.randint(CLASSES, (options.examples,), generator=random)
    noise = NoiseSource(simulation_key(0, str(client), "benchmark", number))
    return Round(network, Labelled(x, y), _contract(mechanism, options), Optimiser(0.1, 0.9), noise, None, {})


def _contract(mechanism: str, options: argparse.Namespace) -> Contract:
    training = Training(options.steps, 1.0, 1.0, float(options.examples))
    event = PrivacyEvent("dp_sgd", noise_multiplier=1.0, sample_rate=1.0, steps=options.steps)
    return Contract(
        run="benchmark",
        server="server",
        proxy="0" * 64,
        examples=1,
        classes=CLASSES,
        queries=1,
        rounds=1,
        codec="float32",
        aggregate="mean",
        mechanism="dp_sgd" if mechanism == "dp_sgd" else "none",
        shards=1,
        events=(event,),
        variances=(),
        training=training,
        limits=Limits("example", 3.0, 1e-5),
        noise="simulation",
    )


if __name__ == "__main__":
    main()
