"""What is drawn of a budget report: epsilon over rounds, delta against epsilon, what is left of each limit.

A figure shows one unit. Clients whose numbers are all the same share a curve; of the others the worst are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from fedkd.privacy.events import Unit
from fedkd.report.document import Bar, Bars, Figure, Lines, Series, shortened, show, used_of
from fedkd.report.schema import Client, Spend

MOST_CURVES = 8
MOST_BARS = 20
FIRST = 12
"""Characters of a name that stands for several."""

Spends = Mapping[str, Spend]


def budget_figures(clients: Mapping[str, Client], units: Iterable[Unit]) -> list[Figure]:
    """The figures of each unit."""
    found: list[Figure | None] = []
    for unit in units:
        spent = _worst_first({name: client.spent[unit] for name, client in clients.items()})
        if unit == "client" and all(one.epsilon == "inf" or not one.per_round for one in spent.values()):
            continue  # there is no bound to draw
        found += [_over_rounds(unit, spent), _curve(unit, spent), _left(unit, spent)]
    return [figure for figure in found if figure is not None]


def _worst_first(spent: Spends) -> Spends:
    return dict(sorted(spent.items(), key=lambda item: -float(item[1].epsilon)))


def _over_rounds(unit: Unit, spent: Spends) -> Lines | None:
    points = {
        name: [(0.0, 0.0), *((float(at.charge), float(at.epsilon)) for at in one.per_round)]
        for name, one in spent.items()
        if one.per_round
    }
    series, others = _curves(points)
    if not series:
        return None
    last, epsilon = series[0].points[-1]
    return Lines(
        title=f"Epsilon over rounds, per {unit}",
        summary=f"Most has been spent by {series[0].label}: epsilon {show(epsilon)} after {last:g} charges.{others}",
        x="charges of the client",
        y=f"epsilon so far, per {unit}",
        series=series,
        steps=True,
    )


def _curve(unit: Unit, spent: Spends) -> Lines | None:
    points = {
        name: sorted((point.delta, float(point.epsilon)) for point in one.curve if point.epsilon != "inf")
        for name, one in spent.items()
        if one.per_round
    }
    series, others = _curves(points)
    if not series:
        return None
    return Lines(
        title=f"Epsilon against delta, per {unit}",
        summary=f"Every point of a curve holds: the rarer it may fail (delta), the larger the epsilon.{others}",
        x="delta",
        y=f"epsilon, per {unit}",
        series=series,
        log_x=True,
    )


def _left(unit: Unit, spent: Spends) -> Bars | None:
    bars = [bar for name, one in spent.items() for bar in _bars(name, one)]
    if not bars:
        return None
    shown = _merged(sorted(bars, key=used_of, reverse=True))
    left_out = len(shown) - MOST_BARS
    more = f" Not drawn, since more of them is left: {left_out} more." if left_out > 0 else ""
    return Bars(
        title=f"Budget left by block, per {unit}",
        summary=f"How much of each limit is spent; a bar is as long as its limit.{more}",
        bars=tuple(shown[:MOST_BARS]),
    )


def _bars(name: str, spent: Spend) -> Iterator[Bar]:
    if spent.limit is not None and spent.per_round:
        for block, epsilon in spent.per_block.items():
            label = name if len(spent.per_block) == 1 else f"{name}, {'other data' if block == 'all' else block}"
            yield Bar(label, float(epsilon), spent.limit_per_block[block])


def _merged(bars: Iterable[Bar]) -> list[Bar]:
    """Bars of equal numbers as one."""
    names: dict[tuple[float, float], list[str]] = {}
    for bar in bars:
        names.setdefault((bar.used, bar.limit), []).append(bar.label)
    return [Bar(_together(labels), used, limit) for (used, limit), labels in names.items()]


def _curves(points: Mapping[str, list[tuple[float, float]]]) -> tuple[tuple[Series, ...], str]:
    """The first curves, equal ones as one, and a sentence on the rest."""
    names: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name, curve in points.items():
        if curve:
            names.setdefault(tuple(curve), []).append(name)
    series = [Series(_together(labels), curve) for curve, labels in names.items()]
    left_out = sum(len(labels) for labels in [*names.values()][MOST_CURVES:])
    others = f" Not drawn, since they have spent less: {left_out} more." if left_out else ""
    return tuple(series[:MOST_CURVES]), others


def _together(labels: list[str]) -> str:
    first, *others = labels
    return f"{shortened(first, FIRST)} and {len(others)} more" if others else first
