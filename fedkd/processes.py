"""Processes that live long: Flower's commands, kept running in an environment of their own, and stopped whole."""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fedkd.errors import ConfigError
from fedkd.locks import hold

_log = logging.getLogger(__name__)

_LOG_LIMIT = 10_000_000
_WATCH_SECONDS = 0.2
_GRACE = 10.0


def environment(home: Path, inherited: Collection[str] | None = None) -> dict[str, str]:
    """Environment for Flower's commands: offline and silent, with a home of their own instead of the user's.

    ``inherited`` names the variables to pass on from this process; None passes on all. Flower finds its helper
    commands through PATH, and its HTTP client would send loopback traffic to a proxy.
    """
    ours = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("NO_PROXY", "no_proxy"):
        ours[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost", "::1"]))
    passed_on = {name: value for name, value in os.environ.items() if inherited is None or name in inherited}
    return {**passed_on, **ours}


def claim(home: Path) -> IO[str]:
    """Make ``home`` and hold it for this process, until the returned file is closed. Raises ConfigError if another
    process holds it. What an earlier holder, itself killed, has left running is ended."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = hold(home, "another process uses this directory")
    _end_leftovers(home)
    return file


def _end_leftovers(home: Path) -> None:
    mark = f"FLWR_HOME={home.absolute()}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                _log.warning("ending process %s, which an earlier start has left behind", process.name)
                os.kill(int(process.name), signal.SIGKILL)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of ``host:port``, where an IPv6 address may stand in brackets. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError("the address is not host:port", where=address, fix="for example: 127.0.0.1:8000")
    return host.strip("[]"), int(port)


def listen(address: str) -> socket.socket:
    """A TCP socket that is bound to the address and not yet listening. Raises ConfigError if the address is taken."""
    host, port = host_and_port(address)
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        raise ConfigError(
            f"the server's address is taken, or not this machine's: {error.strerror}",
            where=address,
            fix="stop the other server, or change the address",
        ) from error
    return opened


def is_loopback(address: str) -> bool:
    """Whether ``host:port`` stays on this machine, judged without asking a name server."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM, and the loss of the terminal, into KeyboardInterrupt: one ``finally`` then stops the children.

    For the main thread alone, as signal handlers are.
    """

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Service:
    """A command that is kept running in a process group of its own until it is stopped.

    ``command`` is asked anew at each start, so that a port taken in the meantime can be left. Restarts wait 1, 2, 4,
    ... ``longest_pause`` seconds; a process that has lived that long starts again without delay. ``explain`` makes
    a reason out of the log's last lines; what it finds is told with the restart. ``helper`` is a command that the
    process starts once and is of no use without: when it has gone, the process is started again. ``claimed``, a file,
    is closed after the stop.
    """

    def __init__(
        self, name: str, command: Callable[[], Sequence[str]], env: Mapping[str, str], log: Path,
        longest_pause: float = 30.0, explain: Callable[[str], str] = lambda tail: "",
        helper: str = "", claimed: IO[str] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.log, self._explain, self._claimed = name, log, explain, claimed
        self._helper = helper
        self._command, self._env, self._longest_pause = command, dict(env), longest_pause
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_running, name=name, daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Process id, which is also the process group's; None while it is not running."""
        process = self._process
        return None if process is None or has_ended(process) else process.pid

    def start(self) -> None:
        """Start the process, and the thread that watches over it."""
        self._launch()
        atexit.register(self.stop)
        self._thread.start()

    def stop(self, grace: float = _GRACE) -> None:
        """Stop the process and everything it started, killing after ``grace`` seconds what is left. Idempotent."""
        self._stopping.set()
        with self._lock:
            if self._process is not None:
                stop_group(self._process, grace)
        if self._claimed is not None:
            self._claimed.close()
        atexit.unregister(self.stop)  # only now: an impatient second Ctrl-C leaves the rest to the interpreter's exit

    def _launch(self) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            self._process = spawn(self._command(), self._env, self.log)

    def _keep_running(self) -> None:
        pause = 1.0
        while (process := self._process) is not None:
            born, had_helper = time.monotonic(), False
            while not has_ended(process):
                time.sleep(_WATCH_SECONDS)
                has_helper = bool(self._helper) and has_child(process.pid, self._helper)
                if had_helper and not has_helper:
                    break
                had_helper = has_helper
            with self._lock:
                stop_group(process, grace=_GRACE if had_helper else 0.0)
            if self._stopping.is_set():
                return
            pause = 1.0 if time.monotonic() - born > self._longest_pause else pause
            reason = self._explain(_tail(self.log)) or f"see {self.log}"
            _log.warning(
                "%s ended with code %d; starting it again in %.0f s: %s",
                *(self.name, process.returncode, pause, reason),
            )
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, self._longest_pause)
            self._launch()


def has_child(process: int, command: str) -> bool:
    """Whether the process has a living child with ``command`` in its command line."""
    with contextlib.suppress(OSError):
        return any(command in _command_line(child) for child in _children(process))
    return False


def _children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def _command_line(process: str) -> str:
    """Empty for a process that has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _tail(log: Path, length: int = 4000) -> str:
    """The end of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - length))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def spawn(command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start ``command`` as leader of a new process group, with its output appended to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_suffix(log.suffix + ".1"))
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command), env=dict(env), cwd=log.parent, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def stop_group(leader: subprocess.Popen[Any], grace: float) -> None:
    """End the process group of ``leader``: ask first, and kill it when the leader has gone, or after ``grace`` seconds.

    The leader is reaped last: until then the system gives its number, which is the group's, to no other process.
    """
    _signal_group(leader, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while not has_ended(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_group(leader, signal.SIGKILL)
    leader.wait()


def has_ended(process: subprocess.Popen[Any]) -> bool:
    """Whether the process is over, without reaping it."""
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _signal_group(leader: subprocess.Popen[Any], number: int) -> None:
    if leader.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, number)
