"""How far one server goes: real SuperNodes on this machine, then many agents and many rounds in one process.

python benchmarks/scale.py nodes [--clients 8] [--rounds 5]      real relays and agents, TLS, one SuperLink
python benchmarks/scale.py agents [--clients 200] [--rounds 5]   the same loop, relay and agents, without processes
python benchmarks/scale.py rounds [--rounds 1000]                the same, and what grows from round to round

Prints seconds a round, the server's memory, and files. In the last two the clients' training is as short as it can be.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chaos
import federation
import torch

from fedkd.config import Data, Scenario
from fedkd.data import sources
from fedkd.distill.model import ProxyView
from server.loop import Loop
from server.run import Row, RunDirectory
from server.setting import Setting
from simulations.engine import Engine
from simulations.prepare import prepare

TINY = {"proxy": {"size": 40, "tune_size": 0}, "features": {"components": 5}, "teacher": {"steps": 5}}
EVERY = 10


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=list(BENCHMARKS))
    parser.add_argument("--clients", type=int)
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
        measure, clients, rounds = BENCHMARKS[options.what]
        measure(Path(folder), options.clients or clients, options.rounds or rounds)


def nodes(out: Path, clients: int, rounds: int) -> None:
    """Real processes."""
    settings = {**chaos.SMALL, "rounds": rounds, "clients": clients}
    federation.prepare(out, [word for key, value in settings.items() for word in ("--set", f"{key}={value}")])
    with chaos.server_and_clients(out):
        watch = chaos.Watch(out)
        for _ in range(rounds):
            print(f"round {watch.round + 1}: {watch.next():.1f} s", flush=True)
            superlink, app, every = (megabytes(out, *kinds) for kinds in (["superlink"], ["serverapp"], chaos.KINDS))
            print(f"  SuperLink {superlink:.0f} MB, ServerApp {app:.0f} MB, all processes together {every:.0f} MB")
        watch.end()


def agents(out: Path, clients: int, rounds: int) -> None:
    """Many agents in this process, and how fast the server's own code gets through their answers."""
    measured = play(out, clients, rounds)
    whole, own = statistics.median(measured.seconds), statistics.median(measured.own)
    print(f"{clients} agents: {whole:.2f} s a round, of which the server's own part is {own:.2f} s")
    print(f"that is {clients / own:.0f} answers a second")
    print(f"{resident(os.getpid()) / 2**20:.0f} MB for the server and all agents")


def growth(out: Path, clients: int, rounds: int) -> None:
    """Memory and files every tenth of the run."""
    measured = play(out, clients, rounds, trace=rounds <= 100)
    print(f"{rounds} rounds: {statistics.median(measured.seconds):.3f} s a round")
    print("| round | resident MB | Python MB | files | kB on disk |\n| --- | --- | --- | --- | --- |")
    for at in measured.marks:
        print(f"| {at.round} | {at.resident:.1f} | {at.python:.2f} | {at.files} | {at.kilobytes:.0f} |")


# -- a run in this process ---------------------------------------------------------------------------------------------


@dataclass
class Mark:
    """What there is after a round."""

    round: int
    resident: float
    python: float
    files: int
    kilobytes: float


@dataclass
class Measured:
    """Of a whole run; ``own`` are the seconds of each round in which no agent was at work."""

    seconds: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


def play(out: Path, clients: int, rounds: int, trace: bool = False) -> Measured:
    """The server's loop with agents behind the relay, as in a simulation."""
    torch.set_num_threads(1)
    small = {"steps": 1, "mechanism": "dp_sgd", "epsilon": 50.0}
    scenario = Scenario.model_validate(
        {**TINY, "clients": clients, "rounds": rounds, "privacy": small, "training": {"distil_steps": 1}}
    )
    prepare(scenario, out, out)
    engine = Engine({path.name: path for path in federation.clients(out)}, out / "test.npz", workers=1)
    measured, marks, at_work = Measured(), max(1, rounds // EVERY), list[float]()
    handle = engine._hosts.call

    def timed(client: str, method: str, argument: Any) -> Any:
        began = time.monotonic()
        try:
            return handle(client, method, argument)
        finally:
            at_work.append(time.monotonic() - began)

    engine._hosts.call = timed  # type: ignore[method-assign]
    engine.map("open")
    at_work.clear()

    def on_row(row: Row) -> None:
        measured.seconds.append(row.seconds)
        measured.own.append(row.seconds - sum(at_work))
        at_work.clear()
        if row.round % marks == 0:
            measured.marks.append(mark(out, row.round))

    if trace:
        tracemalloc.start()
    test = sources.load(Data(source="npz", path="test.npz"), out)[0]
    setting = Setting(scenario, clients, attempts=1, on_row=on_row)
    view = ProxyView.load(out / "proxy.safetensors", out)
    try:
        with engine.grid() as grid:
            Loop(grid, setting, view, RunDirectory(out / "server"), test).run()
    finally:
        engine.close()
        tracemalloc.stop()
    return measured


def mark(out: Path, round: int) -> Mark:
    """Memory of this process, and files of the run."""
    gc.collect()
    files = [path for path in out.rglob("*") if path.is_file()]
    python = tracemalloc.get_traced_memory()[0] / 2**20
    return Mark(round, resident(os.getpid()) / 2**20, python, len(files), sum(f.stat().st_size for f in files) / 1e3)


def megabytes(out: Path, *kinds: str) -> float:
    """Of the federation's processes of these kinds."""
    return sum(resident(one) for kind in kinds for one in chaos.processes(out, kind)) / 2**20


def resident(process: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


BENCHMARKS: dict[str, tuple[Callable[[Path, int, int], None], int, int]] = {
    "nodes": (nodes, 8, 5),
    "agents": (agents, 200, 5),
    "rounds": (growth, 2, 1000),
}

if __name__ == "__main__":
    main()
