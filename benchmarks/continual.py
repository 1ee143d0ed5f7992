"""All methods of a continual scenario of one learner, beside each other.

python benchmarks/continual.py simulations/continual/split-fashion-mnist.yaml --seeds 3 --methods proxy,joint

prints a line a method: mean and standard deviation over seeds, in percent, of ACC on test and tuning split, forgetting
and learning accuracy.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd.config import WEIGHTS, Continual, load
from simulations.continual.learner import LearnerRun
from simulations.continual.world import World, lay_out

COLUMNS = ("acc", "tune_acc", "forgetting", "learning_accuracy")


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(WEIGHTS))
    parser.add_argument("--set", dest="settings", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[list[float]]] = {method: [] for method in arguments.methods.split(",")}
    for seed in range(arguments.seeds):
        scenario = load(Continual, arguments.scenario, [*arguments.settings, f"seed={seed}"])
        with tempfile.TemporaryDirectory() as folder:
            base = arguments.scenario.resolve().parent
            lay_out(scenario, Path(folder), base)
            world = World(scenario, Path(folder), base)
            for method, rows in found.items():
                rows.append(measure(world, method))
                print(f"seed {seed}, {method}: " + ", ".join(map(_percent, rows[-1])), flush=True)
    for method, rows in found.items():
        columns = np.array(rows).T
        print(f"{method:<9}" + "".join(f"  {_percent(c.mean())} ± {_percent(c.std(ddof=len(c) > 1))}" for c in columns))


def measure(world: World, method: str) -> list[float]:
    """One run of a method, in the order of COLUMNS."""
    one = copy.copy(world)
    keeping: dict[str, Any] = {**world.scenario.keeping.model_dump(), "method": method}
    if method != world.scenario.keeping.method:
        keeping["weight"] = None
    one.scenario = Continual.model_validate({**world.scenario.model_dump(), "keeping": keeping})
    learner = LearnerRun(one, world.out / f"learner-{method}.safetensors")
    learner.run(lambda row: None, lambda: False)
    summary = learner.summary()
    return [summary[name] if name in summary else summary["student"][name] for name in COLUMNS]


def _percent(share: float) -> str:
    return f"{100 * share:5.1f}"


if __name__ == "__main__":
    main()
