"""What a round of real processes takes, and how much of it is neither training nor distillation.

python benchmarks/overhead.py [--scenario FILE] [--rounds 20] [--clients 4] [--set KEY=VALUE ...]

After each round the same processes play one that does nothing: messages of the same sizes over the same SuperLink, with
TLS and node keys, to clients that answer at once. A round's overhead is what is left of it without the slowest client's
training and without the teacher's distillation; it is compared with the round beside it. At the end the federation is
simulated, and the bytes are compared.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from pathlib import Path

import federation
import yaml

from server import bundle, supervise
from server.supervise import Identity, ServerProcesses

# Put at the end of two of the app's modules.
LOOP = """
from fedkd.flower import exchange, node_ids


class Loop(Loop):  # noqa: F811 - plays a round that does nothing after each of the real ones
    def _record(self, tally, seconds, distilling):
        super()._record(tally, seconds, distilling)
        began = time.monotonic()
        nodes, grid, row = self._members.nodes, self._members._grid, self._rows[-1]
        node_ids(grid, 1, 0)
        request = (row["bytes_up"] // len(nodes)).to_bytes(8, "little")
        request += bytes(max(0, row["bytes_down"] // len(nodes) - 8))
        outcomes = exchange(grid, "noop", dict.fromkeys(nodes, request), self._setting.round_timeout)
        assert all(isinstance(outcome, bytes) for outcome in outcomes.values()), outcomes
        print(f"pair {seconds:.3f} {distilling:.3f} {time.monotonic() - began:.3f}", flush=True)
"""
APP = """

@app.query("noop")
def noop(message, context):
    return reply_with(message, bytes(int.from_bytes(payload_of(message)[:8], "little")))
"""


def main() -> None:
    """Play, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scenario", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    settings = [*options.set, f"rounds={options.rounds}", f"clients={options.clients}", "quorum=1.0"]
    scenario = [*([str(options.scenario)] if options.scenario else []), *(w for s in settings for w in ("--set", s))]
    with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
        out = Path(folder)
        federation.prepare(out, scenario)
        report(out, play(out))
        different = federation.differences(out, scenario)
    print(f"different from the simulation: {different or 'nothing'}")
    sys.exit(bool(different))


def play(out: Path) -> list[str]:
    """The run; returns what the ServerApp has printed."""
    run = out / "federation"
    certs, address = run / "certs", yaml.safe_load((run / "server.yaml").read_text())["address"]
    identity = Identity(certs / "server.pem", certs / "server.key", certs / "nodes")
    processes = ServerProcesses(run / "server/flower", run / "server.yaml", address, identity)
    staged = bundle.stage(out / "app/fedkd")
    for module, more in (("server/loop.py", LOOP), ("client/app.py", APP)):
        with (staged / module).open("a") as file:
            file.write(more)
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    with federation.devices(out):
        if supervise.run(processes, on_line, app=staged) != supervise.COMPLETED:
            sys.exit("the run has failed")
    return lines


def report(out: Path, lines: list[str]) -> None:
    """Seconds a round, by what they were for; the first round is left out, in which the app is shipped."""
    pairs = [tuple(map(float, line.split()[1:])) for line in lines if line.startswith("pair ")]
    logs = [path.read_text() for path in out.glob("agent-*.log")]
    by_client = [[float(s) for s in re.findall(r"learned and answered in ([\d.]+) s", log)] for log in logs]
    training = [max(seconds) for seconds in zip(*by_client, strict=True)]
    rows = [
        (whole, slowest, distilling, whole - slowest - distilling, nothing)
        for (whole, distilling, nothing), slowest in zip(pairs[1:], training[1:], strict=False)
    ]
    print("\n| seconds a round, median | |\n| --- | --- |")
    names = ("whole", "training, slowest client", "distillation", "overhead", "round that does nothing")
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        print(f"| {name} | {statistics.median(column):.2f} |")
    print(f"overhead / nothing, median of {len(rows)} pairs: {statistics.median(r[3] / r[4] for r in rows):.2f}")


if __name__ == "__main__":
    main()
