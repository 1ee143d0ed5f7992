"""What ``fedkd client`` and ``python -m client`` do: agent and relay of one client, until they are stopped."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.agent import Agent, stderr
from client.service import serve
from client.supervise import RelayConfig, start_relay
from fedkd.errors import FedkdError
from fedkd.flower import interrupted_by_sigterm

LONGEST_SOCKET_PATH = 90  # bytes; the system's limit is a little over a hundred


def run(path: Path) -> None:
    """Open the agent, start answering, and keep the relay running. Returns after SIGTERM or Ctrl-C."""
    import torch

    torch.set_num_threads(1)  # the same bytes on every machine, and as in a simulation
    agent = Agent(path)
    try:
        with interrupted_by_sigterm(), _socket(agent.state) as address:
            server = serve(_exporting(agent), address)
            relay = start_relay(RelayConfig(agent.config.address, address, agent.state / "relay"))
            _greet(agent)
            try:
                threading.Event().wait()
            finally:
                relay.stop()
                server.stop(grace=5).wait()
    except KeyboardInterrupt:
        stderr(f"client {agent.name}: stopped")
    finally:
        agent.close()


def _greet(agent: Agent) -> None:
    policy = agent.policy
    stderr(
        f"client {agent.name}: agent and relay are running for {agent.config.address}; policy {policy.mechanism}, "
        f"epsilon {policy.epsilon:g} at delta {policy.delta:g} per example"
    )
    stderr("agent and relay run as one user: fine for development; running them apart is not supported yet")
    if policy.noise == "simulation":
        stderr("WARNING: the policy says 'noise: simulation': reproducible noise gives NO privacy guarantee")


class _exporting:
    """The agent's handler; after each change the student can be used from student.safetensors."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __call__(self, method: str, payload: bytes) -> bytes:
        before = self._agent.ledger.state("student")
        reply = self._agent.handle(method, payload)
        if self._agent.ledger.state("student") != before:
            self._agent.learner.model.save(self._agent.state / "student.safetensors")
        return reply


@contextmanager
def _socket(state: Path) -> Iterator[str]:
    """An address for the agent: in the state directory, or, where that path is too long, in a private directory."""
    wanted = state.resolve() / "agent.sock"
    if len(str(wanted).encode()) <= LONGEST_SOCKET_PATH:
        yield f"unix:{wanted}"
        return
    with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
        yield f"unix:{folder}/agent.sock"


def main() -> int:
    """Command line of ``python -m client CONFIG``."""
    if len(sys.argv) != 2:
        print("usage: python -m client CONFIG", file=sys.stderr)
        return 2
    try:
        run(Path(sys.argv[1]))
    except FedkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
