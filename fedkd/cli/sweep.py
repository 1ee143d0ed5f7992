"""``fedkd sweep``: a grid of simulations."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedkd.cli.running import SCENARIO, TRACK, WORKERS, processes, stopping

if TYPE_CHECKING:
    from fedkd.report.comparisons import Group
    from server.run import Row
    from simulations.sweep import Cell, Outcome

AXIS = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=[A,B]", help="a list is an axis of the grid")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sweep")(sweep)


def sweep(
    scenario: SCENARIO = None,
    overrides: AXIS = None,
    grid: Annotated[Path | None, typer.Option(help="YAML file of axes: a mapping from keys to lists")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="0,1,2", help="seeds of every combination")] = None,
    out: Annotated[Path, typer.Option(help="folder of the runs; what has ended is skipped")] = Path("runs/sweep"),
    workers: WORKERS = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="choose by the public tuning split; show its accuracies")
    ] = False,
    of: Annotated[str, typer.Option(help="tune: the model that is tuned, teacher or a baseline")] = "teacher",
    track: TRACK = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, nothing else")] = False,
) -> None:
    """Run every combination of settings and seeds, and compare them. Run it again to go on, or after a failure."""
    from fedkd.report import comparisons
    from simulations import sweep as sweeps
    from simulations.runner import Options

    todo = sweeps.cells(scenario, sweeps.grid(overrides or [], grid, _seeds(seeds)), out)
    if tune:
        sweeps.check_tunable(todo, of)
    base = scenario.resolve().parent if scenario else Path.cwd()
    with stopping() as stop, _Progress(todo) as progress:
        options = Options(
            out=out,
            base=base,
            workers=processes(workers),
            tell=lambda text: None,
            on_row=progress.on_row,
            stop=stop,
            track=track,
        )
        outcome = sweeps.run(todo, options, progress.on_cell)
    groups = comparisons.grouped([comparisons.Run.read(cell.folder) for cell in outcome.ended])
    if groups:
        _show(groups, of if tune else None, as_json)
    _end(outcome, len(todo))


def _seeds(text: str | None) -> list[int]:
    from fedkd.errors import ConfigError

    try:
        return [int(part) for part in (text or "").replace(",", " ").split()]
    except ValueError:
        raise ConfigError(f"seeds are whole numbers, not {text!r}", where="--seeds", fix="--seeds 0,1,2") from None


def _show(groups: Sequence[Group], tuned: str | None, as_json: bool) -> None:
    from fedkd.cli.compare import show
    from simulations.sweep import best
    from simulations.sweep import tuned as score

    if tuned is None:
        show(groups, as_json, None)
        return
    chosen = best(groups, tuned)
    if as_json:
        scores = [{"settings": dict(g.settings), "tune_accuracy": score(g, tuned)} for g in groups]
        print(json.dumps({"chosen": dict(chosen.settings), "tuned": scores}, indent=2, ensure_ascii=False))
        return
    for group in groups:
        print(f"{'*' if group is chosen else ' '} {score(group, tuned):6.1%}  {group.label}")
    print("* chosen: highest mean accuracy on the public tuning split")


def _end(outcome: Outcome, count: int) -> None:
    """Exit with 1 after a failure, with 130 when stopped."""
    for cell, text in outcome.failed:
        print(f"failed: {cell.label} ({cell.folder})\n{text}", file=sys.stderr)
    if outcome.stopped:
        print(f"stopped: {len(outcome.ended)} of {count} runs have ended; the same command goes on", file=sys.stderr)
        raise typer.Exit(130)
    if outcome.failed:
        print(f"{len(outcome.failed)} of {count} runs failed; the same command tries them again", file=sys.stderr)
        raise typer.Exit(1)


class _Progress:
    """A bar on standard error; where that is no terminal, a line a run."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._all = self._bar.add_task("runs", total=len(cells))
        self._rounds = self._bar.add_task("rounds", total=None, visible=False)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_cell(self, cell: Cell, state: str) -> None:
        """Hear of a cell."""
        if state == "running":
            total = cell.scenario.rounds
            self._bar.reset(self._rounds, description=cell.label, total=total, visible=True)
            return
        self._bar.advance(self._all)
        self._bar.console.print(f"{state}: {cell.label}", markup=False, highlight=False)

    def on_row(self, row: Row) -> None:
        """Hear of a round."""
        record: Mapping[str, Any] = row.record()
        self._bar.update(self._rounds, completed=record["round"])
