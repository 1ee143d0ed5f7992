"""Accuracy of the teacher by rule of aggregation and share of clients that lie, as a Markdown table.

python benchmarks/poison.py simulations/digits.yaml --seeds 0 1 2 --set clients=10 privacy.steps=40

One round: what a rule makes of the same answers. To see liars over a whole run, give a scenario the key ``poison``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import get_args

from replay import Replay

from fedkd.config import Poison
from fedkd.rng import generator
from simulations.poison import LIES, Liars

RULES = ("mean", "entropy", "confidence", "majority", "median", "trimmed")
ATTACKS = get_args(Poison.model_fields["kind"].annotation)


def main() -> None:
    """Run and print; cells are the mean over seeds, and the smallest and largest value."""
    options = _arguments()
    rounds = [Replay(options.scenario, [*options.set, f"seed={seed}"]) for seed in options.seeds]
    cells = [("clean", 0.0), *((attack, share) for attack in ATTACKS for share in options.shares)]
    names = ["clean", *(f"{attack} {share:.0%}" for attack, share in cells[1:])]
    print("| " + " | ".join(["rule", *names]) + " |")
    print("| " + " | ".join(["---"] * (len(cells) + 1)) + " |", flush=True)
    for rule in RULES:
        row = [_cell([100 * _accuracy(one, rule, *cell) for one in rounds]) for cell in cells]
        print("| " + " | ".join([rule, *row]) + " |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    return parser.parse_args()


def _accuracy(one: Replay, rule: str, attack: str, share: float) -> float:
    lies = {"kind": attack, "share": share} if share else None
    liars = Liars.of(type(one.scenario).model_validate({**one.scenario.model_dump(), "poison": lies}))
    seed = one.scenario.seed
    answers = {
        client: LIES[attack](rows, generator(seed, "poison", client, 1)) if client in liars.clients else rows
        for client, rows in one.answers.items()
    }
    return one.accuracy(rule, answers)


def _cell(found: list[float]) -> str:
    return f"{statistics.mean(found):.1f}" + (f" ({min(found):.1f}–{max(found):.1f})" if len(found) > 1 else "")


if __name__ == "__main__":
    main()
