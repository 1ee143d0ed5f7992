"""``fedkd simulate`` and ``fedkd prepare``: a whole federation on one machine."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from fedkd import config
from fedkd.config import Scenario
from fedkd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.run import Row

S = TypeVar("S", bound=Scenario)
SET = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the scenario")]
TRACK = Annotated[
    Literal["tensorboard"] | None, typer.Option(help="write scalars by round into a folder of that name in the run's")
]
SCENARIO = Annotated[Path | None, typer.Argument(help="scenario file; without one: digits, 5 clients, epsilon 3")]
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
    out: Annotated[Path | None, typer.Option(help="run directory")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out")] = False,
    seed: Annotated[int | None, typer.Option(help="same as --set seed=N")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="worker processes; they change no result")] = None,
    track: TRACK = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as one JSON object, nothing else")] = False,
) -> None:
    """Run a federation on this machine and compare it with local-only and central training, FedAvg and others."""
    from simulations.runner import Options, Simulation

    settings = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    chosen, base = read_scenario(Scenario, scenario, settings, out if resume else None)
    folder = chosen_folder(out, chosen, resume)
    stream = sys.stderr if as_json else sys.stdout
    with stopping() as stop:
        options = Options(
            out=folder,
            base=base,
            resume=resume,
            workers=workers or min(os.cpu_count() or 1, 8),
            tell=lambda text: print(f"· {text}", file=sys.stderr, flush=True),
            on_row=_Table(stream),
            stop=stop,
            track=track,
        )
        summary = Simulation(chosen, options).run()
    if summary is None:
        print(f"stopped after a checkpoint; go on with: fedkd simulate --resume --out {folder}", file=sys.stderr)
        raise typer.Exit(130)
    print(json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) if as_json else _closing(summary))


def prepare(
    scenario: SCENARIO = None,
    overrides: SET = None,
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("federation"),
    noise: Annotated[
        Literal["os", "simulation"], typer.Option(help="simulation: reproducible, as in simulate, and NO guarantee")
    ] = "os",
) -> None:
    """Write what simulate would start from: proxy set, server.yaml, and one folder a client, ready for processes."""
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


def read_scenario(kind: type[S], path: Path | None, overrides: list[str], resumed: Path | None) -> tuple[S, Path]:
    """The scenario and the folder that its relative paths start from. Raises ConfigError."""
    if resumed is not None and path is None and not overrides and (resumed / "config.yaml").exists():
        chosen = config.load(kind, resumed / "config.yaml")
        marker = resumed / "base"
        return chosen, Path(marker.read_text()) if marker.exists() else Path.cwd()
    return config.load(kind, path, overrides), (path.resolve().parent if path else Path.cwd())


def chosen_folder(out: Path | None, chosen: Scenario, resume: bool) -> Path:
    """The run directory. Raises ConfigError for a run that is to be resumed and is not named."""
    if out is not None:
        return out
    if resume:
        raise ConfigError("--resume needs --out", fix="give the run directory: --resume --out runs/...")
    stem = Path("runs") / f"{chosen.name}-{chosen.seed}"
    numbered = (stem.with_name(f"{stem.name}-{number}") for number in range(2, 10_000))
    return next(path for path in [stem, *numbered] if not path.exists())


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks to stop after the round; a second one stops at once (nothing is lost then either)."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("stopping after this round; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


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
        f"{_epsilon(row['epsilon']):>7}  {_epsilon(row['epsilon_left']):>7}  {counts:>11}  "
        f"{_bytes(row['bytes_up']):>9}  {_bytes(row['bytes_down']):>9}  {row['seconds']:>7.1f}"
    )


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
