"""A federation of real processes on this machine, with TLS and node keys; and the simulation it must equal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from fedkd.processes import Service, free_port

ROUND_TIMEOUT = 90
_ALONE = ("--set", "baselines=false")  # in both: it is a part of the run's name


def fedkd(*words: object) -> str:
    """Run a command to its end and return what it prints."""
    command = [sys.executable, "-m", "fedkd", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def prepare(out: Path, scenario: Sequence[str]) -> Path:
    """Configurations, certificates and keys in ``out/federation``; ``scenario`` are words of the command line."""
    run, address = out / "federation", f"127.0.0.1:{free_port()}"
    fedkd("prepare", "--noise", "simulation", "--out", run, *scenario, *_ALONE)
    nodes = [word for folder in clients(run) for word in ("--node", folder.name)]
    fedkd("certs", run / "certs", "--host", "127.0.0.1", *nodes)
    tls = {"certificate": "certs/server.pem", "key": "certs/server.key"}
    _edit(run / "server.yaml", address=address, tls=tls, nodes="certs/nodes", round_timeout=ROUND_TIMEOUT)
    for folder in clients(run):
        door = f"{out}/{folder.name}.sock"
        _edit(folder / "client.yaml", socket=door)
        trust = {"tls": {"ca": str(run / "certs/ca.pem")}, "node_key": str(run / f"certs/keys/{folder.name}.key")}
        _edit(folder / "relay.yaml", address=address, socket=door, home=str(out / f"relay-{folder.name}"), **trust)
    return run


def clients(run: Path) -> list[Path]:
    """The clients' folders, sorted."""
    return sorted((run / "clients").iterdir())


@contextmanager
def devices(out: Path) -> Iterator[None]:
    """Agents and relays, each started again when it dies, as a service manager would."""
    with ExitStack() as stack:
        for folder in clients(out / "federation"):
            for role, file in (("agent", "client.yaml"), ("relay", "relay.yaml")):
                command = [sys.executable, "-m", "fedkd", role, str(folder / file)]
                log = out / f"{role}-{folder.name}.log"
                service = Service(log.stem, lambda command=command: command, dict(os.environ), log)
                service.start()
                stack.callback(service.stop)
        yield


def differences(out: Path, scenario: Sequence[str]) -> list[str]:
    """Play the run in a simulation, and name what is not the same, byte by byte."""
    run, simulated = out / "federation", out / "simulated"
    fedkd("simulate", "--out", simulated, "--workers", 1, *scenario, *_ALONE)
    pairs = [(run / "server/teacher.safetensors", simulated / "teacher.safetensors")]
    for folder in clients(run):
        state, other = folder / "state", simulated / "clients" / folder.name / "state"
        pairs.append((state / "student.safetensors", simulated / "students" / f"{folder.name}.safetensors"))
        names = {path.name for place in (state, other) for path in (place / "outbox").iterdir()}
        pairs += [(state / "outbox" / name, other / "outbox" / name) for name in sorted(names)]
    wrong = [str(mine.relative_to(run)) for mine, theirs in pairs if _bytes(mine) != _bytes(theirs)]
    for folder in clients(run):
        exports = [fedkd("ledger", "export", place, "--json", "--client", folder.name) for place in (run, simulated)]
        wrong += [f"ledger of {folder.name}"] if exports[0] != exports[1] else []
    return wrong


def _edit(file: Path, **keys: object) -> None:
    before = yaml.safe_load(file.read_text()) if file.exists() else {}
    file.write_text(yaml.safe_dump({**before, **keys}))


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
