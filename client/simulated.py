"""The agents of a simulation by Flower's own runtime: the relay calls them in its own process.

Flower numbers the nodes of a simulation (``partition-id``); a node is the client of that place among the folders that
``fedkd prepare`` has written beside the server's configuration. An agent is opened for each message and closed after
it, since Flower may hand a node's next message to another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.channel import METHODS, Channel
from fedkd.config import default_simulation
from fedkd.errors import ConfigError

NodeConfig = Mapping[str, bool | int | float | str | bytes]


def channel(node: NodeConfig, server_config: str, run_id: int) -> Channel:
    """The channel to the agent of this node. Raises ConfigError if there is no such client."""
    config = Path(server_config) if server_config else default_simulation(run_id)
    folders = sorted(path.parent for path in config.parent.glob("clients/*/client.yaml"))
    index = int(node["partition-id"])
    if index >= len(folders):
        raise ConfigError(
            f"node {index} has no client: there are {len(folders)}",
            where=str(config),
            fix="give the simulation as many nodes as there are clients",
        )
    return _OneCall(folders[index])


@dataclass(frozen=True)
class _OneCall:
    folder: Path

    def call(self, method: str, payload: bytes) -> bytes:
        import torch

        from client.agent import Agent

        torch.set_num_threads(1)  # the same bytes as in every other engine
        agent = Agent(self.folder / "client.yaml")
        try:
            return agent.handle(METHODS[method].lower(), payload)
        finally:
            agent.close()
