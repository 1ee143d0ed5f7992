"""Runs beside each other, as a table for people and as a figure that needs no colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

from fedkd.report.comparisons import NOTE, SIMULATED, TEACHER, WEIGHTS, Group, Row, Spread

Cell = Callable[[Row], str]
PANELS = (("accuracy", "test accuracy", 1.0), ("bytes_up", "kB up, a client", 1e-3), ("seconds", "seconds", 1.0))


def table(groups: Sequence[Group], *, markdown: bool = False) -> str:
    """A row a method of each group: mean, and the least and largest where there are several seeds."""
    rows = [row for group in groups for row in group.rows()]
    columns = _columns(rows)
    cells = [list(columns), *([tell(row) for tell in columns.values()] for row in rows)]
    lines = _markdown(cells) if markdown else _aligned(cells)
    several = any(len(row.seeds) > 1 for row in rows)
    notes = ["mean (least–largest) over seeds"] if several else []
    notes += [SIMULATED]
    notes += [NOTE] if any(row.method in WEIGHTS for row in rows) else []
    return "\n".join([*lines, *([""] if markdown and notes else []), *notes])


def _columns(rows: Sequence[Row]) -> dict[str, Cell]:
    """Epsilons of two units are two columns."""
    return {
        "run": lambda row: row.group,
        "seeds": lambda row: " ".join(map(str, row.seeds)),
        "model": lambda row: row.label,
        "accuracy": lambda row: _spread(row.measured["accuracy"], 100, 1),
        "worst client": lambda row: _spread(row.measured["worst"], 100, 1),
        **{_of_one(unit): _epsilon(unit) for unit in _units(rows)},
        "kB up": lambda row: _spread(row.measured["bytes_up"], 1e-3, 1),
        "kB down": lambda row: _spread(row.measured["bytes_down"], 1e-3, 1),
        "seconds": lambda row: _spread(row.measured["seconds"], 1, 1),
    }


def _units(rows: Sequence[Row]) -> list[str]:
    return [unit for unit in ("example", "client") if any(row.unit == unit for row in rows)] or ["example"]


def _of_one(unit: str) -> str:
    return f"ε an {unit}" if unit == "example" else f"ε a {unit}"


def _epsilon(unit: str) -> Cell:
    def tell(row: Row) -> str:
        # what protects nobody protects neither unit
        return _spread(row.measured["epsilon"], 1, 3) if row.unit in (unit, "none") else "–"

    return tell


def _spread(found: Spread | None, factor: float, digits: int) -> str:
    if found is None:
        return "–"
    mean, low, high = (_number(value * factor, digits) for value in (found.mean, found.min, found.max))
    return mean if low == high else f"{mean} ({low}–{high})"


def _number(value: float, digits: int) -> str:
    return "∞" if value == float("inf") else f"{value:.{digits}f}"


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return [lines[0], "| " + " | ".join("---" for _ in cells[0]) + " |", *lines[1:]]


def draw(groups: Sequence[Group], path: Path) -> None:
    """Write the figure: a line a row of the table, a panel a quantity. Models differ by marker, spreads are bars; the
    worst client is a hollow mark. The same runs give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    rows = [row for group in groups for row in group.rows()][::-1]
    marks = dict(zip(dict.fromkeys(row.method for row in rows[::-1]), cycle("os^Dv<>"), strict=False))
    names = [f"{row.group}: {row.label}" if len(groups) > 1 else row.label for row in rows]
    with matplotlib.rc_context({"svg.hashsalt": "fedkd"}):
        figure = Figure(figsize=(12, 1.6 + 0.3 * len(rows)), layout="constrained")
        units = _units(rows)
        panels = figure.subplots(1, len(PANELS) + len(units), sharey=True)
        drawn = [(*panel, None) for panel in PANELS] + [("epsilon", _of_one(unit), 1.0, unit) for unit in units]
        for axes, (name, title, factor, unit) in zip(panels, drawn, strict=True):
            for line, row in enumerate(rows):
                if unit is None or row.unit in (unit, "none"):
                    _mark(axes, line, row, name, factor, marks[row.method])
            axes.set(xlabel=title)
            axes.grid(axis="x", color="0.85")
        panels[0].set_yticks(range(len(rows)), names)
        undated = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=120, metadata=undated)


def _mark(axes: object, line: int, row: Row, name: str, factor: float, mark: str) -> None:
    found = row.measured[name]
    if found is None or found.max == float("inf"):
        text = "∞" if found is not None else "–"
        axes.text(0.98, line, text, ha="right", va="center", transform=axes.get_yaxis_transform())  # type: ignore[attr-defined]
        return
    size = 8 if row.method == TEACHER else 6
    mean, low, high = (value * factor for value in (found.mean, found.min, found.max))
    spread = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
    axes.errorbar([mean], [line], xerr=spread, fmt=mark, color="black", capsize=3, markersize=size)  # type: ignore[attr-defined]
    worst = row.measured["worst"]
    if name == "accuracy" and worst is not None and worst.mean != found.mean:
        axes.plot([worst.mean], [line], mark, color="black", fillstyle="none", markersize=size)  # type: ignore[attr-defined]
