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
from fedkd.device.drift import DriftWatch
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
        serve = agent.config.serve
        self._watch = None if serve is None or serve.drift == "none" else DriftWatch(serve.drift)
        self._seen = 0 if agent.stream is None else agent.stream.taken()
        self._since = 0  # what had come before a drift says nothing about what is coming

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
        """Register the newest student and show it to the gate, once; again where the records have changed."""
        if self._watch is not None:
            self._look_for_drift(self._watch, device)
        path = self._agent.state / STUDENT
        held_out, _ = self._agent.held_out(self._since)
        if not path.exists() or not len(held_out):
            return
        version = self._registered(path.read_bytes(), device)
        serving = Serving(self._agent.state, device.keep)
        known = [self._judged, *serving.given_up(), *(one.version.id for one in serving.stack())]
        if version.id in known:
            return
        proxy = ProxySet.load(self._base / self._agent.config.proxy) if device.int8 else None
        code = self._base / self._agent.config.code
        verdict = gate.promote(self._agent.state, version.id, held_out, device, proxy=proxy, code=code)
        self._judged = version.id
        for file in verdict.damaged:
            self._console(f"client {self._agent.name}: {file} is damaged, and could not be compared with")
        told = "is served" if verdict.promoted else f"is not served: {'; '.join(verdict.reasons)}"
        self._console(f"client {self._agent.name}: version {version.number}, {version.id}, {told}")

    def _look_for_drift(self, watch: DriftWatch, device: Device) -> None:
        before = self._seen
        new, self._seen = self._agent.held_out(before)
        if watch.see(gate.errors(self._agent.state, new, device.keep, self._base / self._agent.config.code)):
            self._since, self._judged = before, None
            self._console(f"client {self._agent.name}: the records have changed; versions are judged on new ones alone")

    def _registered(self, content: bytes, device: Device) -> Version:
        versions = Versions(self._agent.state, device.keep)
        known = versions.known(content)
        if known is not None:
            return known
        epsilon, delta = spent_by_an_example(self._agent.state / "ledger.sqlite")
        return versions.add(content, epsilon=epsilon, delta=delta)
