"""``fedkd server`` and ``fedkd client``: the real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("server")(server)
    app.command("client")(client)


def server(config: Annotated[Path, typer.Argument(help="server.yaml")]) -> None:
    """Start Flower's server processes, run one federation, and stop them again. Run it again to resume."""
    from server.command import run

    run(config)


def client(config: Annotated[Path, typer.Argument(help="client.yaml")]) -> None:
    """Start the agent, which holds the data, and the relay, which talks to the server. Runs until it is stopped."""
    from client.command import run

    run(config)
