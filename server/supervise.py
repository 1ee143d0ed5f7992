"""A run from the outside: start Flower's server processes, submit the app, follow its log, and leave nothing behind.

The SuperLink (Flower's switchboard, with its database on disk) and the SuperExec (which starts the ServerApp) are
two processes, so that a run outlives a crash of the SuperLink. Each is started again when it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fedkd.errors import ConfigError, FedkdError
from fedkd.flower import Service, environment, free_port, interrupted_by_sigterm, is_loopback, stop_group
from server import bundle

_log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_ANSWER_SECONDS = 60.0
_SILENCE_LIMIT = 60  # attempts, each of a few seconds: far longer than a SuperLink takes to start again
_REASON_LIMIT = 2000
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_BANNER = "Using SuperLink:"
_CONNECTION = "fedkd"
FINISHED = "finished:"
COMPLETED = "finished:completed"


@dataclass(frozen=True)
class ServerProcesses:
    """Where the server listens and writes.

    ``home`` is the server's own directory: Flower's settings and database, logs, the staged app. ``app_config`` is
    the file the ServerApp reads. ``address`` is host:port for relays; the connection is not encrypted, so only the
    loopback interface is accepted.
    """

    home: Path
    app_config: Path
    address: str = "127.0.0.1:8000"


def run(config: ServerProcesses, on_line: Callable[[str], None] = print, app: Path | None = None) -> str:
    """Run the federation once and return Flower's status of the run: ``finished:completed``, ``:failed``, ``:stopped``.

    ``on_line`` gets the ServerApp's log line by line. ``app`` is a staged app; without it the installed code is
    staged. SIGTERM and Ctrl-C stop the run and every process, and leave as KeyboardInterrupt.
    """
    with interrupted_by_sigterm(), running(config):
        staged = app or bundle.stage(config.home / "app" / "fedkd")
        run_id = _submit(config, staged)
        try:
            return follow(config, run_id, on_line)
        except BaseException:
            _stop_run(config, run_id)
            raise


@contextlib.contextmanager
def running(config: ServerProcesses) -> Iterator[list[Service]]:
    """The SuperLink and the SuperExec, up and answering; both are stopped at the end."""
    _check(config)
    config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    stale = _database(config).exists()
    _write_connection(config)
    services = [_superlink(config), _superexec(config)]
    try:
        services[0].start()
        _wait_until_listening(config.address, services[0])
        if stale:
            _stop_unfinished(config)
        services[1].start()
        yield services
    finally:
        for service in reversed(services):
            service.stop()


def follow(config: ServerProcesses, run_id: int, on_line: Callable[[str], None]) -> str:
    """Pass on the run's log until it ends, through restarts of the SuperLink; return the run's status."""
    seen, silence = 0, 0
    while silence < _SILENCE_LIMIT:
        seen = _stream(config, run_id, seen, on_line)
        status = _status(config, run_id)
        if status is not None and status.startswith(FINISHED):
            return status
        silence = silence + 1 if status is None else 0
        time.sleep(1.0)
    raise FedkdError("the SuperLink does not answer any more", where=config.address, fix=f"see {config.home}")


def free_address() -> str:
    """An address of the loopback interface that is free right now."""
    return f"127.0.0.1:{free_port()}"


# -- Flower's commands -------------------------------------------------------------------------------------------------


def _superlink(config: ServerProcesses) -> Service:
    host, _, port = config.address.rpartition(":")
    command = ["flower-superlink", "--insecure", "--host", host.strip("[]"), "--port", port]
    command += ["--isolation", "process", "--database", str(_database(config))]
    command += ["--disable-runtime-dependency-installation"]
    return _service(config, "superlink", command)


def _superexec(config: ServerProcesses) -> Service:
    command = ["flower-superexec", "--insecure", "--runtime-api-address", config.address]
    command += ["--parent-pid", str(os.getpid())]  # ends with this process even when that is killed
    return _service(config, "superexec", command)


def _service(config: ServerProcesses, name: str, command: list[str]) -> Service:
    home = config.home.absolute()
    return Service(name, lambda: command, environment(home), home / f"{name}.log")


def _submit(config: ServerProcesses, staged: Path) -> int:
    path = str(config.app_config.absolute())
    answer = _flwr(config, "run", str(staged.absolute()), _CONNECTION, "--run-config", f"config='{path}'")
    return int(answer["run-id"])


def _status(config: ServerProcesses, run_id: int) -> str | None:
    """The run's status; None while the SuperLink does not answer."""
    try:
        answer = _flwr(config, "ls", _CONNECTION, "--run-id", str(run_id))
    except FedkdError as error:
        _log.warning("%s", error)
        return None
    return str(answer["runs"][0]["status"])


