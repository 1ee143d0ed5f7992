"""What a row of a comparison is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedkd.report.comparisons import Run, grouped


def run(name: str, seed: int = 0, **config: Any) -> Run:
    return Run(Path(f"{name}-{seed}-{config}"), {"name": name, "seed": seed, **config}, {})


def labels(*runs: Run) -> list[str]:
    return [group.label for group in grouped(runs)]


def test_runs_of_one_scenario_are_called_by_what_differs() -> None:
    assert labels(run("a", epsilon=1), run("a", epsilon=3)) == ["epsilon=1", "epsilon=3"]


def test_runs_of_two_scenarios_are_called_by_their_names_and_by_what_differs_among_those_of_one() -> None:
    found = labels(run("a", epsilon=1, clip=1), run("a", epsilon=3, clip=1), run("b", epsilon=8, clip=2))
    assert found == ["a, epsilon=1", "a, epsilon=3", "b"]
