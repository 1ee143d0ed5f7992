"""``fedkd compare``: runs beside each other, and beside their baselines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedkd.report.comparisons import Group


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run directories, or folders of them")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, nothing else")] = False,
    out: Annotated[Path | None, typer.Option(help="folder for comparison.json, .md, .svg and .png")] = None,
) -> None:
    """Accuracy, worst client, epsilon, bytes and seconds of simulations; seeds of one configuration are one row."""
    from fedkd.report import comparisons

    show(comparisons.grouped(comparisons.read(runs)), as_json, out)


def show(groups: Sequence[Group], as_json: bool, out: Path | None) -> None:
    """Print the comparison, and write it to a folder where one is given."""
    from fedkd.report import comparison_table, comparisons
    from fedkd.state import write_atomic, write_json

    record = comparisons.record(groups)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "comparison.json", record)
        write_atomic(out / "comparison.md", (comparison_table.table(groups, markdown=True) + "\n").encode())
        for kind in ("svg", "png"):
            comparison_table.draw(groups, out / f"comparison.{kind}")
    print(json.dumps(record, indent=2, ensure_ascii=False) if as_json else comparison_table.table(groups))
