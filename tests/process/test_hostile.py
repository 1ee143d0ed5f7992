"""A hostile server ships its own app. As another user it gets charged releases within policy, and nothing more."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.service import is_healthy
from fedkd.data.proxy import ProxySet
from fedkd.processes import Service
from fedkd.report import collect
from fedkd.report.budget import budget_report
from server import bundle, supervise
from tests.journeys.conftest import sets
from tests.process.test_federation import edit, run
from tests.process.test_flower import eventually

pytestmark = pytest.mark.process
STRANGER, GROUP = 34567, 34568  # a user and a group that own nothing else
EPSILON = 3.0

LOOP = """
import json
from pathlib import Path

from fedkd.flower import exchange, node_ids


def serve(grid, config):
    orders = (Path(config).parent / "orders.json").read_bytes()
    nodes = node_ids(grid, minimum=1, timeout=600)
    [outcome] = exchange(grid, "answer", {node: orders for node in nodes}, 600).values()
    (Path(config).parent / "report.json").write_bytes(outcome)
"""


@dataclass
class Attack:
    """What the hostile app reports, and the client's folder after it."""

    report: dict[str, Any]
    device: Path
    console: str


def as_stranger() -> list[str]:
    return ["setpriv", "--reuid", str(STRANGER), "--regid", str(GROUP), "--clear-groups", "--no-new-privs"]