def _stop_run(config: ServerProcesses, run_id: int) -> None:
    with contextlib.suppress(FedkdError):
        _flwr(config, "stop", str(run_id), _CONNECTION)


def _stop_unfinished(config: ServerProcesses) -> None:
    """End what an earlier server left in the database: the SuperExec would start it beside the new run."""
    for earlier in _flwr(config, "ls", _CONNECTION)["runs"]:
        if not earlier["status"].startswith(FINISHED):
            _stop_run(config, int(earlier["run-id"]))


def _stream(config: ServerProcesses, run_id: int, seen: int, on_line: Callable[[str], None]) -> int:
    """Pass on the log's lines after the first ``seen`` until the stream ends; return how many lines there are."""
    command = [_executable(), "log", str(run_id), _CONNECTION, "--stream"]
    process = subprocess.Popen(
        command, env=environment(config.home.absolute()), cwd=config.home, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    count = 0
    try:
        for line in process.stdout:
            count += 1
            if count > seen and not line.startswith(_BANNER):
                on_line(_COLOURS.sub("", line.rstrip()))
    finally:
        stop_group(process, grace=2.0)
        process.stdout.close()
    return max(seen, count)


def _flwr(config: ServerProcesses, *arguments: str) -> dict[str, Any]:
    """Flower's answer to one of its own commands. In a session of its own, out of reach of the terminal's Ctrl-C."""
    command = [_executable(), *arguments, "--format", "json"]
    try:
        result = subprocess.run(
            command, env=environment(config.home.absolute()), cwd=config.home, start_new_session=True,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise FedkdError(f"flwr {arguments[0]} did not answer", where=config.address) from error
    try:
        answer = json.loads(result.stdout)
    except ValueError:
        answer = {}
    if not answer.get("success"):
        reason = str(answer.get("error-message") or result.stdout + result.stderr).strip()
        raise FedkdError(f"flwr {arguments[0]} failed", where=config.address, fix=reason[-_REASON_LIMIT:])
    return cast(dict[str, Any], answer)


def _executable() -> str:
    return str(Path(sys.executable).parent / "flwr")


def _write_connection(config: ServerProcesses) -> None:
    """Tell Flower's commands about our SuperLink, and about no other: its default would start one of its own."""
    text = (
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n'
        f'[superlink.{_CONNECTION}]\naddress = "{config.address}"\ninsecure = true\n'
    )
    (config.home / "config.toml").write_text(text, encoding="utf-8")


def _wait_until_listening(address: str, service: Service) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
            return
        time.sleep(0.1)
    raise FedkdError("the SuperLink did not start", where=address, fix=f"see {service.log}")


def _database(config: ServerProcesses) -> Path:
    return config.home.absolute() / "superlink.db"


def _check(config: ServerProcesses) -> None:
    host, _, port = config.address.rpartition(":")
    if not is_loopback(config.address):
        raise ConfigError(
            "the server would accept connections in the clear", where=config.address, fix="listen on 127.0.0.1"
        )
    if set(str(config.app_config.absolute())) & set("'\n"):
        raise ConfigError("the path of the configuration cannot be passed to Flower", where=str(config.app_config))
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise ConfigError(
                "the server's address is taken", where=config.address, fix="stop the other server, or change the port"
            ) from error
