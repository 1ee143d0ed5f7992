"""Accuracy of scenarios over seeds, beside local-only and central training on the same splits, as a Markdown table.

python benchmarks/accuracy.py simulations/fashion-mnist.yaml --seeds 0 1 2 --set privacy.epsilon=1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from fedkd import config
from fedkd.config import Scenario
from simulations.runner import Options, Simulation

COLUMNS = {
    "teacher": lambda s: s["teacher_accuracy"],
    "students": lambda s: s["student_accuracy"]["mean"],
    "worst student": lambda s: s["student_accuracy"]["min"],
    "local only": lambda s: s["local_accuracy"],
    "central": lambda s: s["central_accuracy"],
    "tuning split": lambda s: s["tune_accuracy"],
}


def main() -> None:
    """Run and print; every summary is also kept in ``--out``."""
    options = _arguments()
    summaries = [_run(options, seed) for seed in options.seeds]
    print(_table(options.label or " ".join(options.set) or options.scenario.stem, summaries))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--label")
    parser.add_argument("--out", type=Path, help="folder for the run directories (default: a temporary one)")
    return parser.parse_args()


def _run(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    scenario = config.load(Scenario, options.scenario, [*options.set, f"seed={seed}"])
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)) / f"{scenario.name}-{seed}"
        base = options.scenario.resolve().parent
        run = Options(out=out, base=base, workers=os.cpu_count() or 1, tell=lambda text: None)
        summary = Simulation(scenario, run).run()
    assert summary is not None
    print(json.dumps(summary), flush=True)
    return summary


def _table(label: str, summaries: list[dict[str, Any]]) -> str:
    cells = [label]
    for column in COLUMNS.values():
        values = [column(s) for s in summaries]
        cells.append("–" if None in values else _cell([100 * value for value in values]))
    cells += [f"{statistics.mean(s['bytes_up'] for s in summaries) / 1e3:.0f} kB"]
    cells += [f"{statistics.mean(s['seconds'] for s in summaries):.0f} s"]
    head = ["", *COLUMNS, "up a client", "time"]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), cells))


def _cell(values: list[float]) -> str:
    """Mean, and the smallest and largest value."""
    return f"{statistics.mean(values):.1f} ({min(values):.1f}–{max(values):.1f})"


if __name__ == "__main__":
    main()
