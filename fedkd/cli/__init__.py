"""The command line. Commands import what they need when they run, so that help is quick."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from fedkd.errors import FedkdError

app = typer.Typer(
    name="fedkd",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from fedkd import __version__

        print(f"fedkd {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    """Private federated distillation: clients share only differentially private answers on a public proxy set."""


def main() -> None:
    """Run a command; an error that the user can mend is told in three lines, without a traceback."""
    from fedkd.cli import (
        audit,
        budget,
        compare,
        continual,
        data,
        device,
        distil,
        doctor,
        inspect,
        ledger,
        processes,
        proxy,
        security,
        simulate,
        sweep,
        wire,
    )

    first = (simulate, continual, sweep, compare, processes, security, doctor)
    for module in (*first, proxy, data, distil, device, audit, inspect, ledger, wire, budget):
        module.register(app)
    try:
        app()
    except FedkdError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # a full disk, a path that is a file, a missing permission: nothing that a traceback would help with
        place = str(error.filename or "")
        fail(FedkdError(error.strerror or str(error), where=place, fix="check the path, its permissions and the disk"))


def fail(error: FedkdError) -> None:
    """Tell the error on standard error and exit with 1."""
    if os.environ.get("FEDKD_DEBUG"):
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
