"""``fedkd certs``: certificates and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedkd.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("certs")(certs)


def certs(
    out: Annotated[Path, typer.Argument(help="folder; files in it are never overwritten")],
    host: Annotated[list[str] | None, typer.Option(help="name or address by which relays reach the server")] = None,
    node: Annotated[list[str] | None, typer.Option(help="name of a client, to make its node key")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="how long the server's certificate is valid")] = 365,
) -> None:
    """Make a certificate authority, the server's certificate, and the node keys by which the server knows relays."""
    from fedkd.certificates import issue
    from fedkd.trust import expiry, read_certificate

    if not host and not node:
        raise ConfigError("there is nothing to make", fix="give --host for a server, --node for a client, or both")
    for path in issue(out, host or [], node or [], days):
        if path.suffix == ".pem":
            print(f"{path}: certificate, expires on {expiry(read_certificate(path))}")
        else:
            print(f"{path}: {'private key, keep it secret' if path.suffix == '.key' else 'public node key'}")
