"""Kills each kind of process of a real federation at random moments of one run, and says what every kill cost.

python benchmarks/chaos.py [--kills 5] [--clients 2] [--seed 0] [--kinds agent relay ...]

Server and clients speak TLS under node keys, and are started again when they die, as a service manager would. Every
second round is left alone: a kill has lost the seconds by which its round was longer than those. At the end teacher,
students, ledgers and releases must be those of a simulation that nobody has disturbed, byte by byte.
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from fedkd.processes import Service, free_port

KINDS = ("superlink", "superexec", "serverapp", "supernode", "relay", "agent", "server")
SETTINGS = {
    "quorum": 1.0, "privacy.steps": 3, "privacy.sample_rate": 0.5, "proxy.size": 60, "proxy.tune_size": 20,
    "features.components": 10, "teacher.steps": 20, "training.distil_steps": 10, "baselines": "false",
}  # fmt: skip
_PATIENCE = 600.0  # seconds without a round


def main() -> None:
    """Play, compare, and print a table of the seconds lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=5, help="of each kind")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, help="folder for the run (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
        out = options.out or Path(folder)
        calm, lost = disturb(out, options.kinds, options.kills, options.clients, options.seed)
        differences = compare(out)
    print(f"\na round that is left alone takes {calm:.1f} s\n")
    print("| killed | seconds lost, median | each |\n| --- | --- | --- |")
    for kind, seconds in lost.items():
        print(f"| {kind} | {statistics.median(seconds):.0f} | {', '.join(f'{one:.0f}' for one in seconds)} |")
    print(f"\ndifferent from the simulation: {differences or 'nothing'}")
    sys.exit(bool(differences))


def disturb(
    out: Path, kinds: Sequence[str], kills: int, clients: int, seed: int
) -> tuple[float, dict[str, list[float]]]:  # fmt: skip
    """A run with kills; returns the seconds of an undisturbed round, and the seconds lost by kind."""
    chance = random.Random(seed)
    order = [kind for kind in kinds for _ in range(kills)]
    chance.shuffle(order)
    prepare(out, clients, rounds=2 * len(order) + 3)
    calm: list[float] = []
    hit: list[tuple[str, float]] = []
    with federation(out):
        watch = Watch(out)
        watch.next()  # the first round: joining, and shipping the app
        calm.append(watch.next())
        for kind in order:
            time.sleep(chance.uniform(0, calm[-1]))
            victim = kill(out, kind, chance)
            hit.append((kind, watch.next()))
            calm.append(watch.next())
            print(f"round {watch.round}: killed {victim}; {hit[-1][1]:.1f} s, then {calm[-1]:.1f} s", flush=True)
        watch.end()
    typical, lost = statistics.median(calm), defaultdict(list)
    for kind, seconds in hit:
        lost[kind].append(max(0.0, seconds - typical))
    return typical, dict(lost)


def compare(out: Path) -> list[str]:
    """Play the run again in a simulation, and name what is not the same."""
    simulated = out / "simulated"
    rounds = yaml.safe_load((out / "federation/server.yaml").read_text())
    more = {"rounds": rounds["rounds"], "clients": rounds["clients"]}
    _fedkd("simulate", "--out", simulated, "--workers", 1, *_sets(more))
    run = out / "federation"
    pairs = [(run / "server/teacher.safetensors", simulated / "teacher.safetensors")]
    for folder in sorted((run / "clients").iterdir()):
        state, other = folder / "state", simulated / "clients" / folder.name / "state"
        pairs.append((state / "student.safetensors", simulated / "students" / f"{folder.name}.safetensors"))
        names = {path.name for place in (state, other) for path in (place / "outbox").iterdir()}
        pairs += [(state / "outbox" / name, other / "outbox" / name) for name in sorted(names)]
    wrong = [str(mine.relative_to(run)) for mine, theirs in pairs if _bytes(mine) != _bytes(theirs)]
    for folder in sorted((run / "clients").iterdir()):
        exports = [_fedkd("ledger", "export", place, "--json", "--client", folder.name) for place in (run, simulated)]
        wrong += [f"ledger of {folder.name}"] if exports[0] != exports[1] else []
    return wrong


# -- the federation ----------------------------------------------------------------------------------------------------


def prepare(out: Path, clients: int, rounds: int) -> None:
    """Configurations, certificates and keys, for processes on this machine."""
    run, address = out / "federation", f"127.0.0.1:{free_port()}"
    _fedkd("prepare", "--noise", "simulation", "--out", run, *_sets({"rounds": rounds, "clients": clients}))
    folders = sorted((run / "clients").iterdir())
    nodes = [word for folder in folders for word in ("--node", folder.name)]
    _fedkd("certs", run / "certs", "--host", "127.0.0.1", *nodes)
    tls = {"certificate": "certs/server.pem", "key": "certs/server.key"}
    _edit(run / "server.yaml", address=address, tls=tls, nodes="certs/nodes", round_timeout=180)
    for folder in folders:
        door = f"{out}/{folder.name}.sock"
        _edit(folder / "client.yaml", socket=door)
        trust = {"tls": {"ca": str(run / "certs/ca.pem")}, "node_key": str(run / f"certs/keys/{folder.name}.key")}
        _edit(folder / "relay.yaml", address=address, socket=door, home=str(out / f"relay-{folder.name}"), **trust)


@contextmanager
def federation(out: Path) -> Iterator[None]:
    """Agents, relays and server, each started again when it dies."""
    run = out / "federation"
    with ExitStack() as stack:
        for folder in sorted((run / "clients").iterdir()):
            for role in ("agent", "relay"):
                config = folder / ("client.yaml" if role == "agent" else "relay.yaml")
                name = f"{role}-{folder.name}"
                service = Service(name, _command(role, config), dict(os.environ), out / f"{name}.log")
                service.start()
                stack.callback(service.stop)
        over = threading.Event()
        keeper = threading.Thread(target=_keep_server, args=(out, over))
        stack.callback(keeper.join)
        stack.callback(over.set)
        keeper.start()
        yield


def _keep_server(out: Path, over: threading.Event) -> None:
    """Start the server until it has ended well."""
    command = _command("server", out / "federation/server.yaml")()
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


def _command(role: str, config: Path) -> Callable[[], list[str]]:
    return lambda: [sys.executable, "-m", "fedkd", role, str(config)]


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
    wanted = {
        "superlink": "flower-superlink", "superexec": "flower-superexec", "serverapp": "flwr-serverapp",
        "supernode": "flower-supernode", "relay": "fedkd relay", "agent": "fedkd agent", "server": "fedkd server",
    }[kind]  # fmt: skip
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted in command and (str(out) in command or f"FLWR_HOME={out}".encode() in environment):
            found.append(int(entry.name))
    return sorted(found)


# -- small things ------------------------------------------------------------------------------------------------------


def _fedkd(*words: object) -> str:
    command = [sys.executable, "-m", "fedkd", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _sets(more: dict[str, object]) -> list[str]:
    return [word for key, value in {**SETTINGS, **more}.items() for word in ("--set", f"{key}={value}")]


def _edit(file: Path, **keys: object) -> None:
    before = yaml.safe_load(file.read_text()) if file.exists() else {}
    file.write_text(yaml.safe_dump({**before, **keys}))


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


if __name__ == "__main__":
    main()
