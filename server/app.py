"""The ServerApp that Flower starts. Its one setting is the path of the server's own configuration file."""

from __future__ import annotations

import subprocess
import sys

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkd.config import default_simulation
from fedkd.errors import ConfigError
from fedkd.flower import is_simulation, node_ids

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the configuration file describes."""
    from server.serve import serve  # imported late: it brings torch, and Flower also reads this module to check the app

    serve(grid, str(context.run_config["config"]) or _default(grid, context.run_id))


def _default(grid: Grid, run_id: int) -> str:
    """``flwr run`` without a setting, in a simulation: the default scenario, with a client for each node."""
    if not is_simulation(grid):
        raise ConfigError("the app has no configuration", fix="add --run-config \"config='/path/of/server.yaml'\"")
    config = default_simulation(run_id)
    clients = len(node_ids(grid, minimum=1, timeout=60))
    command = [sys.executable, "-m", "fedkd", "prepare", "--noise", "simulation", "--out", str(config.parent)]
    subprocess.run([*command, "--set", f"clients={clients}"], check=True)
    print(f"simulating {clients} clients in {config.parent}", flush=True)
    return str(config)
