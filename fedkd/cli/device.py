"""``fedkd device``: export a student, measure what a device would run, choose which version it serves."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedkd.cli.output import print_json
from fedkd.errors import ConfigError, DataError, FedkdError

if TYPE_CHECKING:
    from fedkd.device.measure import Runner

device = typer.Typer(help="Export a student, measure it, and choose which version is served.", no_args_is_help=True)

STATE = Annotated[Path, typer.Argument(help="the device's state directory")]
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

    if out.resolve() == model.resolve():
        raise ConfigError("the exported file would replace the student", where=str(out), fix="another --out")
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


@device.command("versions")
def versions(state: STATE, as_json: AS_JSON = False) -> None:
    """List the versions of the student, and those that were served, the newest last."""
    from fedkd.device.serving import Serving
    from fedkd.device.versions import Versions

    known, stack = Versions(state).all(), Serving(state).stack()
    served = stack[-1].version.id if stack else None
    if as_json:
        return print_json({
            "versions": [one.record() for one in known], "served": served, "stack": [one.record() for one in stack]
        })  # fmt: skip
    print(f"{'id':<16}  {'no.':>4}  {'parent':<16}  {'bytes':>9}  {'ε spent':>8}  student")
    for one in known:
        print(
            f"{one.id}  {one.number:>4}  {one.parent or '':<16}  {one.bytes:>9}  {_epsilon(one.epsilon):>8}  "
            f"{one.architecture}"
        )
    for place in stack:
        verb, accuracy = "serves" if place is stack[-1] else "served", place.measured["row"]["accuracy"]
        print(f"{verb} {place.version.id} as {place.file}, accuracy {accuracy:.1%}")


def _epsilon(value: float | str | None) -> str:
    return "unknown" if value is None else "∞" if isinstance(value, str) else f"{value:.3f}"


@device.command("promote")
def promote(
    state: STATE,
    model: Annotated[str, typer.Argument(help="a student's .safetensors file, or the id of a version")],
    data: Annotated[Path, typer.Option(help=".npz file of held-out examples x and y of this device")],
    config: Annotated[Path | None, typer.Option(help="device.yaml: format, gate, versions kept")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key")] = None,
    proxy: Annotated[Path | None, typer.Option(help="the model's proxy set, where the device serves int8")] = None,
    as_json: AS_JSON = False,
    code: CODE = Path(),
) -> None:
    """Register a student and serve it if it passes the gate. Exit code 1 if it does not; then nothing changes."""
    from fedkd import config as configuration
    from fedkd.config import Data, Device
    from fedkd.data import sources
    from fedkd.data.proxy import ProxySet
    from fedkd.device import gate

    settings = configuration.load(Device, config, overrides or [])
    id = _registered(state, model, settings)
    held_out = sources.load(Data(source="npz", path=str(data)), Path())[0]
    public = None if proxy is None else ProxySet.load(proxy)
    verdict = gate.promote(state, id, held_out, settings, proxy=public, code=code)
    if as_json:
        print_json(verdict.record())
    if not verdict.promoted:
        raise FedkdError(
            f"the gate does not let version {id} pass: {'; '.join(verdict.reasons)}",
            fix="the served version stays; change the limits under 'gate' only if you mean it",
        )
    if not as_json:
        measured = verdict.measured
        for damaged in verdict.damaged:
            print(f"{damaged} is damaged, and could not be compared with")
        print(f"serves {id}: accuracy {measured.row.accuracy:.1%}, {measured.bytes} bytes, p95 {measured.p95_us} µs")


@device.command("rollback")
def rollback(state: STATE, as_json: AS_JSON = False) -> None:
    """Serve again the version that was served before."""
    from fedkd.device.serving import Serving

    one = Serving(state).rollback()
    if as_json:
        return print_json(one.record())
    print(f"serves {one.version.id} as {one.file}")


@device.command("ingest")
def ingest(
    live: Annotated[Path, typer.Argument(help="live.yaml: where the records are, and what puts them into blocks")],
    state: Annotated[Path, typer.Option(help="the device's state directory")],
    proxy: Annotated[Path, typer.Option(help="the proxy set, whose shape and labels the records have")],
    seal: Annotated[list[str] | None, typer.Option(help="block to close to further records")] = None,
    as_json: AS_JSON = False,
) -> None:
    """Take new records into their blocks, each exactly once, and list the blocks. Nothing of it leaves the device."""
    from contextlib import closing
    from functools import partial

    from fedkd import config as configuration
    from fedkd.config import Live
    from fedkd.continual.live import LiveStream
    from fedkd.data.proxy import ProxySet
    from fedkd.locks import hold

    settings, base = configuration.load(Live, live), live.resolve().parent
    public, tell = ProxySet.load(proxy), partial(print, file=sys.stderr)
    with (
        hold(state, "an agent uses this state directory, and takes records in by itself"),
        closing(LiveStream(state / "stream.sqlite", settings, base, public, tell)) as stream,
    ):
        taken = stream.ingest()
        for name in seal or []:
            stream.seal(name)
        blocks = stream.blocks()
    if as_json:
        return print_json({"taken": asdict(taken), "blocks": [asdict(block) for block in blocks]})
    print(f"{taken.new} new, {taken.late} too late, {taken.known} known, {taken.refused} sources refused")
    for block in blocks:
        print(f"{block.name:<16}  {block.records:>7}  {'sealed' if block.sealed else 'open'}")


def _registered(state: Path, model: str, settings: Any) -> str:
    """The id of a version, which a file becomes if it is not one yet."""
    from fedkd.device.versions import Versions
    from fedkd.report.spend import spent_by_an_example

    versions = Versions(state, settings.keep)
    if not Path(model).is_file():
        return versions.find(model).id
    epsilon, delta = spent_by_an_example(state / "ledger.sqlite")
    try:
        return versions.add(Path(model).read_bytes(), epsilon=epsilon, delta=delta).id
    except FedkdError as error:
        raise error.at(model) from None


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
    if not len(found):
        raise DataError("there are no examples", where=str(path))
    return found.x, found.y


def _tell(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return print_json(result)
    for key, value in result.items():
        print(f"{key:<15} {value}")
