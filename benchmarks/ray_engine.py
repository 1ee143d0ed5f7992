"""Client updates a second of fedkd's own engines beside Flower's simulation runtime on Ray, as a Markdown table.

pip install '.[simulation]' && python benchmarks/ray_engine.py [--clients 10 100] [--rounds 4] [--set KEY=VALUE ...]

All play one scenario, with two workers (a cohort needs one process). The first round, in which agents are opened, is
not counted: an update is a client's share of a later round, from the plan to the teacher. Ray and the engine of worker
processes must end with the same teacher, byte by byte.
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
    print("| clients | process, updates/s | cohort | Ray | process over Ray | cohort over Ray |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for clients in options.clients:
        settings = [*options.set, f"clients={clients}", f"rounds={options.rounds}", "quorum=1.0"]
        with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
            words = [word for one in settings for word in ("--set", one)]
            process, cohort, ray = measure(Path(folder), words, clients)
        gains = f"{process / ray:.1f} | {cohort / ray:.1f}"
        print(f"| {clients} | {process:.1f} | {cohort:.1f} | {ray:.1f} | {gains} |", flush=True)


def measure(out: Path, scenario: Sequence[str], clients: int) -> tuple[float, float, float]:
    """Updates a second: of either engine of one's own, and of Ray."""
    alone = ("--set", "baselines=false")
    for engine in ("process", "cohort"):
        chosen = (*scenario, *alone, "--set", f"engine={engine}")
        federation.fedkd("simulate", "--out", out / engine, "--workers", WORKERS, *chosen)
    chosen = (*scenario, *alone, "--set", "engine=process")
    federation.fedkd("prepare", "--noise", "simulation", "--out", out / "ray", *chosen)
    flower(out / "ray/server.yaml", out / "home", clients)
    teachers = [(out / run / "teacher.safetensors").read_bytes() for run in ("process", "ray/server")]
    if teachers[0] != teachers[1]:
        sys.exit("the two runs differ")
    process, cohort, ray = (out / run / "metrics.jsonl" for run in ("process/server", "cohort/server", "ray/server"))
    return rate(process, clients), rate(cohort, clients), rate(ray, clients)


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
