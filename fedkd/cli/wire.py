"""``fedkd wire show``: everything that has left each client, and what paid for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedkd.errors import ConfigError

wire = typer.Typer(help="See what has left a device.", no_args_is_help=True)

FREE = "nothing: it says nothing of private data"
UNPAID = "NOTHING: no charge of the ledger is for these bytes"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(wire, name="wire")


@wire.command("show")
def show(
    path: Annotated[Path, typer.Argument(help="run directory, a client's folder, or its state folder")],
    client: Annotated[str | None, typer.Option(help="only this client")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a list of messages, one object each")] = False,
) -> None:
    """Print every message that has left the clients, field by field, with its bytes and the charge that paid for it.

    Exit code 1 if answers left that no charge is for.
    """
    messages = [one for state in _states(path) for one in _sent(state) if client in (None, one["client"])]
    if not messages:
        raise ConfigError("nothing is on record", where=str(path), fix="check the path and the client's name")
    if as_json:
        json.dump(messages, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        _tell(messages)
    if any(one["paid_by"] == UNPAID for one in messages):
        raise typer.Exit(1)


def _states(path: Path) -> list[Path]:
    found = sorted({file.parent for file in path.rglob("sent.jsonl*")}) if path.is_dir() else []
    if not found:
        raise ConfigError("no client has sent anything from here", where=str(path), fix="give a run or client folder")
    return found


def _sent(state: Path) -> Iterator[dict[str, Any]]:
    from client import journal
    from fedkd.privacy.ledger import Ledger

    export = Ledger.read(state / "ledger.sqlite")
    charges: dict[str, list[Mapping[str, Any]]] = {}
    for event in export["events"]:
        charges.setdefault(str(event["digest"]), []).append(event)
    for line in journal.read(state):
        yield {"client": export["client"], **line, "paid_by": _payment(line, charges.get(str(line["digest"]), []))}


def _payment(line: Mapping[str, Any], charges: list[Mapping[str, Any]]) -> str:
    if line["kind"] != "answers":
        return FREE
    if not charges:
        return UNPAID
    first = charges[0]
    parts = [f"{c['steps']} x Gaussian z = {c['noise_multiplier']:g} at rate {c['sample_rate']:g}" for c in charges]
    unit = f"per {first['unit']}, {first['adjacency']}"
    return f"{first['mechanism']} ({unit}), run {first['run']} round {first['round']}: {', '.join(parts)}"


def _tell(messages: list[dict[str, Any]]) -> None:
    for one in messages:
        print(
            f"{one['client']}  {one['kind']}  {one['bytes']} bytes  sha256 {one['digest'][:16]}  asked: {one['asked']}"
        )
        for name, value in one["fields"].items():
            print(f"    {name}: {value}")
        print(f"    paid by: {one['paid_by']}")
    answers = [one for one in messages if one["kind"] == "answers"]
    # a retry sends the same bytes again: the same release
    released = len({one["digest"] for one in answers})
    total = sum(one["bytes"] for one in messages)
    print(f"{len(messages)} messages, {total} bytes; {len(answers)} of them answers, {released} different ones")
