"""Accuracy of the teacher by rule of aggregation and share of clients that lie, as a Markdown table.

python benchmarks/poison.py simulations/digits.yaml --seeds 0 1 2 --set clients=10 rounds=3
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import get_args

from fedkd import config
from fedkd.config import Poison, Scenario
from simulations.runner import Options, Simulation

RULES = ("mean", "entropy", "confidence", "majority", "median", "trimmed")
ATTACKS = get_args(Poison.model_fields["kind"].annotation)


def main() -> None:
    """Run and print; cells are the mean over seeds, and the smallest and largest value."""
    options = _arguments()
    cells = [("clean", 0.0), *((attack, share) for attack in options.attacks for share in options.shares)]
    names = ["clean", *(f"{attack} {share:.0%}" for attack, share in cells[1:])]
    print("| " + " | ".join(["rule", *names]) + " |")
    print("| " + " | ".join(["---"] * (len(cells) + 1)) + " |", flush=True)
    for rule in options.rules:
        row = [_cell(options, rule, attack, share) for attack, share in cells]
        print("| " + " | ".join([rule, *row]) + " |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES)
    parser.add_argument("--attacks", nargs="+", default=ATTACKS, choices=ATTACKS)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    return parser.parse_args()


def _cell(options: argparse.Namespace, rule: str, attack: str, share: float) -> str:
    found = [100 * _accuracy(options, rule, attack, share, seed) for seed in options.seeds]
    spread = f" ({min(found):.1f}–{max(found):.1f})" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{spread}"


def _accuracy(options: argparse.Namespace, rule: str, attack: str, share: float, seed: int) -> float:
    lies = [] if not share else [f"poison={json.dumps({'kind': attack, 'share': share})}"]
    settings = [*options.set, "baselines=false", f"seed={seed}", f"aggregate.kind={rule}", *lies]
    scenario = config.load(Scenario, options.scenario, settings)
    with tempfile.TemporaryDirectory() as folder:
        run = Options(out=Path(folder) / "run", base=options.scenario.resolve().parent, tell=lambda text: None)
        summary = Simulation(scenario, run).run()
    assert summary is not None
    return float(summary["teacher_accuracy"])


if __name__ == "__main__":
    main()
