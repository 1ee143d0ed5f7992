"""Kills each kind of process of a real federation at random moments of one run, and says what every kill cost.

python benchmarks/chaos.py [--kills 5] [--clients 2] [--seed 0] [--kinds agent relay ...]

Server and clients speak TLS under node keys, and are started again when they die, as a service manager would. After
each kill a round is left alone. A kill has lost the seconds by which the two were longer than two rounds mostly are:
what is killed at the end of a round is missed in the next. At the end teacher, students, ledgers and releases must be
those of a simulation that nobody has disturbed, byte by byte.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import federation

KINDS = {
    "superlink": "flower-superlink", "superexec": "flower-superexec", "serverapp": "flwr-serverapp",
    "server": "fedkd server", "supernode": "flower-supernode", "executor": "flower-superexec", "relay": "fedkd relay",
    "agent": "fedkd agent",
}  # fmt: skip
SMALL = {
    "quorum": 1.0, "privacy.steps": 3, "privacy.sample_rate": 0.5, "proxy.size": 60, "proxy.tune_size": 20,
    "features.components": 10, "teacher.steps": 20, "training.distil_steps": 10,
}  # fmt: skip
_PATIENCE = 600.0  # seconds without a round


def main() -> None:
    """Play, compare, and print a table of the seconds lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=5, help="of each kind")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--out", type=Path, help="folder for the run (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
        out = options.out or Path(folder)
        rounds = 4 * len(options.kinds) * options.kills + 4  # several may end while a kill waits for its victim
        settings = {**SMALL, "rounds": rounds, "clients": options.clients}
        scenario = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        federation.prepare(out, scenario)
        typical, lost = disturb(out, options.kinds, options.kills, random.Random(options.seed))
        different = federation.differences(out, scenario)
    print(f"\na round mostly takes {typical:.1f} s\n")
    print("| killed | seconds lost, median | each |\n| --- | --- | --- |")
    for kind, seconds in lost.items():
        print(f"| {kind} | {statistics.median(seconds):.0f} | {', '.join(f'{one:.0f}' for one in seconds)} |")
    print(f"\nkilled {sum(map(len, lost.values()))} processes; different from the simulation: {different or 'nothing'}")
    sys.exit(bool(different))


def disturb(out: Path, kinds: Sequence[str], kills: int, chance: random.Random) -> tuple[float, dict[str, list[float]]]:
    """A run with kills; returns the seconds that a round mostly takes, and the seconds lost by kind."""
    order = [kind for kind in kinds for _ in range(kills)]
    chance.shuffle(order)
    after: list[float] = []
    hit: list[tuple[str, float]] = []
    with server_and_clients(out):
        watch = Watch(out)
        watch.next()  # the first round: joining, and shipping the app
        typical = watch.next()
        for kind in order:
            watch.pause(chance.uniform(0, typical))
            victim = kill(out, kind, chance)
            hit.append((kind, watch.next()))
            after.append(watch.next())
            print(f"round {watch.round}: killed {victim}; {hit[-1][1]:.1f} s, then {after[-1]:.1f} s", flush=True)
        watch.end()
    typical, lost = statistics.median([typical, *after]), defaultdict[str, list[float]](list)
    for (kind, during), then in zip(hit, after, strict=True):
        lost[kind].append(max(0.0, during + then - 2 * typical))
    return typical, dict(lost)


# -- the server and its rounds -----------------------------------------------------------------------------------------


@contextmanager
def server_and_clients(out: Path) -> Iterator[None]:
    """Clients, and a server that is started again until it has ended well."""
    with federation.devices(out):
        over = threading.Event()
        keeper = threading.Thread(target=_keep_server, args=(out, over))
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()


def _keep_server(out: Path, over: threading.Event) -> None:
    """Start the server until it has ended well."""
    command = [sys.executable, "-m", "fedkd", "server", str(out / "federation/server.yaml")]
    while not over.is_set():
        with (out / "server.log").open("ab") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            while server.poll() is None and not over.wait(0.2):
                pass
            if server.poll() is None:
                server.terminate()
            if server.wait() == 0:
                return
        over.wait(1.0)


@dataclass
class Watch:
    """Waits for rounds to end."""

    out: Path
    round: int = 0
    _last: float = 0.0

    def next(self) -> float:
        """Wait for one more round and return how long it took."""
        began = self._last or time.monotonic()
        self._wait(lambda: self._rows() > self.round)
        self.round += 1
        self._last = time.monotonic()
        return self._last - began

    def pause(self, seconds: float) -> None:
        """Let time pass, in which rounds may end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._rows() > self.round:
                self.round, self._last = self._rows(), time.monotonic()
            time.sleep(0.05)

    def end(self) -> None:
        """Wait for the end of the run."""
        self._wait(lambda: "done:" in (self.out / "server.log").read_text(errors="replace"))

    def _wait(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not what():
            if time.monotonic() > deadline:
                raise TimeoutError((self.out / "server.log").read_text(errors="replace")[-4000:])
            time.sleep(0.05)

    def _rows(self) -> int:
        try:
            return len((self.out / "federation/server/metrics.jsonl").read_text().splitlines())
        except FileNotFoundError:
            return 0


# -- kills -------------------------------------------------------------------------------------------------------------


def kill(out: Path, kind: str, chance: random.Random) -> str:
    """kill -9 a process of this kind, as soon as there is one; returns its command."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if found := processes(out, kind):
            number = chance.choice(found)
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
            return f"{kind} {number}"
        time.sleep(0.05)
    raise TimeoutError(f"there is no {kind} to kill")


def processes(out: Path, kind: str) -> list[int]:
    """Numbers of the processes of this federation that are of this kind."""
    home = out / "federation/server/flower" if kind in ("superlink", "superexec", "serverapp") else f"{out}/relay-"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        own = str(out) in command if KINDS[kind].startswith("fedkd") else f"FLWR_HOME={home}" in environment
        if own and KINDS[kind] in command:
            found.append(int(entry.name))
    return sorted(found)


if __name__ == "__main__":
    main()
