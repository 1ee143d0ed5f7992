"""A grid of scenarios, run one after the other: what has ended is not run again, what fails takes nothing with it."""

from __future__ import annotations

import itertools
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedkd import config
from fedkd.config import Scenario
from fedkd.errors import ConfigError, FedkdError
from fedkd.report.comparisons import TEACHER, Group
from fedkd.state import write_atomic
from simulations.prepare import config_hash
from simulations.runner import Options, Simulation

Grid = Mapping[str, Sequence[Any]]
ERROR = "error.txt"


@dataclass(frozen=True)
class Cell:
    """One run of the grid, in a folder that its configuration names."""

    settings: Mapping[str, Any]
    scenario: Scenario
    folder: Path

    @property
    def label(self) -> str:
        """Its settings, in one line."""
        return " ".join(f"{key}={_text(value)}" for key, value in self.settings.items()) or self.scenario.name

    @property
    def done(self) -> bool:
        """Whether this very configuration has ended here."""
        if not (self.folder / "summary.json").exists():
            return False
        return config_hash(config.load(Scenario, self.folder / "config.yaml")) == config_hash(self.scenario)


@dataclass
class Outcome:
    """What has become of the cells."""

    ended: list[Cell] = field(default_factory=list)
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    stopped: bool = False


def grid(settings: Sequence[str], file: Path | None, seeds: Sequence[int]) -> dict[str, list[Any]]:
    """Values by key: of a YAML file, then of ``key=value`` settings, in which a list is an axis; last the seeds.

    A value that is a list itself is a list in the list. Raises ConfigError.
    """
    found = {} if file is None else {key: _axis(key, value) for key, value in config.mapping(file).items()}
    found |= {key: _axis(key, value) for key, value in map(config.setting, settings)}
    if seeds:
        found["seed"] = list(seeds)
    return found


def _axis(key: str, value: Any) -> list[Any]:
    if value == []:
        raise ConfigError(f"the axis {key!r} has no values", fix=f"for example: --set {key}=[1,2]")
    return value if isinstance(value, list) else [value]


def cells(path: Path | None, axes: Grid, out: Path) -> list[Cell]:
    """Every combination, the last axis the fastest. Raises ConfigError for one that is not valid, before any is run."""
    made = {}
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        scenario = config.load(Scenario, path, [f"{key}={_text(value)}" for key, value in settings.items()])
        marked = config_hash(scenario)
        several = {key: value for key, value in settings.items() if len(axes[key]) > 1}
        made[marked] = Cell(several, scenario, out / f"{scenario.name}-{scenario.seed}-{marked[:12]}")
    return list(made.values())


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value.strip() else json.dumps(value, ensure_ascii=False)


def run(
    todo: Sequence[Cell],
    options: Options,
    on_cell: Callable[[Cell, str], None] = lambda cell, state: None,
) -> Outcome:
    """Run what has not ended; ``options`` are those of each cell, but for its folder. ``on_cell`` hears that a cell is
    "running", and then "ended", "failed" or "skipped"."""
    outcome = Outcome()
    for cell in todo:
        if cell.done:
            outcome.ended.append(cell)
            on_cell(cell, "skipped")
            continue
        if options.stop():
            outcome.stopped = True
            break
        on_cell(cell, "running")
        for state in _run(cell, options, outcome):
            on_cell(cell, state)
        if outcome.stopped:
            break
    return outcome


def _run(cell: Cell, options: Options, outcome: Outcome) -> Iterator[str]:
    try:
        summary = Simulation(cell.scenario, replace(options, out=cell.folder, resume=True)).run()
    except Exception as error:  # a user's own code may do anything, and the other cells are not to suffer
        text = str(error) if isinstance(error, FedkdError) else traceback.format_exc()
        write_atomic(cell.folder / ERROR, text.encode())
        outcome.failed.append((cell, text))
        yield "failed"
        return
    if summary is None:
        outcome.stopped = True
        return
    (cell.folder / ERROR).unlink(missing_ok=True)
    outcome.ended.append(cell)
    yield "ended"


# -- choosing by public data alone -------------------------------------------------------------------------------------


def check_tunable(todo: Sequence[Cell], method: str) -> None:
    """Raises ConfigError for cells whose ``method`` would have no accuracy on the public tuning split."""
    for cell in todo:
        if not cell.scenario.proxy.tune_size:
            raise ConfigError(
                "there is no public tuning split to choose by", where="key 'proxy.tune_size'", fix="set it above 0"
            )
        if method == "local" or method not in (TEACHER, *cell.scenario.baselines):
            raise ConfigError(
                f"there is no model {method!r} to choose by", where="--of", fix="teacher, or one of the baselines"
            )


def best(groups: Sequence[Group], method: str) -> Group:
    """The settings with the highest mean accuracy on the public tuning split, the first of equals; test accuracies are
    not looked at. Settings with fewer seeds than others do not take part."""
    most = max(len(group.runs) for group in groups)
    whole = [group for group in groups if len(group.runs) == most]
    return max(whole, key=lambda group: tuned(group, method))


def tuned(group: Group, method: str) -> float:
    """Mean accuracy on the public tuning split."""
    found = group.row(method).measured["tune_accuracy"]
    assert found is not None  # there is a split: check_tunable
    return found.mean
