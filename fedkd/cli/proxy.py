"""``fedkd proxy build | verify``: the one artefact that all parties hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedkd.cli.running import SCENARIO, SET
from fedkd.errors import DataError

proxy = typer.Typer(help="Build and verify proxy sets.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(proxy, name="proxy")


@proxy.command("build")
def build(
    scenario: SCENARIO = None,
    overrides: SET = None,
    out: Annotated[Path, typer.Option(help="file to write")] = Path("proxy.safetensors"),
    features: Annotated[
        Path | None, typer.Option(help="an older version of the set, whose features are kept: students go on with them")
    ] = None,
) -> None:
    """Cut the proxy set off the scenario's data, fit its public features, and pack both into one file."""
    from fedkd import config
    from fedkd.config import Scenario
    from fedkd.data.proxy import ProxySet
    from simulations.prepare import build_proxy

    chosen = config.load(Scenario, scenario, overrides or [])
    before = None if features is None else ProxySet.load(features)
    built = build_proxy(chosen, scenario.resolve().parent if scenario else Path.cwd(), before)
    built.save(out)
    print(f"{out}: {len(built)} examples, {built.classes} classes, features {built.features_spec['kind']}")
    print(built.hash)


@proxy.command("verify")
def verify(
    path: Annotated[Path, typer.Argument(help="proxy file")],
    expected: Annotated[str | None, typer.Option("--hash", help="hash that it must have")] = None,
) -> None:
    """Recompute the content hash; exit code 1 when the file is damaged or is another one."""
    from fedkd.data.proxy import ProxySet

    found = ProxySet.load(path)
    if expected is not None and found.hash != expected:
        raise DataError(
            f"another proxy set: its hash is {found.hash}, not {expected}",
            where=str(path),
            fix="get the file that the other parties hold",
        )
    print(f"{path}: intact, {len(found)} examples of shape {found.shape}, {found.classes} classes")
    for key, value in sorted(found.provenance.items()):
        print(f"  {key}: {value}")
    print(found.hash)
