"""``fedkd server``, ``client``, ``agent`` and ``relay``: the real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedkd.logs import Form

LOG = Annotated[Form, typer.Option("--log", help="text | json: one object a line")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("server")(server)
    app.command("client")(client)
    app.command("agent")(agent)
    app.command("relay")(relay)


def server(config: Annotated[Path, typer.Argument(help="server.yaml")], log: LOG = "text") -> None:
    """Start Flower's server processes, run one federation, and stop them again. Run it again to resume."""
    from server.command import run

    run(config, log)


def client(config: Annotated[Path, typer.Argument(help="client.yaml")], log: LOG = "text") -> None:
    """Start the agent, which holds the data, and the relay, which talks to the server. Runs until it is stopped."""
    from client.command import client as run

    run(config, log)


def agent(config: Annotated[Path, typer.Argument(help="client.yaml")], log: LOG = "text") -> None:
    """Start the agent alone: it holds the data and answers on its socket. Runs until it is stopped."""
    from client.command import agent as run

    run(config, log)


def relay(config: Annotated[Path, typer.Argument(help="relay.yaml")], log: LOG = "text") -> None:
    """Start the relay alone, as a user who can read no data: it joins server and agent. Runs until it is stopped."""
    from client.command import relay as run

    run(config, log)
