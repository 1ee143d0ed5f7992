"""``fedkd server``, ``client``, ``agent`` and ``relay``: the real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from click import Context
from typer.core import TyperGroup

from fedkd.logs import Form

LOG = Annotated[Form, typer.Option("--log", help="text | json: one object a line")]


CONFIG = Annotated[Path, typer.Argument(help="server.yaml")]


class _RunByDefault(TyperGroup):
    """``fedkd server CONFIG`` is ``fedkd server run CONFIG``."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args.insert(0, "run")
        return super().parse_args(ctx, args)


servers = typer.Typer(
    cls=_RunByDefault, no_args_is_help=True, help="Run a federation's server; 'run' may be left out."
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(servers, name="server")
    app.command("client")(client)
    app.command("agent")(agent)
    app.command("relay")(relay)


@servers.command("run")
def run(
    config: CONFIG,
    detach: Annotated[bool, typer.Option("--detach", help="in the background")] = False,
    log: LOG = "text",
) -> None:
    """Start Flower's server processes, run one federation, and stop them again. Run it again to resume."""
    if detach:
        from server import lifecycle

        print(f"running, process {lifecycle.detach(config, log)}; 'fedkd server logs {config}' shows what it says")
        return
    from server import command

    command.run(config, log)


@servers.command("status")
def status(config: CONFIG) -> None:
    """Say whether the server runs and how far it is. Exit code 0 if it runs, 3 if not."""
    from server import lifecycle

    running, text = lifecycle.status(config)
    print(text)
    if not running:
        raise typer.Exit(3)


@servers.command("stop")
def stop(config: CONFIG) -> None:
    """Stop the server and all its processes. The next start goes on from the last checkpoint."""
    from server import lifecycle

    print("stopped" if lifecycle.stop(config) else "was not running")


@servers.command("logs")
def logs(
    config: CONFIG,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the server stops")] = False,
) -> None:
    """Print what a server in the background has said."""
    from server import lifecycle

    for line in lifecycle.lines(config, follow):
        print(line, flush=True)


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
