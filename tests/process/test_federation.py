"""Real server and client processes carry a whole run, and give the bytes of the simulation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from dp_accounting import dp_event, pld

from fedkd.processes import free_port
from tests.journeys.conftest import sets

pytestmark = pytest.mark.process
PATIENCE = 600  # seconds until a hanging process fails the test


def run(*arguments: object, module: str = "fedkd") -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def clients(folders: list[Path]) -> Iterator[None]:
    """One client by either door, and one whose agent and relay are started apart."""
    first, second, third = folders
    commands = [
        (first, "client", first / "client.yaml"),
        (second, "fedkd", "client", "--log", "json", second / "client.yaml"),
        (third, "fedkd", "agent", third / "client.yaml"),
        (third, "fedkd", "relay", third / "relay.yaml"),
    ]
    processes = []
    for folder, *words in commands:
        with (folder / f"{words[1]}.log").open("w") as log:
            processes.append(subprocess.Popen([sys.executable, "-m", *map(str, words)], stdout=log, stderr=log))
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=60) for process in processes]
    assert codes == [0] * len(commands), "SIGTERM is a clean stop"


def secure(out: Path, address: str) -> None:
    """Certificates and node keys for everybody; the last client's relay has a file of its own."""
    folders = sorted((out / "clients").iterdir())
    nodes = [word for folder in folders for word in ("--node", folder.name)]
    run("certs", out / "certs", "--host", "127.0.0.1", *nodes)
    server = {"certificate": "certs/server.pem", "key": "certs/server.key"}
    edit(out / "server.yaml", address=address, tls=server, nodes="certs/nodes")
    for folder in folders:
        edit(folder / "client.yaml", address=address, **trust(out, folder.name))
    edit(folder / "client.yaml", socket="door/agent.sock")
    edit(folder / "relay.yaml", address=address, socket="door/agent.sock", **trust(out, folder.name))


def trust(out: Path, client: str) -> dict[str, object]:
    return {"tls": {"ca": str(out / "certs/ca.pem")}, "node_key": str(out / f"certs/keys/{client}.key")}


def edit(file: Path, **keys: object) -> None:
    before = yaml.safe_load(file.read_text()) if file.exists() else {}
    file.write_text(yaml.safe_dump({**before, **keys}))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three client processes."""
    out = tmp_path_factory.mktemp("federation") / "run"
    run("prepare", "--noise", "simulation", "--out", out, *sets("privacy.sample_rate=0.5"))
    secure(out, f"127.0.0.1:{free_port()}")
    with clients(sorted((out / "clients").iterdir())):
        run(out / "server.yaml", module="server")
    return out


def test_the_server_has_written_its_run(federation: Path) -> None:
    rows = [json.loads(line) for line in (federation / "server" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["answered"]) for row in rows] == [(1, 3), (2, 3)]
    assert (federation / "server" / "teacher.safetensors").exists()


def test_logs_are_json_where_asked_for_and_hold_no_secret(federation: Path) -> None:
    client = federation / "clients/client-1"
    lines = [json.loads(line) for line in (client / "client.log").read_text().splitlines()]
    assert {"info", "warning"} == {line["level"] for line in lines}
    assert "agent and relay run as one user" in " ".join(line["message"] for line in lines)
    logs = [path.read_bytes() for path in federation.rglob("*.log")]
    for key in federation.glob("certs/**/*.key"):
        for line in key.read_bytes().splitlines()[1:-1]:
            assert not any(line in log for log in logs), key


def test_exported_ledgers_reproduce_the_reported_epsilon(federation: Path) -> None:
    report = json.loads(run("report", federation, "--format", "json"))
    for client in ("client-0", "client-1", "client-2"):
        accountant = pld.PLDAccountant()
        for event in json.loads(run("ledger", "export", federation, "--json", "--client", client)):
            one = dp_event.PoissonSampledDpEvent(
                event["sample_rate"], dp_event.GaussianDpEvent(event["noise_multiplier"])
            )
            accountant.compose(dp_event.SelfComposedDpEvent(one, event["steps"]))
        shown = report["clients"][client]
        assert accountant.get_epsilon(shown["delta"]) == pytest.approx(shown["spent"]["example"]["epsilon"], abs=2e-3)


def test_processes_give_the_bytes_of_the_simulation(federation: Path, tmp_path: Path) -> None:
    out = tmp_path / "simulated"
    run("simulate", "--out", out, "--workers", 1, *sets("privacy.sample_rate=0.5"))
    assert (out / "teacher.safetensors").read_bytes() == (federation / "server" / "teacher.safetensors").read_bytes()
    for client in ("client-0", "client-1", "client-2"):
        deployed = federation / "clients" / client / "state"
        simulated = out / "clients" / client / "state"
        names = {path.name for path in (simulated / "outbox").iterdir()}
        assert names and names == {path.name for path in (deployed / "outbox").iterdir()}
        student = (out / "students" / f"{client}.safetensors").read_bytes()
        assert (deployed / "student.safetensors").read_bytes() == student
        assert run("ledger", "export", deployed, "--json") == run("ledger", "export", simulated, "--json")


def test_a_finished_run_that_is_started_again_ends_at_once(federation: Path) -> None:
    before = (federation / "server" / "checkpoint.safetensors").read_bytes()
    run("server", federation / "server.yaml")
    assert (federation / "server" / "checkpoint.safetensors").read_bytes() == before


def test_no_process_is_left_behind(federation: Path) -> None:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(federation) in command:
                found.append(command)
    assert found == []
