"""The ServerApp that Flower starts. Its one setting is the path of the server's own configuration file."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the configuration file describes."""
    from server import loop  # imported late: the loop brings torch, and Flower also reads this module to check the app

    loop.serve(grid, str(context.run_config["config"]))
