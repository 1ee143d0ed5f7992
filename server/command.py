"""What ``fedkd server`` and ``python -m server`` do."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from fedkd import logs
from fedkd.config import ServerConfig, load
from fedkd.errors import ConfigError, FedkdError
from server import supervise

_log = logging.getLogger(__name__)


def run(path: Path, log: logs.Form = "text") -> None:
    """Run one federation to its end. Raises FedkdError when it fails; run it again to resume."""
    logs.configure(log, sys.stdout)
    config = load(ServerConfig, path)
    out = path.resolve().parent / config.out
    where = config.address if config.superlink is None else f"the SuperLink at {config.superlink}"
    _log.info("server on %s, waiting for %d clients", where, config.clients)
    checkpoint = out / "checkpoint.safetensors"

    def progress() -> int:
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    status = supervise.run(_processes(config, path, out / "flower"), on_line=_log.info, progress=progress)
    if status != supervise.COMPLETED:
        raise FedkdError(
            f"the run ended as {status}",
            where=str(out),
            fix="the lines above say why; the same command goes on from the last checkpoint",
        )
    _log.info("done: %s, %s", out / "teacher.safetensors", out / "metrics.jsonl")


def _processes(config: ServerConfig, path: Path, home: Path) -> supervise.ServerProcesses | supervise.Attached:
    if config.superlink is None:
        return supervise.ServerProcesses(home, path.resolve(), config.address, _identity(config, path))
    authority = path.resolve().parent / config.superlink_ca if config.superlink_ca else None
    return supervise.Attached(home, path.resolve(), config.superlink, authority)


def _identity(config: ServerConfig, path: Path) -> supervise.Identity | None:
    if (config.tls is None) != (config.nodes is None):
        raise ConfigError(
            "'tls' and 'nodes' need each other: relays prove who they are over an encrypted connection only",
            where=str(path),
            fix="give both ('fedkd certs' makes them), or neither on 127.0.0.1",
        )
    if config.tls is None or config.nodes is None:
        return None
    base = path.resolve().parent
    return supervise.Identity(base / config.tls.certificate, base / config.tls.key, base / config.nodes)


def main() -> int:
    """Command line of ``python -m server CONFIG``."""
    if len(sys.argv) != 2:
        print("usage: python -m server CONFIG", file=sys.stderr)
        return 2
    try:
        run(Path(sys.argv[1]))
    except FedkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
