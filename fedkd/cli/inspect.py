"""Commands that read what others wrote: report, dashboard, predict, config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedkd.cli.output import print_json
from fedkd.errors import ConfigError

settings = typer.Typer(help="Schemas and resolved configurations.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("report")(report)
    app.command("dashboard")(dashboard)
    app.command("predict")(predict)
    app.add_typer(settings, name="config")


def report(
    path: Annotated[list[Path] | None, typer.Argument(help="run directories, client folders or ledgers")] = None,
    form: Annotated[
        Literal["text", "json", "html", "md"] | None,
        typer.Option("--format", help="text | json | html | md; by default what --out ends in, else text"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="write to this file, not to standard output")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of --format json, and stop")] = False,
) -> None:
    """Say how much privacy has been spent, computed anew from the ledgers."""
    from fedkd.report import collect
    from fedkd.report.budget import budget_report
    from fedkd.report.render import form_of, render
    from fedkd.report.schema import json_schema

    if schema:
        return print_json(json_schema())
    if not path:
        raise ConfigError("there is nothing to report on", fix="name run directories, client folders or ledgers")
    result = budget_report(
        collect.exports(path),
        provenance=collect.provenance(path),
        config_hash=collect.config_hash(path),
        public_weights=collect.public_weights(path),
        compared=collect.compared(path),
        audit=collect.audits(path),
    )
    text = render(result, form or form_of(out))
    if out is None:
        print(text, end="")
    else:
        from fedkd.state import write_atomic

        write_atomic(out, text.encode())


def dashboard(
    run: Annotated[Path, typer.Argument(help="run directory of a server or a simulation")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="on 127.0.0.1; 0: one that is free")] = 8080,
) -> None:
    """Show a run in the browser while it goes on. Only reads, and serves this machine alone. Ends with Ctrl-C."""
    from fedkd.report.live.serve import Dashboard
    from fedkd.report.live.snapshot import Run

    with Dashboard(Run(run), port) as server:
        print(f"{server.url} shows {run}; Ctrl-C ends it", flush=True)
        server.serve_forever()


def predict(
    model: Annotated[Path, typer.Argument(help="a student's or the teacher's .safetensors file")],
    data: Annotated[Path, typer.Argument(help=".npz file with an array x of examples")],
    as_json: Annotated[bool, typer.Option("--json", help="probabilities too")] = False,
    code: Annotated[Path, typer.Option(help="folder of an architecture given as module:Class")] = Path(),
) -> None:
    """Print the predicted class of every example."""
    from fedkd import load_student
    from fedkd.data.sources import read_inputs

    probabilities = load_student(model, code).predict(read_inputs(data))
    first = probabilities.argmax(axis=1).tolist()
    if as_json:
        return print_json({"classes": first, "probabilities": probabilities.tolist()})
    print("\n".join(str(label) for label in first))


@settings.command("schema")
def schema(
    kind: Annotated[str, typer.Argument(help="scenario | server | client | relay | policy")] = "scenario",
) -> None:
    """Print the JSON schema of a configuration file."""
    from fedkd import config

    if kind not in config.KINDS:
        raise ConfigError(f"there is no configuration called {kind!r}", fix=f"use one of {', '.join(config.KINDS)}")
    print_json(config.KINDS[kind].model_json_schema())


@settings.command("show")
def show(
    path: Annotated[Path | None, typer.Argument(help="configuration file")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key")] = None,
    kind: Annotated[str, typer.Option(help="scenario | server | client | relay | policy")] = "scenario",
) -> None:
    """Check a configuration and print it with every default filled in."""
    from fedkd import config

    if kind not in config.KINDS:
        raise ConfigError(f"there is no configuration called {kind!r}", fix=f"use one of {', '.join(config.KINDS)}")
    print(config.dump(config.load(config.KINDS[kind], path, overrides or [])), end="")
