"""How a ledger of many events fares: verified, accounted for, exported, and charged once more.

    python benchmarks/ledger_scale.py [--events 100000]

Entries are written in one transaction, without the two fsyncs that each costs on a device; all else is the ledger's own
code. Times are medians of three, in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from fedkd.privacy.accounting import Pld
from fedkd.privacy.chain import COMMIT, RESERVE
from fedkd.privacy.contract import Contract, Training
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.ledger import Ledger
from fedkd.privacy.limits import Limits
from fedkd.tensors import digest

EVENT = PrivacyEvent("dp_sgd", 30.0, 0.01, 1)
PLAN, SNAPSHOT = "p" * 64, "s" * 64


def contract(rounds: int) -> Contract:
    """One run of that many rounds."""
    offered = {"run": "run", "server": "server", "proxy": "0" * 64, "examples": 4, "classes": 2, "queries": 4}
    agreed = {
        "codec": "float32",
        "aggregate": "mean",
        "mechanism": "dp_sgd",
        "shards": 1,
        "variances": (),
        "noise": "os",
    }
    training = Training(EVENT.steps, EVENT.sample_rate, clip=1.0, nominal_batch=10.0)
    limits = Limits("example", 100.0, 1e-5)
    record: dict[str, Any] = {**offered, **agreed, "rounds": rounds, "events": (EVENT,)}
    return Contract(**record, training=training, limits=limits)


def fill(ledger: Ledger, events: int) -> None:
    """Rounds that have been charged and released, as ``reserve`` and ``commit`` enter them."""
    chain = ledger._chain
    with chain.transaction():
        for round in range(1, events):
            of = {"server": "server", "run": "run", "round": round}
            charge = {**of, "kind": RESERVE, "plan": PLAN, "seen": 0, "noise": digest(str(round).encode())}
            chain.append({**charge, "events": [EVENT.record()]})
            chain.append({**of, "kind": COMMIT, "digest": digest(str(-round).encode()), "bytes": 1})


def timed(what: str, work: Callable[[], Any], times: int = 3) -> Any:
    """Do it, say how long it took, and return the last result."""
    wall, cpu = [], []
    for _ in range(times):
        begun = time.perf_counter(), time.process_time()
        result = work()
        wall.append(time.perf_counter() - begun[0])
        cpu.append(time.process_time() - begun[1])
    print(f"{what:44} {statistics.median(wall):8.3f} s {statistics.median(cpu):8.3f} s of processor time")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    events = parser.parse_args().events
    with tempfile.TemporaryDirectory() as folder, closing(Ledger(Path(folder) / "ledger.sqlite", "alice")) as ledger:
        ledger.register(contract(events + 1))
        ledger.commit(ledger.reserve("run", 1, PLAN, SNAPSHOT, lambda: b"k" * 32), b"answers", {})
        timed(f"write {events} events", lambda: fill(ledger, events), 1)
        print(f"{'file':44} {(Path(folder) / 'ledger.sqlite').stat().st_size / 1e6:8.1f} MB")
        timed("verify", ledger.verify)
        history = timed("history", ledger.history)
        print(f"{'events after merging':44} {len(history):8}")
        timed("epsilon of the history", lambda: Pld().spent(ledger.history(), 1e-5))
        timed("export", ledger.export)
        timed("reserve one more round", lambda: ledger.reserve("run", events + 1, PLAN, SNAPSHOT, lambda: b"k" * 32), 1)


if __name__ == "__main__":
    main()
