"""Methods of a continual scenario beside each other, over seeds.

python benchmarks/continual.py simulations/continual/split-fashion-mnist.yaml --seeds 3 --methods proxy,joint

prints a line a method: mean and standard deviation over seeds, in percent, of ACC on test and tuning split, forgetting
and learning accuracy, of the learner or of a federation's teacher. Settings are to be chosen by the tuning split.
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
from simulations.continual.run import run
from simulations.continual.world import World, lay_out
from simulations.runner import Options

COLUMNS = ("acc", "tune_acc", "forgetting", "learning_accuracy")


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", help="default: all that the scenario may have")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base, first = arguments.scenario.resolve().parent, load(Continual, arguments.scenario, arguments.settings)
    usual = ",".join(WEIGHTS) if first.clients == 1 else "proxy,finetune"
    found: dict[str, list[list[float]]] = {method: [] for method in (arguments.methods or usual).split(",")}
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            world = World(first.model_copy(update={"seed": seed}), Path(folder), base)
            for method, rows in found.items():
                rows.append(measure(world, method))
                print(f"seed {seed}, {method}: " + ", ".join(map(_percent, rows[-1])), flush=True)
    for method, rows in found.items():
        columns = np.array(rows).T
        print(f"{method:<9}" + "".join(f"  {_percent(c.mean())} ± {_percent(c.std(ddof=len(c) > 1))}" for c in columns))


def measure(world: World, method: str) -> list[float]:
    """One run of a method, in the order of COLUMNS."""
    keeping: dict[str, Any] = {**world.scenario.keeping.model_dump(), "method": method}
    if method != world.scenario.keeping.method:
        keeping["weight"] = None
    scenario = Continual.model_validate({**world.scenario.model_dump(), "keeping": keeping})
    summary = _alone(world, scenario) if scenario.clients == 1 else _together(world, scenario)
    who = summary["student" if scenario.clients == 1 else "teacher"]
    return [summary[name] if name in summary else who[name] for name in COLUMNS]


def _alone(world: World, scenario: Continual) -> dict[str, Any]:
    """All methods meet the same experiences, whose features are computed once."""
    lay_out(world.scenario, world.out, world.base)
    one = copy.copy(world)
    one.scenario = scenario
    learner = LearnerRun(one, world.out / f"learner-{scenario.keeping.method}.safetensors")
    learner.run(lambda row: None, lambda: False)
    return learner.summary()


def _together(world: World, scenario: Continual) -> dict[str, Any]:
    out = world.out / scenario.keeping.method
    summary = run(scenario, Options(out=out, base=world.base, tell=lambda text: None))
    assert summary is not None
    return summary


def _percent(share: float) -> str:
    return f"{100 * share:5.1f}"


if __name__ == "__main__":
    main()
