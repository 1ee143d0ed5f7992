"""A server in the background, a second start, a stop; a run on a SuperLink that somebody else has started."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedkd.errors import ConfigError, FedkdError
from fedkd.locks import holder
from fedkd.processes import claim
from server import bundle, lifecycle, supervise
from server.supervise import Attached, ServerProcesses
from tests.process.test_flower import eventually, processes_of


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fedkd-") as name:
        yield Path(name)


def configuration(folder: Path) -> Path:
    """A server that waits for clients who never come."""
    path = folder / "server.yaml"
    path.write_text(yaml.safe_dump({"proxy": "none", "clients": 1, "address": supervise.free_address(), "out": "run"}))
    return path


def test_a_directory_is_held_by_one_process_until_it_ends(folder: Path) -> None:
    assert holder(folder) is None
    with claim(folder):
        with pytest.raises(ConfigError, match="another process uses"):
            claim(folder)
        code = f"from pathlib import Path; from fedkd.locks import holder; print(holder(Path({str(folder)!r})))"
        seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert int(seen.stdout) > 0
    assert holder(folder) is None


def test_what_a_killed_process_has_left_is_ended(folder: Path) -> None:
    code = f"""
import os, signal, subprocess, sys
from pathlib import Path
from fedkd.processes import claim, environment
held = claim(Path({str(folder)!r}))
subprocess.Popen(["sleep", "600"], env=environment(Path({str(folder)!r})), start_new_session=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert eventually(lambda: processes_of(folder) == ["sleep 600 "])
    with claim(folder):
        assert eventually(lambda: processes_of(folder) == [])


def test_a_server_that_does_not_run_says_so(folder: Path) -> None:
    path = configuration(folder)
    assert lifecycle.status(path) == (False, "not running: 0 of 5 rounds done")
    assert not lifecycle.stop(path)
    with pytest.raises(FedkdError, match="there is no log"):
        list(lifecycle.lines(path, follow=False))


@pytest.mark.process
def test_a_server_in_the_background(folder: Path) -> None:
    path = configuration(folder)
    process = lifecycle.detach(path, "json")
    try:
        running, text = lifecycle.status(path)
        assert running and text == f"running, process {process}: 0 of 5 rounds done"
        with pytest.raises(FedkdError, match="running already"):
            lifecycle.detach(path)
        assert eventually(
            lambda: any("waiting for 1 clients" in line for line in lifecycle.lines(path, follow=False)), 60
        )
    finally:
        assert lifecycle.stop(path)
    assert not lifecycle.status(path)[0]
    assert eventually(lambda: processes_of(folder / "run/flower") == [])


@pytest.mark.process
def test_a_run_on_a_superlink_that_runs_already(folder: Path) -> None:
    staged = bundle.stage(folder / "fedkd")
    (staged / "server/serve.py").write_text(
        "def serve(grid, config):\n    print('configured by', config, flush=True)\n"
    )
    owner = ServerProcesses(folder / "owner", folder / "unused.yaml", supervise.free_address())
    lines: list[str] = []
    with supervise.running(owner):
        guest = Attached(folder / "guest", folder / "server.yaml", owner.address)
        assert supervise.run(guest, lines.append, app=staged) == supervise.COMPLETED, lines
        assert processes_of(folder / "owner") != []
    assert f"configured by {folder / 'server.yaml'}" in lines
    with pytest.raises(ConfigError, match="in the clear"):
        supervise.run(Attached(folder / "guest", folder / "server.yaml", "192.0.2.1:8000"))
