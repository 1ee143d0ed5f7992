"""``fedkd distil``: a trained model, or several, compressed into a student on a proxy set."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedkd.errors import ConfigError

if TYPE_CHECKING:
    from fedkd.data.proxy import ProxySet
    from fedkd.data.sources import Examples
    from fedkd.distill.compress import Teaching

TERM = Annotated[list[str] | None, typer.Option("--term", metavar="NAME=WEIGHT", help="a term and its weight")]
SET = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any other key of kind distil")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("distil")(distil)


def distil(
    teachers: Annotated[list[str], typer.Argument(help="trained models; PATH=WEIGHT where they do not weigh the same")],
    proxy: Annotated[Path, typer.Argument(help="proxy set's file")],
    student: Annotated[str | None, typer.Option(help="a kind, or {kind: mlp, hidden: [32]}")] = None,
    term: TERM = None,
    temperature: Annotated[float | None, typer.Option(help="T of the soft labels")] = None,
    steps: Annotated[int | None, typer.Option(help="optimiser steps")] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate")] = None,
    seed: Annotated[int | None, typer.Option(help="of starting weights and batch order")] = None,
    overrides: SET = None,
    out: Annotated[Path, typer.Option(help="file to write")] = Path("student.safetensors"),
    test: Annotated[Path | None, typer.Option(help=".npz file with x and y, to measure on")] = None,
    code: Annotated[Path, typer.Option(help="folder of code and weights of your own")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, nothing else")] = False,
) -> None:
    """Teach a student what trained models say of a proxy set, and compare it with them. Touches no private data."""
    import torch

    from fedkd import config
    from fedkd.data.proxy import ProxySet
    from fedkd.distill.compress import compare, compress
    from fedkd.distill.model import ProxyView

    torch.set_num_threads(1)  # the same bytes on every machine
    options = {"student": student, "temperature": temperature, "steps": steps, "learning_rate": lr, "seed": seed}
    settings = [f"{key}={value}" for key, value in options.items() if value is not None]
    settings += [_term(one) for one in term or []]
    chosen = config.load(config.Distil, None, [*settings, *(overrides or [])])
    taught = [_teacher(name, code) for name in teachers]
    if out.resolve() in {Path(one.name).resolve() for one in taught} | {proxy.resolve()}:
        raise ConfigError("the student would take the place of what it learns from", where=f"--out {out}")
    view = ProxyView(ProxySet.load(proxy), code)
    examples = None if test is None else _examples(test, view.proxy)
    try:
        made = compress(taught, view, chosen, code, lambda text: print(f"· {text}", file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print(f"stopped: {out} is as it was", file=sys.stderr)
        raise typer.Exit(130) from None
    found = compare(taught, made, view, examples)
    made.save(out)
    found["out"] = {"path": str(out), "bytes": out.stat().st_size}
    print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) if as_json else _table(found))


def _term(text: str) -> str:
    if "=" not in text:
        raise ConfigError(f"--term takes NAME=WEIGHT, not {text!r}", fix=f"--term {text}=1")
    return f"terms.{text}"


def _teacher(text: str, code: Path) -> Teaching:
    """A model's path, or PATH=WEIGHT."""
    from fedkd.distill.compress import Teaching
    from fedkd.distill.model import Model

    path, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return Teaching(Model.open(Path(text), code), text)
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise ConfigError(f"a teacher's weight is a number above 0, not {number!r}", where=text, fix=f"{path}=0.5")
    return Teaching(Model.open(Path(path), code), path, weight)


def _examples(path: Path, proxy: ProxySet) -> Examples:
    """Of a file's test part, where it has one. Raises DataError for what a student of this proxy set cannot answer."""
    from fedkd.config import Data
    from fedkd.data import sources

    train, test = sources.load(Data(source="npz", path=str(path.resolve())), Path.cwd())
    found = train if test is None else test
    sources.check(found, str(path), proxy.shape, proxy.classes, allow_empty=False)
    return found


def _table(found: Mapping[str, Any]) -> str:
    lines = [f"{'':<9} {'agreement':>9} {'accuracy':>9} {'parameters':>11} {'weights':>10} {'features':>10}"]
    for row in found["teachers"]:
        agreement = row["agreement"].get("test", row["agreement"]["proxy"])
        lines.append(_line("teacher", f"{agreement:.1%}", row) + f"  {row['path']}")
    lines.append(_line("student", "", found["student"]) + f"  {found['out']['path']}")
    where = "test examples" if found["student"]["accuracy"] is not None else "proxy set"
    lines.append(f"agreement: how often the student's first choice is the teacher's, on the {where}")
    return "\n".join(lines)


def _line(name: str, agreement: str, row: Mapping[str, Any]) -> str:
    accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
    sizes = f"{row['parameters']:>11,} {row['weight_bytes']:>10,} {row['feature_bytes']:>10,}"
    return f"{name:<9} {agreement:>9} {accuracy:>9} {sizes}"
