"""``fedkd simulate`` and ``fedkd prepare``: a whole federation on one machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedkd.cli.running import (
    OUT,
    RESUME,
    SCENARIO,
    SEED,
    SET,
    SUMMARY,
    TRACK,
    WORKERS,
    asked,
    end,
    read_scenario,
    stopping,
)
from fedkd.errors import ConfigError

if TYPE_CHECKING:
    from server.run import Row

HEADER = (
    f"{'round':>5}  {'teacher':>7}  {'students':>8}  {'ε spent':>7}  {'ε left':>7}  "
    f"{'ok/ref/fail':>11}  {'up':>9}  {'down':>9}  {'seconds':>7}"
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("simulate")(simulate)
    app.command("prepare")(prepare)
    app.command("init")(init)


def simulate(
    scenario: SCENARIO = None,
    overrides: SET = None,
    out: OUT = None,
    resume: RESUME = False,
    seed: SEED = None,
    workers: WORKERS = None,
    track: TRACK = None,
    as_json: SUMMARY = False,
) -> None:
    """Run a federation on this machine and compare it with local-only and central training, FedAvg and others."""
    from fedkd.config import Scenario
    from simulations.runner import Simulation

    chosen, options = asked(Scenario, scenario, overrides, seed, out, resume, workers)
    table = _Table(sys.stderr if as_json else sys.stdout)
    with stopping() as stop:
        summary = Simulation(chosen, replace(options, on_row=table, stop=stop, track=track)).run()
    end("simulate", summary, options.out, as_json, _closing)


def prepare(
    scenario: SCENARIO = None,
    overrides: SET = None,
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("federation"),
    noise: Annotated[
        Literal["os", "simulation"], typer.Option(help="simulation: reproducible, as in simulate, and NO guarantee")
    ] = "os",
) -> None:
    """Write what simulate would start from: proxy set, server.yaml, and one folder a client, ready for processes."""
    from fedkd.config import Scenario
    from simulations.prepare import prepare as write

    chosen, base = read_scenario(Scenario, scenario, overrides or [], None)
    if out.exists() and any(out.iterdir()):
        raise ConfigError("the folder is not empty", where=str(out), fix="choose another --out")
    if chosen.poison is not None:
        raise ConfigError("clients that lie are simulated only", where="key 'poison'", fix="remove it, or use simulate")
    write(chosen, out, base, noise)
    print(f"server: {out / 'server.yaml'}")
    for folder in sorted((out / "clients").iterdir()):
        print(f"client: {folder / 'client.yaml'}")


def init(folder: Annotated[Path, typer.Argument(help="folder to write; new or empty")]) -> None:
    """Write a project of your own: data function, student class, scenario, server, client and policy, ready to run."""
    from simulations.scaffold import scaffold

    for path in scaffold(folder):
        print(path)
    print(f"now: cd {folder} && fedkd simulate scenario.yaml")


class _Table:
    """Prints a row a round, under a header."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._begun = stream, False

    def __call__(self, row: Row) -> None:
        if not self._begun:
            print(HEADER, file=self._stream)
            self._begun = True
        print(_line(row.record()), file=self._stream, flush=True)


def _line(row: Mapping[str, Any]) -> str:
    counts = f"{row['answered']}/{row['refused']}/{row['failed']}"
    return (
        f"{row['round']:>5}  {row['teacher_accuracy']:>7.1%}  {row['student_accuracy']:>8.1%}  "
        f"{_epsilon(row['epsilon']):>7}  {_left(row['epsilon_left']):>7}  {counts:>11}  "
        f"{_bytes(row['bytes_up']):>9}  {_bytes(row['bytes_down']):>9}  {row['seconds']:>7.1f}"
    )


def _left(value: float | None) -> str:
    return "–" if value is None else _epsilon(value)


def _compared(baselines: Mapping[str, Any]) -> list[str]:
    """A line for each comparison."""
    from fedkd.report.comparisons import LABELS, NOTE, WEIGHTS

    lines = [_baseline(LABELS[name], found) for name, found in baselines.items() if found["accuracy"] is not None]
    return lines + ([NOTE] if set(baselines) & set(WEIGHTS) else [])


def _baseline(label: str, found: Mapping[str, Any]) -> str:
    worst = f" ({found['worst']:.1%})" if found["worst"] != found["accuracy"] else ""
    told = [f"epsilon {_epsilon(found['epsilon'])}" + (f" per {found['unit']}" if found["epsilon"] != "inf" else "")]
    if found["bytes_up"]:
        told.append(f"a client sent {_bytes(found['bytes_up'])} and received {_bytes(found['bytes_down'])}")
    return f"{label + (', mean (worst)' if worst else ''):<31} {found['accuracy']:6.1%}{worst}  {'; '.join(told)}"


def _epsilon(value: float | str) -> str:
    return "∞" if value == "inf" else f"{value:.3f}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.{0 if unit == 'B' else 1}f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _closing(summary: Mapping[str, Any]) -> str:
    privacy, folder = summary["privacy"], Path(summary["run_dir"])
    lines = [
        "",
        f"teacher                         {summary['teacher_accuracy']:6.1%}",
        f"students, mean (worst)          {summary['student_accuracy']['mean']:6.1%} "
        f"({summary['student_accuracy']['min']:.1%})",
    ]
    lines += _compared(summary["baselines"])
    if privacy["mechanism"] == "none":
        lines.append("privacy: none, epsilon = ∞")
    else:
        lines.append(
            f"privacy: {privacy['mechanism']}, epsilon {privacy['epsilon']:.4f} at delta {privacy['delta']:g}, "
            f"per {privacy['unit']}, {privacy['adjacency']} ({privacy['noise']})"
        )
    lines.append(
        f"a client sent {_bytes(summary['bytes_up'])} and received {_bytes(summary['bytes_down'])} "
        f"in {summary['rounds']} rounds; {summary['seconds']:.0f} s in all"
    )
    lines.append(f"written to {folder}: summary.json, report.txt, teacher.safetensors, students/, ledgers/, plots/")
    return "\n".join(lines)
