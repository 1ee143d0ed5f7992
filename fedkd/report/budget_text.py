"""A budget report as plain text for people: 100 columns, no colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 100
SHOWN = 20
"""Clients shown in detail; the table and the JSON form have all of them."""


def render_text(report: Mapping[str, Any]) -> str:
    """The report of ``budget_report``, beginning with the sentence that states the guarantee."""
    console = Console(file=StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    _say(console, report["guarantee"])
    _table(console, "Epsilon by client and unit", _summary(report))
    clients = list(report["clients"].items())
    for name, client in clients[:SHOWN]:
        _client(console, name, client)
    if len(clients) > SHOWN:
        _say(console, f"\n{len(clients) - SHOWN} more clients: see the JSON form.")
    _common(console, report)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]


def _common(console: Console, report: Mapping[str, Any]) -> None:
    for unit, meaning in report["units"].items():
        _field(console, f"unit {unit}", meaning)
    _field(console, "trust model", report["trust_model"])
    _list(console, "outputs covered", report["outputs_covered"])
    _list(console, "outputs NOT covered", report["outputs_not_covered"])
    _field(console, "floating point", report["floating_point"])
    _field(console, "audit", report["audit"])
    _field(console, "code", ", ".join(f"{key} {value}" for key, value in report["code"].items()))


def _summary(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    yield "client", "per example, add/remove", "per client", "delta", "limit", "rounds charged", "noise"
    for name, client in report["clients"].items():
        spent, charged = client["epsilon"], client["charged"]
        rounds = f"{sum(charged.values())} ({charged['reserved']} unreleased)"
        yield (
            name,
            show(spent["example"]),
            show(spent["client"]),
            show(client["delta"]),
            show(client["limit"]["epsilon"]),
            rounds,
            client["noise"],
        )


def _client(console: Console, name: str, client: Mapping[str, Any]) -> None:
    _say(console, f"\n{name}\n{'-' * len(name)}")
    for mechanism in client["mechanisms"]:
        _mechanism(console, mechanism)
    _field(console, "accountant", client["accountant"])
    _field(console, "cross-check", _check(client["cross_check"]))
    _field(console, "randomness", client["randomness"])
    _field(console, "adaptivity", client["adaptivity"])
    for contract in client["contracts"]:
        _field(console, "contract", f"{contract['hash']} (run {contract['run']}, {contract['rounds']} rounds)")
    for proxy, origin in client["proxies"].items():
        _field(console, "proxy set", f"{proxy}; provenance: {origin}")
    _field(console, "ledger head", client["ledger_head"])
    if len(client["per_block"]) > 1:
        _table(console, "Epsilon by block", [("block", "epsilon"), *_rows(client["per_block"])])
        _field(console, "one example in each block", show(client["one_example_in_each_block"]))
    curve = [(show(point["epsilon"]), show(point["delta"])) for point in client["curve"]]
    _table(console, "Epsilon against delta", [("epsilon", "delta"), *curve])
    rounds = [(r["run"], show(r["round"]), r["state"], show(r["epsilon"])) for r in client["per_round"]]
    _table(console, "Epsilon after each round", [("run", "round", "state", "epsilon so far"), *rounds])


def _mechanism(console: Console, mechanism: Mapping[str, Any]) -> None:
    _field(console, "mechanism", f"{mechanism['mechanism']} (run {mechanism['run']})")
    _field(console, "sensitivity", f"{show(mechanism['sensitivity'])}: {mechanism['derivation']}")
    noise = f"z = {show(mechanism['noise_multiplier'])}, clip C = {show(mechanism['clip'])}"
    batch = f"nominal batch {show(mechanism['nominal_batch'])}"
    _field(console, "noise", f"{noise}, sigma = z C = {show(mechanism['sigma'])}, {batch}")
    _field(console, "schedule", f"{mechanism['rounds']} rounds of {mechanism['steps_per_round']} steps")
    _field(console, "sampler", f"assumed: {mechanism['sampler']['assumed']}; actual: {mechanism['sampler']['actual']}")


def _check(check: Mapping[str, Any]) -> str:
    exact = "" if check["exact"] is None else f"; exact: {show(check['exact'])}"
    if check["agrees"] is None:
        return f"NOT AVAILABLE from {check['accountant']} ({check['reason']}){exact}"
    within = f"agrees within {check['tolerance']} (difference {check['difference']:+.4f})"
    return f"{check['accountant']}: {show(check['epsilon'])}, {within}{exact}"


def show(value: Any) -> str:
    """A number for people, with every digit of a reported epsilon; infinity is never blank."""
    if value == "inf":
        return "∞"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _rows(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return ((key, show(value)) for key, value in values.items())


def _say(console: Console, text: str) -> None:
    console.print(Text(text))


def _field(console: Console, name: str, value: str) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=20)
    grid.add_column(overflow="fold")
    grid.add_row(Text(name), Text(value))
    console.print(grid)


def _list(console: Console, name: str, values: Iterable[str]) -> None:
    for index, value in enumerate(values):
        _field(console, "" if index else name, f"- {value}")


def _table(console: Console, title: str, rows: Iterable[tuple[str, ...]]) -> None:
    header, *body = rows
    if not body:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in header:
        table.add_column(column, overflow="fold")
    for row in body:
        table.add_row(*(Text(cell) for cell in row))
    console.print(Text(f"\n{title}"))
    console.print(Padding(table, (0, 0, 1, 2)))
