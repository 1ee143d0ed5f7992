"""A server in the background: start it, ask how it is, read what it says, stop it.

Whether a server runs is told by the lock on its directory, not by a process number that may have been given to another
process since.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedkd.config import ServerConfig, load
from fedkd.errors import FedkdError
from fedkd.locks import holder
from fedkd.logs import Form

_START_SECONDS = 180.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Place:
    """Where the server of one configuration keeps what this module reads."""

    config: ServerConfig
    path: Path
    out: Path

    @classmethod
    def of(cls, path: Path) -> Place:
        """From ``server.yaml``. Raises ConfigError."""
        config = load(ServerConfig, path)
        return cls(config, path.resolve(), path.resolve().parent / config.out)

    @property
    def home(self) -> Path:
        """Flower's directory, which a running server holds."""
        return self.out / "flower"

    @property
    def log(self) -> Path:
        """What a server in the background says."""
        return self.out / "server.log"


def detach(path: Path, log: Form = "text") -> int:
    """Start the server in the background and return its process number once it is up. Raises FedkdError."""
    place = Place.of(path)
    if (running := holder(place.home)) is not None:
        raise FedkdError("the server is running already", where=f"process {running}", fix="'fedkd server stop' first")
    place.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fedkd", "server", "run", "--log", log, str(place.path)]
    with place.log.open("ab") as output:
        process = subprocess.Popen(
            command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + _START_SECONDS
    while holder(place.home) != process.pid:
        if process.poll() is not None or time.monotonic() > deadline:
            raise FedkdError("the server did not start", where=str(place.log), fix=_last_line(place.log))
        time.sleep(_POLL_SECONDS)
    number = process.pid
    process.returncode = 0  # it is meant to outlive this process, which Popen would warn of
    return number


def status(path: Path) -> tuple[bool, str]:
    """Whether the server runs, and a sentence about its run."""
    place = Place.of(path)
    rows = _rows(place)
    done = f"{len(rows)} of {place.config.rounds} rounds done"
    if rows and rows[-1]["teacher_accuracy"] is not None:
        done += f", teacher {rows[-1]['teacher_accuracy']:.1%}"
    process = holder(place.home)
    return process is not None, f"running, process {process}: {done}" if process else f"not running: {done}"


def stop(path: Path, patience: float = 60.0) -> bool:
    """Ask the server to stop and wait for it; False if there was none. Raises FedkdError if it does not stop."""
    place = Place.of(path)
    process = holder(place.home)
    if process is None:
        return False
    os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while holder(place.home) == process:
        if time.monotonic() > deadline:
            raise FedkdError("the server has not stopped yet", where=f"process {process}", fix="wait, or kill it")
        time.sleep(_POLL_SECONDS)
    return True


def lines(path: Path, follow: bool) -> Iterator[str]:
    """What a server in the background has said; with ``follow``, until it stops."""
    place = Place.of(path)
    if not place.log.exists():
        raise FedkdError("there is no log", where=str(place.log), fix="start the server with 'fedkd server --detach'")
    with place.log.open(encoding="utf-8", errors="replace") as file:
        while True:
            alive = follow and holder(place.home) is not None  # asked before reading: the last lines are not missed
            yield from (line.rstrip("\n") for line in file)
            if not alive:
                return
            time.sleep(_POLL_SECONDS)


def _rows(place: Place) -> list[dict[str, float | None]]:
    try:
        return [json.loads(line) for line in (place.out / "metrics.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _last_line(log: Path) -> str:
    found = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return found[-1] if found else "see the log"
