"""Client updates a second of fedkd's own engine beside Flower's simulation runtime on Ray, as a Markdown table.

pip install '.[simulation]' && python benchmarks/ray_engine.py [--clients 10 100] [--rounds 4] [--set KEY=VALUE ...]

Both play one scenario with two workers. The first round, in which agents are opened, is not counted: an update is a
client's share of a later round, from the plan to the teacher. Both must end with the same teacher, byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import federation

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}


def main() -> None:
    """Measure every size and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    print("| clients | in process, updates/s | Ray, updates/s | gain |\n| --- | --- | --- | --- |")
    for clients in options.clients:
        settings = [*options.set, f"clients={clients}", f"rounds={options.rounds}", "engine=process", "quorum=1.0"]
        with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
            own, ray = measure(Path(folder), [word for one in settings for word in ("--set", one)], clients)
        print(f"| {clients} | {own:.1f} | {ray:.1f} | {own / ray:.1f} |", flush=True)


def measure(out: Path, scenario: Sequence[str], clients: int) -> tuple[float, float]:
    """Updates a second of either."""
    alone = ("--set", "baselines=false")
    federation.fedkd("simulate", "--out", out / "own", "--workers", WORKERS, *scenario, *alone)
    federation.fedkd("prepare", "--noise", "simulation", "--out", out / "ray", *scenario, *alone)
    flower(out / "ray/server.yaml", out / "home", clients)
    teachers = [(out / run / "teacher.safetensors").read_bytes() for run in ("own", "ray/server")]
    if teachers[0] != teachers[1]:
        sys.exit("the two runs differ")
    return rate(out / "own/metrics.jsonl", clients), rate(out / "ray/server/metrics.jsonl", clients)


def flower(server: Path, home: Path, clients: int) -> None:
    """Play a prepared run in Flower's simulation runtime, to its end."""
    resources = f"num-supernodes={clients} client-resources-num-cpus=1"
    command = ["flwr", "run", str(ROOT), "local", "--stream", "--federation-config", resources]
    environment = {**os.environ, **QUIET, "FLWR_HOME": str(home), "PYTHONPATH": str(ROOT)}
    home.mkdir()
    try:
        with (home / "console").open("w") as console:
            run = [*command, "--run-config", f"config='{server}'"]
            done = subprocess.run(run, check=False, stdout=console, stderr=console, env=environment)
        if done.returncode:
            sys.exit((home / "console").read_text())
    finally:
        _end(home)


def _end(home: Path) -> None:
    """Flower leaves the SuperLink of a simulation running."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"FLWR_HOME={home}".encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), 15)


def rate(metrics: Path, clients: int) -> float:
    """Of a run's rounds, the first one left out."""
    seconds = [json.loads(line)["seconds"] for line in metrics.read_text().splitlines()]
    return clients / statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
