"""Who holds what in a scenario: the proxy set, the tuning split, the test part, and every client's private examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.config import Continual, Data, Scenario
from fedkd.continual import stream
from fedkd.data import encoding, partition, sources
from fedkd.data.sources import Examples


@dataclass(frozen=True, eq=False)
class Split:
    """A scenario's examples. ``data`` is its data block with the numbers that were fitted on the proxy set."""

    data: Data
    proxy: Examples
    tune: Examples
    test: Examples
    private: Examples


def cut(scenario: Scenario, base: Path) -> Split:
    """Read the scenario's source and cut it; relative paths start from ``base``. Raises DataError."""
    data, seed = scenario.data, scenario.seed
    train, test = _load(scenario, data, base)
    parts = partition.cut(len(train), scenario.proxy.size, scenario.proxy.tune_size, seed)
    fitted = encoding.fitted(data, train.x[parts.proxy])
    if fitted != data:
        # read again, not scaled here: a client that reads its own file has to come to the same bytes
        train, test = _load(scenario, fitted, base)
    proxies = train.take(parts.proxy)
    if isinstance(scenario, Continual):
        proxies = stream.public(scenario.stream, proxies, seed)
    return Split(fitted, proxies, train.take(parts.tune), test, train.take(parts.private))


def deal(scenario: Scenario, private: Examples) -> list[partition.Indices]:
    """Positions in the private pool, one array a client. Raises DataError."""
    return partition.deal(scenario.partition, private.y, scenario.clients, scenario.seed, private.ids)


def client_names(scenario: Scenario) -> list[str]:
    """client-0, client-1, ... with as many digits as keep them in order when sorted."""
    width = len(str(scenario.clients - 1))
    return [f"client-{index:0{width}d}" for index in range(scenario.clients)]


def holdings(scenario: Scenario, base: Path) -> dict[str, Any]:
    """Number of examples of every class for proxy set, tuning split, test part and clients, JSON-able.

    Counts of private examples are private: this is for simulations, whose data is public. Raises DataError.
    """
    found = cut(scenario, base)
    classes = found.private.classes
    parts = zip(client_names(scenario), deal(scenario, found.private), strict=True)
    return {
        "name": scenario.name,
        "seed": scenario.seed,
        "partition": scenario.partition.kind,
        "classes": list(found.data.labels) or [str(number) for number in range(classes)],
        "public": {name: _counts(getattr(found, name)) for name in ("proxy", "tune", "test")},
        "clients": {name: _counts(found.private.take(part)) for name, part in parts},
        "note": NOTE,
    }


NOTE = "simulation only: a deployed client's counts are private, and fedkd never shows them to anybody else"


def _counts(examples: Examples) -> list[int]:
    return [int(count) for count in np.bincount(examples.y, minlength=examples.classes)]


def _load(scenario: Scenario, data: Data, base: Path) -> tuple[Examples, Examples]:
    ids = scenario.partition.column if scenario.partition.kind == "natural_id" else None
    train, test = sources.load(data, base, ids)
    where = f"data.source {data.source}"
    sources.check(train, where)
    if test is None:
        return partition.carve_test(train, data.test_fraction, scenario.seed)
    sources.check(test, f"{where}, test part", shape=train.x.shape[1:], classes=train.classes, allow_empty=False)
    return train, test
