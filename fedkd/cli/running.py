"""What the commands share that run a federation on this machine: what was asked for, Ctrl-C, and the end."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from fedkd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fedkd.config import Scenario
    from simulations.runner import Options

S = TypeVar("S", bound="Scenario")
SCENARIO = Annotated[Path | None, typer.Argument(help="scenario file; without one: digits, 5 clients, epsilon 3")]
SET = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the scenario")]
OUT = Annotated[Path | None, typer.Option(help="run directory")]
RESUME = Annotated[bool, typer.Option("--resume", help="continue the run in --out")]
SEED = Annotated[int | None, typer.Option(help="same as --set seed=N")]
WORKERS = Annotated[int | None, typer.Option(min=1, help="worker processes; they change no result")]
TRACK = Annotated[
    Literal["tensorboard"] | None, typer.Option(help="write scalars by round into a folder of that name in the run's")
]
SUMMARY = Annotated[bool, typer.Option("--json", help="print the summary as one JSON object, nothing else")]


def asked(
    kind: type[S], path: Path | None, overrides: Sequence[str] | None, seed: int | None,
    out: Path | None, resume: bool, workers: int | None,
) -> tuple[S, Options]:  # fmt: skip
    """The scenario, and how it is to be run. Raises ConfigError."""
    from simulations.runner import Options

    settings = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    chosen, base = read_scenario(kind, path, settings, out if resume else None)
    folder = _chosen_folder(out, chosen, resume)
    return chosen, Options(
        out=folder,
        base=base,
        resume=resume,
        workers=processes(workers),
        tell=lambda text: print(f"· {text}", file=sys.stderr, flush=True),
    )


def processes(workers: int | None) -> int:
    """How many processes work: as asked, or one a core, up to eight."""
    return workers or min(os.cpu_count() or 1, 8)


def read_scenario(kind: type[S], path: Path | None, overrides: Sequence[str], resumed: Path | None) -> tuple[S, Path]:
    """The scenario and the folder that its relative paths start from. Raises ConfigError."""
    from fedkd import config

    if resumed is not None and path is None and not overrides and (resumed / "config.yaml").exists():
        chosen = config.load(kind, resumed / "config.yaml")
        marker = resumed / "base"
        return chosen, Path(marker.read_text()) if marker.exists() else Path.cwd()
    return config.load(kind, path, overrides), (path.resolve().parent if path else Path.cwd())


def _chosen_folder(out: Path | None, chosen: Scenario, resume: bool) -> Path:
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
    presses: list[int] = []

    def ask(number: int, frame: object) -> None:
        if presses:
            raise KeyboardInterrupt
        presses.append(number)
        print("stopping after this round; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(presses)
    finally:
        signal.signal(signal.SIGINT, before)


def end(
    command: str, summary: Mapping[str, Any] | None, folder: Path, as_json: bool,
    closing: Callable[[Mapping[str, Any]], str],
) -> None:  # fmt: skip
    """Print the summary; exit with 130 where the run was stopped and there is none."""
    if summary is None:
        print(f"stopped after a checkpoint; go on with: fedkd {command} --resume --out {folder}", file=sys.stderr)
        raise typer.Exit(130)
    print(json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) if as_json else closing(summary))
