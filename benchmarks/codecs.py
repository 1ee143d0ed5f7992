"""Accuracy of the teacher against bytes sent, by codec, as a Markdown table.

python benchmarks/codecs.py simulations/digits.yaml --seeds 0 1 2 --set clients=10
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from fedkd import config
from fedkd.config import Scenario
from simulations.runner import Options, Simulation

CODECS = ("float32", "float16", "float16+zlib", "int8", "int8+zlib", "top3", "top3+zlib", "label", "label+zlib")


def main() -> None:
    """Run and print; accuracies are the mean over seeds, and the smallest and largest value."""
    options = _arguments()
    print("| codec | bytes up, a client and round | bytes an answer | teacher |", "| --- | --- | --- | --- |", sep="\n")
    for codec in options.codecs:
        summaries = [_run(options, codec, seed) for seed in options.seeds]
        found = [100 * s["teacher_accuracy"] for s in summaries]
        up = statistics.mean(s["bytes_up"] / s["rounds"] for s in summaries)
        teacher = f"{statistics.mean(found):.1f} ({min(found):.1f}–{max(found):.1f})"
        cells = [codec, f"{up:.0f}", f"{up / summaries[0]['answers']:.2f}", teacher]
        print("| " + " | ".join(cells) + " |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    return parser.parse_args()


def _run(options: argparse.Namespace, codec: str, seed: int) -> dict[str, Any]:
    settings = [*options.set, "baselines=false", f"seed={seed}", f"codec={codec}"]
    scenario = config.load(Scenario, options.scenario, settings)
    with tempfile.TemporaryDirectory() as folder:
        run = Options(out=Path(folder) / "run", base=options.scenario.resolve().parent, tell=lambda text: None)
        summary = Simulation(scenario, run).run()
    assert summary is not None
    return {**summary, "answers": scenario.aggregate.queries or scenario.proxy.size}


if __name__ == "__main__":
    main()
