"""``fedkd data show``: who holds what in a scenario."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedkd.cli.running import SCENARIO, SET

data = typer.Typer(help="Look at a scenario's data.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(data, name="data")


@data.callback()
def root() -> None:
    """Look at a scenario's data."""


@data.command("show")
def show(
    scenario: SCENARIO = None,
    overrides: SET = None,
    out: Annotated[Path | None, typer.Option(help="also draw a plot: .png or .svg")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the counts as one JSON object, nothing else")] = False,
) -> None:
    """Count examples by class: proxy set, tuning split, test part, and every client of a simulation.

    Only of a simulation: what a deployed client holds is private, and nothing shows it.
    """
    from fedkd import config
    from fedkd.config import Scenario
    from fedkd.report import holdings
    from simulations.split import holdings as count

    chosen = config.load(Scenario, scenario, overrides or [])
    found = count(chosen, scenario.resolve().parent if scenario else Path.cwd())
    if out is not None:
        holdings.draw(found, out)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else holdings.render_text(found))
