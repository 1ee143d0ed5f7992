"""A continual run: laid out, played, measured, written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fedkd.config import Continual
from fedkd.continual import metrics
from fedkd.continual.anchor import uncovered
from fedkd.report import continual as plots
from fedkd.state import write_json
from simulations.continual.federation import FederationRun
from simulations.continual.learner import LearnerRun, Row
from simulations.continual.world import World, lay_out
from simulations.runner import Options, check_directory

OnRow = Callable[[Row], None]


def run(scenario: Continual, options: Options, on_row: OnRow = lambda row: None) -> dict[str, Any] | None:
    """The summary; None when stopped before the end, with a checkpoint to resume from. Raises FedkdError."""
    began = time.monotonic()
    check_directory(scenario, options)
    torch.set_num_threads(1)
    options.tell("preparing experiences, proxy set and tests")
    lay_out(scenario, options.out, options.base)
    world = World(scenario, options.out, options.base)

    def told(row: Row) -> None:
        on_row(row)
        _warn(scenario, row, options)

    found = _play(world, options, told)
    return None if found is None else _conclude(world, found, time.monotonic() - began)


def _play(world: World, options: Options, on_row: OnRow) -> dict[str, Any] | None:
    if world.scenario.clients == 1:
        learner = LearnerRun(world, options.out / "learner.safetensors")
        if not learner.run(on_row, options.stop):
            return None
        learner.model.save(options.out / "student.safetensors")
        return learner.summary()
    with FederationRun(world, options) as federation:
        return federation.summary() if federation.run(on_row) else None


def _warn(scenario: Continual, row: Mapping[str, Any], options: Options) -> None:
    """The guard on the anchor: what it cannot keep is said before it is lost."""
    lost = uncovered(row["coverage"]) if scenario.keeping.method == "proxy" else []
    if lost:
        options.tell(
            f"step {row['step']}: hardly any proxy looks like class {', '.join(lost)}: the anchor "
            "cannot keep what no proxy shows; a larger or another proxy set can"
        )


def _conclude(world: World, found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    scenario, out = world.scenario, world.out
    summary = {
        "name": scenario.name,
        "seed": scenario.seed,
        "stream": scenario.stream.model_dump(mode="json"),
        "method": scenario.keeping.method,
        "clients": scenario.clients,
        **found,
        "formulas": dict(metrics.FORMULAS),
        "seconds": round(seconds, 2),
        "run_dir": str(out),
    }
    main = summary["teacher"] if "teacher" in summary else summary["student"]
    plots.draw(main["r"], scenario.name, out / "plots")
    write_json(out / "summary.json", summary)
    return summary
