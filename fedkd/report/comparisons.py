"""Runs beside each other, and beside what each was compared with; runs that differ in the seed alone are one row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedkd.config import Scenario, load
from fedkd.errors import ConfigError, DataError
from fedkd.tensors import canonical

LABELS = {
    "local": "local only",
    "central": "central, without privacy",
    "central_dp_sgd": "central DP-SGD",
    "fedavg": "FedAvg, without privacy",
    "fedprox": "FedProx, without privacy",
    "fedavg_dp_sgd": "FedAvg of DP-SGD silos",
}
"""By name, as ``baselines`` of a scenario has them."""

WEIGHTS = ("fedavg", "fedprox", "fedavg_dp_sgd")
"""Those in which weights leave the client."""

NOTE = "FedAvg and FedProx send weights, to compare with in a simulation: fedkd has no message for them"
SIMULATED = "simulated: the noise is reproducible, and gives no guarantee; each epsilon is at its own run's delta"
TEACHER = "teacher"
MEASURED = ("accuracy", "worst", "tune_accuracy", "epsilon", "bytes_up", "bytes_down", "seconds")


@dataclass(frozen=True)
class Run:
    """A finished run: its resolved configuration, and by method (``teacher``, then baselines) what was measured."""

    path: Path
    config: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Run:
        """Raises ConfigError where no run has ended, DataError for files that are none of a run."""
        if not (path / "summary.json").exists():
            raise ConfigError(
                "no run has ended here", where=str(path), fix="give run directories, or finish it: --resume"
            )
        try:
            summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
            lines = (path / "server" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            seconds = sum(json.loads(line)["seconds"] for line in lines)
            methods = {TEACHER: _teacher(summary, round(seconds, 2)), **summary.get("baselines", {})}
            for method in methods.values():
                method["unit"], method["accuracy"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"not the files of a run ({error!r})", where=str(path), fix="run it again") from None
        return cls(path, load(Scenario, path / "config.yaml").model_dump(mode="json"), methods)

    @property
    def but_for_the_seed(self) -> bytes:
        """The same for runs that differ in the seed alone."""
        return canonical({**self.config, "seed": None})


def _teacher(summary: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """fedkd's own; its worst client is the worst student. Seconds are those of the rounds."""
    return {
        "accuracy": summary["teacher_accuracy"],
        "worst": summary["student_accuracy"]["min"],
        "tune_accuracy": summary["tune_accuracy"],
        "epsilon": summary["privacy"]["epsilon"],
        "unit": summary["privacy"]["unit"],
        "bytes_up": summary["bytes_up"],
        "bytes_down": summary["bytes_down"],
        "seconds": seconds,
    }


@dataclass(frozen=True)
class Spread:
    """Mean, least and largest over seeds."""

    mean: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float | str | None]) -> Spread | None:
        """None where a run has no such number. Infinity is a number."""
        numbers = [float(value) for value in values if value is not None]
        if not numbers or len(numbers) < len(values):
            return None
        return cls(sum(numbers) / len(numbers), min(numbers), max(numbers), len(numbers))


@dataclass(frozen=True)
class Row:
    """One method in one group of runs, over its seeds."""

    group: str
    method: str
    unit: str
    seeds: tuple[int, ...]
    measured: Mapping[str, Spread | None]

    @property
    def label(self) -> str:
        """The method in words."""
        return LABELS.get(self.method, self.method)


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone, and the settings by which they differ from the other groups."""

    label: str
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """In order."""
        return tuple(int(run.config["seed"]) for run in self.runs)

    def rows(self) -> list[Row]:
        """A row a method that all the runs have."""
        names = [name for name in self.runs[0].methods if all(name in run.methods for run in self.runs)]
        return [self.row(name) for name in names]

    def row(self, method: str) -> Row:
        """The runs' numbers of one method."""
        found = [run.methods[method] for run in self.runs]
        measured = {name: Spread.of([one.get(name) for one in found]) for name in MEASURED}
        return Row(self.label, method, str(found[0]["unit"]), self.seeds, measured)


def read(paths: Iterable[Path]) -> list[Run]:
    """The runs in these directories, or in the folders right below one that is none. Raises ConfigError, DataError."""
    found = []
    for path in paths:
        below = sorted(file.parent for file in path.glob("*/summary.json"))
        found += [Run.read(one) for one in ([path] if (path / "summary.json").exists() or not below else below)]
    return list({run.path.resolve(): run for run in found}.values())


def grouped(runs: Sequence[Run]) -> list[Group]:
    """In order of first appearance; the runs of a group in order of their seeds. Raises ConfigError for two runs of one
    configuration and seed: they are one result, not two."""
    groups: dict[bytes, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.but_for_the_seed, []).append(run)
    for some in groups.values():
        some.sort(key=lambda run: int(run.config["seed"]))
        for one, other in pairwise(some):
            if one.config["seed"] == other.config["seed"]:
                raise ConfigError(
                    "these are the same run: the same configuration and seed", where=f"{one.path}, {other.path}",
                    fix="name one of them",
                )  # fmt: skip
    flat = [_flat(some[0].config) for some in groups.values()]
    differing = _differing(flat)
    # two scenarios may differ in everything: a label says their names, and what runs of one name differ in
    alike = {name: set(_differing([one for one in flat if one["name"] == name])) for name in {o["name"] for o in flat}}
    return [
        _group(one, differing, alike[one["name"]], tuple(some)) for one, some in zip(flat, groups.values(), strict=True)
    ]


def _group(settings: Mapping[str, Any], differing: Sequence[str], alike: set[str], runs: tuple[Run, ...]) -> Group:
    own = {key: settings[key] for key in differing if key in settings}
    name = str(runs[0].config["name"])
    told = [f"{key}={_short(value)}" for key, value in own.items() if key in alike]
    return Group(", ".join(told if told and "name" not in own else [name, *told]), own, runs)


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if _differs(key, settings)]


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _differs(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    return key != "seed" and len({canonical([key in one, one.get(key)]) for one in settings}) > 1


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; a list is one value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def record(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """JSON-able; infinity is the word "inf"."""
    return [
        {
            "label": group.label,
            "settings": dict(group.settings),
            "seeds": list(group.seeds),
            "runs": [str(run.path) for run in group.runs],
            "methods": {row.method: {"unit": row.unit, **_numbers(row)} for row in group.rows()},
        }
        for group in groups
    ]


def _numbers(row: Row) -> dict[str, Any]:
    return {
        name: None if one is None else {key: _number(getattr(one, key)) for key in ("mean", "min", "max")}
        for name, one in row.measured.items()
    }


def _number(value: float) -> float | str:
    return "inf" if value == float("inf") else value
