"""``fedkd device``: export a student, measure what a device would run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedkd.errors import ConfigError

if TYPE_CHECKING:
    from fedkd.device.measure import Runner

device = typer.Typer(help="Export a student and measure it.", no_args_is_help=True)

AS_JSON = Annotated[bool, typer.Option("--json", help="print one JSON object, nothing else")]
CODE = Annotated[Path, typer.Option(help="folder of an architecture given as module:Class")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(device, name="device")


@device.command("export")
def export(
    model: Annotated[Path, typer.Argument(help="a student's or the teacher's .safetensors file")],
    out: Annotated[Path, typer.Option(help="file to write")],
    format: Annotated[Literal["onnx", "executorch"], typer.Option(help="onnx | executorch")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="eight-bit student; needs --calibrate")] = False,
    calibrate: Annotated[Path | None, typer.Option(help="the model's proxy set, for --int8")] = None,
    as_json: AS_JSON = False,
    code: CODE = Path(),
) -> None:
    """Write a student and its public features as one file, and compare it with the student in PyTorch."""
    from fedkd.data.proxy import ProxySet
    from fedkd.device import measure
    from fedkd.device.export import export_file
    from fedkd.distill.model import Model

    if int8 and calibrate is None:
        raise ConfigError("int8 needs examples to calibrate on", fix="--calibrate proxy.safetensors")
    opened = Model.open(model, code)
    proxy = None if calibrate is None else ProxySet.load(calibrate)
    export_file(opened, format, out, proxy if int8 else None)
    x = measure.made_up(tuple(opened.features.spec["shape"])) if proxy is None else proxy.examples[:1000]
    result = {
        "file": str(out),
        **_measured(out, measure.open_runner(out), 200),
        "compared_on": "made-up examples" if proxy is None else "proxy set",
        **_compared(measure.open_runner(out), measure.EagerRunner(opened), x),
    }
    _tell(result, as_json)


@device.command("measure")
def measure_file(
    file: Annotated[Path, typer.Argument(help="an exported file, or a student's .safetensors file")],
    examples: Annotated[Path | None, typer.Option(help="proxy set, or .npz file with x and y")] = None,
    against: Annotated[Path | None, typer.Option(help="another file; how much do the two differ?")] = None,
    runs: Annotated[int, typer.Option(min=1, help="calls that are timed")] = 200,
    as_json: AS_JSON = False,
    code: CODE = Path(),
) -> None:
    """Print size and latency of a file; with examples its accuracy, with another file how near the two are."""
    from fedkd.device import measure

    runner = measure.open_runner(file, code)
    x, y = _examples(examples)
    result = {"file": str(file), **_measured(file, runner, runs)}
    if x is None:
        x = measure.made_up(tuple(runner.description["shape"]))
    if against is not None:
        result |= {"against": str(against), **_compared(runner, measure.open_runner(against, code), x)}
    if y is not None:
        result["accuracy"] = float((measure.predict(runner, x).argmax(axis=1) == y).mean())
    _tell(result, as_json)


def _measured(file: Path, runner: Runner, runs: int) -> dict[str, Any]:
    from fedkd.device import measure

    said = runner.description
    return {
        "format": said["format"],
        "int8": said["int8"],
        "bytes": file.stat().st_size,
        **measure.record(measure.latency(runner, runs)),
    }


def _compared(one: Runner, two: Runner, x: Any) -> dict[str, Any]:
    from fedkd.device import measure

    return measure.record(measure.parity(measure.predict(one, x), measure.predict(two, x)))


def _examples(path: Path | None) -> tuple[Any, Any]:
    from fedkd.config import Data
    from fedkd.data import sources
    from fedkd.data.proxy import ProxySet

    if path is None:
        return None, None
    if path.suffix == ".safetensors":
        proxy = ProxySet.load(path)
        return proxy.examples, proxy.labels
    found = sources.load(Data(source="npz", path=str(path)), Path())[0]
    return found.x, found.y


def _tell(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        json.dump(result, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
        return print()
    for key, value in result.items():
        print(f"{key:<15} {value}")
