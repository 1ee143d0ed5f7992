"""CPU seconds (of one thread) and memory of folding one round's answers by each rule, as a Markdown table.

python benchmarks/aggregation.py --clients 1000 --queries 5000 --classes 10
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

from fedkd.aggregate import RULES
from fedkd.aggregate.rule import Central
from fedkd.config import Aggregate
from fedkd.privacy.noise import NoiseSource
from fedkd.wire import quantise

KINDS = ("mean", "entropy", "confidence", "majority", "median", "trimmed")


def main() -> None:
    """Measure every rule in a process of its own, whose peak is the rule's."""
    options = _arguments()
    if options.kind:
        return print(_measure(options))
    size = f"{options.clients} clients x {options.queries} queries x {options.classes} classes, float16"
    print(f"| {size} | fold, CPU s | finish, CPU s | peak memory, MB |", "| --- | --- | --- | --- |", sep="\n")
    print(f"| reading the same bytes once | {_read(options):.2f} | | |")
    for kind in KINDS:
        subprocess.run([sys.executable, *sys.argv, "--kind", kind], check=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--kind", choices=KINDS, help="this rule alone, without the head of the table")
    return parser.parse_args()


def _rows(options: argparse.Namespace) -> list[np.ndarray]:
    """A hundred different answers; clients send copies of them."""
    random = np.random.default_rng(0)
    alpha = np.full(options.classes, 0.3)
    return [quantise(random.dirichlet(alpha, size=options.queries), "float16") for _ in range(100)]


def _read(options: argparse.Namespace) -> float:
    """Seconds of copying every client's rows once: what the memory itself allows."""
    rows = _rows(options)
    began = time.process_time()
    for index in range(options.clients):
        rows[index % 100].copy()
    return time.process_time() - began


def _measure(options: argparse.Namespace) -> str:
    rule = RULES[options.kind](Aggregate.model_validate({"kind": options.kind}))
    rows, features = _rows(options), np.zeros((options.queries, 1), np.float32)
    acc, folding = rule.start(options.queries, options.classes, ()), 0.0
    for index in range(options.clients):
        arrived = rows[index % 100].copy()
        began = time.process_time()
        acc = rule.fold(acc, f"client-{index}", arrived)
        folding += time.process_time() - began
    began = time.process_time()
    rule.finish(acc, Central((), NoiseSource(bytes(32)), options.clients), features)
    finishing = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"| {options.kind} | {folding:.2f} | {finishing:.2f} | {peak:.0f} |"


if __name__ == "__main__":
    main()
