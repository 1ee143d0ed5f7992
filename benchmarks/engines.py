"""Client updates a second of the engines of a simulation, as a Markdown table.

python benchmarks/engines.py --clients 10 100 1000 --students linear mlp

An update is a client's whole round, from the plan that comes in to the answers that go out, its ledger and student
on disk; ``training`` is the part that engines do differently. Seconds are those of one processor; the first round is
not counted, and every engine starts from the same directories.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd import config, wire
from fedkd.config import Scenario
from fedkd.data.proxy import ProxySet
from fedkd.distill import cohort, trainer
from fedkd.rng import generator
from fedkd.wire import Agreement, Answers, Offer, Plan
from simulations.engine import Engine
from simulations.prepare import prepare
from simulations.split import client_names


class Clock:
    """Processor seconds inside what is measured."""

    def __init__(self) -> None:
        self.spent = 0.0

    def around(self, call: Any) -> Any:
        """The same call, measured."""

        def measured(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return call(*arguments, **named)
            finally:
                self.spent += time.process_time() - began

        return measured


def main() -> None:
    """Measure every size, student and engine."""
    options = _arguments()
    torch.set_num_threads(1)
    print(
        "| clients | student | engine | updates/s | training, updates/s |", "| --- | --- | --- | --- | --- |", sep="\n"
    )
    for clients in options.clients:
        for student in options.students:
            _compare(clients, student, options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--students", nargs="+", default=["linear", "mlp"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--components", type=int, default=30, help="public features")
    parser.add_argument("--mechanism", choices=("dp_sgd", "none"), default="dp_sgd")
    return parser.parse_args()


def _compare(clients: int, student: str, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="engines-") as folder:
        _data(Path(folder), clients)
        prepare(_scenario(clients, student, options), Path(folder) / "process", Path(folder))
        shutil.copytree(Path(folder) / "process", Path(folder) / "cohort")
        rates = {}
        for engine in ("process", "cohort"):
            rates[engine] = _measure(Path(folder) / engine, engine == "cohort", options)
            print(f"| {clients} | {student} | {engine} | {rates[engine][0]:.0f} | {rates[engine][1]:.0f} |", flush=True)
        gains = [together / alone for alone, together in zip(*rates.values(), strict=True)]
        print(f"| {clients} | {student} | gain | {gains[0]:.1f}x | {gains[1]:.1f}x |", flush=True)


def _data(folder: Path, clients: int) -> None:
    """Made-up examples, twenty a client beside the proxies: speed does not ask what they show."""
    n, random = 20 * clients + 700, generator(0, "benchmark")
    x, y = random.normal(size=(n, 64)).astype(np.float32), np.arange(n) % 10
    np.savez(folder / "data.npz", x=x, y=y, classes=np.int64(10))


def _scenario(clients: int, student: str, options: argparse.Namespace) -> Scenario:
    return Scenario.model_validate(
        {
            "clients": clients,
            "rounds": options.rounds + 1,
            "data": {"source": "npz", "path": "data.npz", "test_fraction": 100 / (20 * clients + 700)},
            "features": {"kind": "pca", "components": options.components},
            "students": [student],
            "privacy": {"mechanism": options.mechanism},
            "training": {"distil_steps": 0},
        }
    )


def _measure(run: Path, together: bool, options: argparse.Namespace) -> tuple[float, float]:
    """Updates a second, whole and of the training alone."""
    names = client_names(config.load(Scenario, run / "config.yaml"))
    engine = Engine({n: run / "clients" / n for n in names}, run / "test.npz", 1, together=together)
    clock = Clock()
    before = trainer.learn_round, cohort.Cohort.train
    trainer.learn_round, cohort.Cohort.train = (clock.around(one) for one in before)  # type: ignore[method-assign]
    try:
        engine.map("open")
        proxies = ProxySet.load(run / "proxy.safetensors")
        offer = wire.encode(_offer(proxies, len(names), options.rounds + 1))
        _answered(engine.map("agree", lambda client: offer), Agreement)
        for round in range(1, options.rounds + 2):
            if round == 2:
                clock.spent, began = 0.0, time.process_time()
            _answer(engine, wire.encode(_plan(proxies, round)))
        updates = options.rounds * len(names)
        return updates / (time.process_time() - began), updates / clock.spent
    finally:
        trainer.learn_round, cohort.Cohort.train = before  # type: ignore[method-assign]
        engine.close()


def _answer(engine: Engine, plan: bytes) -> None:
    _answered(engine.map("answer", lambda client: plan), Answers)


def _answered(replies: dict[str, bytes], kind: type[Any]) -> None:
    for reply in replies.values():
        wire.decode(reply, kind)


def _offer(proxies: ProxySet, clients: int, rounds: int) -> Offer:
    n, classes = len(proxies), proxies.classes
    return Offer("run-1", "server", proxies.hash, n, classes, n, rounds, "float16", "mean", clients, "")


def _plan(proxies: ProxySet, round: int) -> Plan:
    """The first round has no teacher yet; later ones have another each."""
    rows = generator(round, "teacher").dirichlet(np.ones(proxies.classes), size=len(proxies) if round > 1 else 0)
    rows = wire.quantise(rows.astype(np.float32), "float16")
    labels = wire.labels_digest(rows) if round > 1 else ""
    asked, ids = np.zeros(0, np.uint32), np.arange(len(rows), dtype=np.uint32)
    return Plan("run-1", proxies.hash, round, True, 1.0, labels, ids, rows, asked, "")


if __name__ == "__main__":
    main()