def interpreter() -> str:
    """A Python that other users may run with our packages; a virtual environment in somebody's home is not one."""
    for python in (sys.executable, "/usr/bin/python3"):
        starts_another = "import subprocess, sys; subprocess.run([sys.argv[1], '-c', 'import client.app'], check=True)"
        command = [*as_stranger(), python, "-c", starts_another, python]
        environment = {**os.environ, "PYTHONPATH": packages(), "HOME": "/nonexistent"}
        if subprocess.run(command, env=environment, cwd="/", capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip("no Python here that another user may run with these packages")


def packages() -> str:
    root = str(Path(bundle.__file__).parents[1])
    return os.pathsep.join([root, *(path for path in sys.path if path.endswith("-packages"))])


def commands(folder: Path, python: str) -> Path:
    """Flower's commands for that Python."""
    folder.mkdir()
    for entry in importlib.metadata.distribution("flwr").entry_points.select(group="console_scripts"):
        script = folder / entry.name
        script.write_text(
            f"#!{python}\nimport sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"
        )
        script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def attack() -> Iterator[Attack]:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to start a process as another user")
    with tempfile.TemporaryDirectory(prefix="fedkd-") as name, ExitStack() as stack:
        Path(name).chmod(0o755)
        yield play(Path(name), interpreter(), stack)


def play(folder: Path, python: str, stack: ExitStack) -> Attack:
    device, address = prepare(folder), supervise.free_address()
    log = (folder / "agent.log").open("w")
    stack.callback(log.close)
    agent = subprocess.Popen(
        [sys.executable, "-m", "fedkd", "agent", str(device / "client.yaml")], stdout=log, stderr=subprocess.STDOUT
    )
    stack.callback(lambda: (agent.send_signal(signal.SIGTERM), agent.wait(60)))
    assert eventually(lambda: is_healthy(f"unix:{folder}/door/agent.sock"), 120), (folder / "agent.log").read_text()
    public = ProxySet.load(folder / "federation/proxy.safetensors")
    write_orders(folder / "server", device, public, agent.pid)
    relay = start_relay(folder, python, address)
    stack.callback(relay.stop)
    processes = supervise.ServerProcesses(folder / "server/flower", folder / "server/server.yaml", address)
    lines: list[str] = []
    status = supervise.run(processes, lines.append, app=hostile_bundle(folder))
    assert status == supervise.COMPLETED, "\n".join(lines) + relay.log.read_text()
    report = json.loads((folder / "server/report.json").read_bytes())
    return Attack(report, device, (folder / "agent.log").read_text())


def prepare(folder: Path) -> Path:
    run("prepare", "--out", folder / "federation", *sets("clients=1", "privacy.nominal_examples=300"))
    device = folder / "federation/clients/client-0"
    edit(device / "client.yaml", socket=str(folder / "door/agent.sock"), socket_group=str(GROUP))
    edit(device / "policy.yaml", epsilon=EPSILON, steps=1, max_rounds=3)
    device.chmod(0o700)
    (folder / "door").mkdir(mode=0o750)
    os.chown(folder / "door", 0, GROUP)
    return device


def write_orders(server: Path, device: Path, public: ProxySet, agent: int) -> None:
    server.mkdir(mode=0o700)
    state = device / "state"
    files = [*device.rglob("*"), state / "ledger.sqlite", Path(f"/proc/{agent}/mem"), Path(f"/proc/{agent}/environ")]
    folders = [device, state, state / "outbox", Path(f"/proc/{agent}/fd"), device.parents[2] / "server"]
    orders = {
        "paths": [str(path) for path in files if not path.is_dir()],
        "folders": [str(path) for path in folders],
        "agent": agent,
        "proxy": public.hash,
        "examples": len(public),
        "classes": public.classes,
    }
    (server / "orders.json").write_text(json.dumps(orders))


def start_relay(folder: Path, python: str, address: str) -> Service:
    home = folder / "relay"
    home.mkdir()
    edit(home / "relay.yaml", address=address, socket=str(folder / "door/agent.sock"), home="home")
    for path in (home, home / "relay.yaml"):
        os.chown(path, STRANGER, GROUP)
    path = os.pathsep.join([str(commands(folder / "bin", python)), os.environ["PATH"]])
    environment = {"PATH": path, "PYTHONPATH": packages(), "HOME": str(home)}
    command = [*as_stranger(), python, "-m", "fedkd", "relay", str(home / "relay.yaml")]
    service = Service("stranger", lambda: command, environment, folder / "relay.log")
    service.start()
    return service


def hostile_bundle(folder: Path) -> Path:
    staged = bundle.stage(folder / "fedkd")
    shutil.copyfile(Path(__file__).with_name("hostile_app.py"), staged / "client/app.py")
    (staged / "server/serve.py").write_text(LOOP)
    return staged


def test_the_app_ran_as_another_user(attack: Attack) -> None:
    assert attack.report["user"] == STRANGER
    assert "run as one user" not in attack.console


def test_it_reads_and_writes_nothing_of_the_clients(attack: Attack) -> None:
    assert attack.report["opened"] == []
    assert attack.report["listed"] == []
    assert attack.report["written"] == []
    assert not attack.report["signalled"]


def test_every_reply_is_of_the_schema(attack: Attack) -> None:
    replies = attack.report["replies"]
    assert "outside the schema" not in replies and "INTERNAL" not in replies
    assert replies["refused: malformed"] > 30
    terms, reply = (
        {"run", "client", "contract", "variances", "shards", "noise"},
        {"round", "plan", "rows", "code", "head"},
    )
    assert set(attack.report["fields"]) <= terms | reply
    assert attack.report["methods"] == [] and attack.report["too_large"] == "RESOURCE_EXHAUSTED"
    assert not attack.report["second_listener"]


def test_asking_a_thousand_times_gives_the_same_bytes(attack: Attack) -> None:
    assert attack.report["replies"]["answers"] >= 1000
    assert set(attack.report["released"].values()) == {1}


def test_what_left_is_charged_and_within_the_policy(attack: Attack) -> None:
    [ledger] = collect.ledgers(attack.device).values()
    charged = {f"{event['run']} {event['round']}" for event in ledger["events"]}
    assert charged == set(attack.report["released"])
    [client] = budget_report(collect.exports([attack.device])).clients.values()
    assert 0 < float(client.spent["example"].epsilon) <= EPSILON
    assert yaml.safe_load((attack.device / "policy.yaml").read_text())["epsilon"] == EPSILON
