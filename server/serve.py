"""A deployed server's run: opens what its configuration names, and plays the rounds."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.serverapp import Grid

from fedkd.config import ServerConfig, load
from fedkd.data import encoding, sources
from fedkd.data.proxy import ProxySet
from fedkd.data.sources import Examples
from fedkd.distill.model import ProxyView
from fedkd.errors import FedkdError
from server import nodes
from server.anchor import anchor_of
from server.loop import Loop
from server.run import Heads, Row, RunDirectory
from server.setting import Setting


def test_examples(config: ServerConfig, base: Path, proxy: ProxySet) -> Examples | None:
    """The public test examples that the configuration names. Raises DataError if they do not fit the proxy set."""
    if config.test is None:
        return None
    where = f"key 'test', source {config.test.source}"
    train, test = sources.load(encoding.agreed(config.test, proxy.provenance.get("encoding", {}), where), base)
    found = train if test is None else test
    sources.check(found, where, shape=proxy.shape, classes=proxy.classes)
    return found


def serve(grid: Grid, config_path: str) -> None:
    """The ServerApp's main: one run, from its checkpoint if there is one. Raises FedkdError."""
    torch.set_num_threads(1)  # the same bytes on every machine, and as in a simulation
    path = Path(config_path)
    config = load(ServerConfig, path)
    base = path.resolve().parent
    view = ProxyView.load(base / config.proxy, base / config.code)
    run = RunDirectory(base / config.out)
    heads = Heads(base / config.heads)
    setting = Setting(
        config,
        config.clients,
        config.round_timeout,
        config.join_timeout,
        patience=2 * config.round_timeout,
        on_row=_print_row,
        name=config.name,
        heads=heads.load,
        keep_heads=heads.save,
        code=base / config.code,
        anchor=anchor_of(config, base, view),
        registered=nodes.names(base / config.out / "flower") if config.nodes else {},
    )
    try:
        Loop(grid, setting, view, run, test_examples(config, base, view.proxy)).run()
    except FedkdError as error:
        print(error, flush=True)
        raise
    except OSError as error:
        told = FedkdError(
            f"the server cannot use a file: {error.strerror}",
            where=str(error.filename or base / config.out),
            fix="make room, or mend the permissions, and start the server again: it goes on from its checkpoint",
        )
        print(told, flush=True)
        raise told from error


def _print_row(row: Row) -> None:
    score = "" if row.teacher_accuracy is None else f", teacher {row.teacher_accuracy:.1%}"
    print(
        f"round {row.round}{score}: {row.answered} answered, {row.refused} refused, {row.failed} failed, "
        f"{row.bytes_up} bytes up, {row.bytes_down} down, {row.seconds:.1f} s",
        flush=True,
    )
