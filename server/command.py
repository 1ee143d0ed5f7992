"""What ``fedkd server`` and ``python -m server`` do."""

from __future__ import annotations

import sys
from pathlib import Path

from fedkd.config import ServerConfig, load
from fedkd.errors import FedkdError
from server import supervise


def run(path: Path) -> None:
    """Run one federation to its end. Raises FedkdError when it fails; run it again to resume."""
    config = load(ServerConfig, path)
    out = path.resolve().parent / config.out
    processes = supervise.ServerProcesses(home=out / "flower", app_config=path.resolve(), address=config.address)
    print(f"server on {config.address}, waiting for {config.clients} clients", flush=True)
    status = supervise.run(processes, on_line=lambda line: print(line, flush=True))
    if status != supervise.COMPLETED:
        raise FedkdError(
            f"the run ended as {status}",
            where=str(out),
            fix="the lines above say why; the same command goes on from the last checkpoint",
        )
    print(f"done: {out / 'teacher.safetensors'}, {out / 'metrics.jsonl'}", flush=True)


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
