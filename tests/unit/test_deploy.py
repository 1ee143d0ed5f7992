"""The example deployment: every file is valid, and agent and relay share the socket's folder and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkd.config import KINDS, load

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def sources(service: str) -> dict[str, str]:
    """Where each volume or file of a service comes from -> where it is mounted."""
    return dict(volume.split(":")[:2] for volume in SERVICES[service]["volumes"])


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*.yaml")), ids=lambda file: file.name)
def test_every_configuration_is_valid(file: Path) -> None:
    if file.name != "compose.yaml":
        load(KINDS[file.stem.partition("-")[0]], file)


@pytest.mark.parametrize("client", range(3))
def test_agent_and_relay_share_the_sockets_folder_alone(client: int) -> None:
    agent, relay = sources(f"agent-{client}"), sources(f"relay-{client}")
    assert set(agent) & set(relay) == {f"door-{client}"}
    assert not any("clients/" in source or source.startswith("state") for source in relay)
    assert not any("certs" in source for source in agent)


@pytest.mark.parametrize("client", range(3))
def test_an_agent_has_no_network_and_a_relay_no_other_than_the_servers(client: int) -> None:
    assert SERVICES[f"agent-{client}"]["network_mode"] == "none"
    assert SERVICES[f"relay-{client}"]["networks"] == ["federation"]


def test_every_container_is_locked_down() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged") and "ports" not in service, name


def test_configurations_name_what_is_mounted() -> None:
    for service, file in [("server", "server"), ("agent-1", "client-1"), ("relay-2", "relay")]:
        mounted = list(sources(service).values())
        values = yaml.safe_load((DEPLOY / f"{file}.yaml").read_text())
        for text in [value for value in strings(values) if value.startswith("/")]:
            assert any(text == place or text.startswith(f"{place}/") for place in mounted), (service, text)


def strings(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        return [text for value in tree.values() for text in strings(value)]
    return [tree] if isinstance(tree, str) else []


def loaded_with(modules: str) -> set[str]:
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_relay_needs_no_torch() -> None:
    found = loaded_with("client.command, client.supervise, client.app, fedkd.cli.processes")
    assert not {"torch", "opacus", "scipy", "sklearn", "dp_accounting"} & found


def test_help_is_there_at_once() -> None:
    assert not {"torch", "numpy", "pydantic", "flwr", "cryptography"} & loaded_with("fedkd.cli")


def test_no_decision_follows_the_wall_clock() -> None:
    """A clock that is set must end no round and release nothing: only log lines and certificates read it."""
    root = Path(__file__).parents[2]
    code = [path for package in ("fedkd", "server", "client") for path in (root / package).rglob("*.py")]
    reading = {
        str(path.relative_to(root))
        for path in code
        if any(word in path.read_text() for word in ("time.time(", "datetime.now(", "utcnow("))
    }
    assert reading == {"fedkd/certificates.py", "fedkd/trust.py"}
