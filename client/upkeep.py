"""What a client does between rounds: takes records in, and lets its device serve the newest student if the gate agrees.

Nothing in here reaches what trains and answers: the choice among students is made on private records.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from client.agent import Agent
from fedkd.config import Device
from fedkd.data.proxy import ProxySet
from fedkd.device import gate
from fedkd.device.serving import Serving
from fedkd.device.versions import Version, Versions
from fedkd.errors import FedkdError
from fedkd.report.spend import spent_by_an_example

STUDENT = "student.safetensors"


class Upkeep:
    """``base`` is the folder of the client's configuration."""

    def __init__(self, agent: Agent, base: Path, console: Callable[[str], None]) -> None:
        self._agent, self._base, self._console = agent, base, console
        self._judged: str | None = None

    def look(self) -> None:
        """Once. Whatever goes wrong is told on the console; the client goes on."""
        try:
            self._agent.look()
            if self._agent.config.serve is not None:
                self._serve(self._agent.config.serve)
        except FedkdError as error:
            self._console(f"client {self._agent.name}: {error}")
        except Exception:  # an exporter or a user's network may raise anything
            self._console(f"client {self._agent.name}: between rounds: {traceback.format_exc()}")

    def _serve(self, device: Device) -> None:
        """Register the newest student and show it to the gate, once."""
        path = self._agent.state / STUDENT
        held_out = self._agent.held_out()
        if not path.exists() or not len(held_out):
            return
        version = self._registered(path.read_bytes(), device)
        if version.id == self._judged or version.id in [
            one.version.id for one in Serving(self._agent.state, device.keep).stack()
        ]:
            return
        proxy = ProxySet.load(self._base / self._agent.config.proxy) if device.int8 else None
        code = self._base / self._agent.config.code
        verdict = gate.promote(self._agent.state, version.id, held_out, device, proxy=proxy, code=code)
        self._judged = version.id
        told = "is served" if verdict.promoted else f"is not served: {'; '.join(verdict.reasons)}"
        self._console(f"client {self._agent.name}: version {version.number}, {version.id}, {told}")

    def _registered(self, content: bytes, device: Device) -> Version:
        versions = Versions(self._agent.state, device.keep)
        known = versions.known(content)
        if known is not None:
            return known
        epsilon, delta = spent_by_an_example(self._agent.state / "ledger.sqlite")
        return versions.add(content, epsilon=epsilon, delta=delta)
