"""Who holds what in a simulation: a table and a plot of examples by class and client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd.errors import ConfigError

FORMATS = (".png", ".svg")
_MOST_CLIENTS = 50  # of which a table or a plot can be read
_MOST_CLASSES = 20
_MOST_DRAWN = 40


def render_text(holdings: Mapping[str, Any]) -> str:
    """The counts of simulations.split.holdings as a table: a row a holder, a column a class."""
    clients, classes = list(holdings["clients"].items()), holdings["classes"]
    rows = [("", "examples", *(classes if len(classes) <= _MOST_CLASSES else ["classes"]))]
    rows += [_row(name, counts) for name, counts in [*holdings["public"].items(), *clients[:_MOST_CLIENTS]]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"{holdings['name']}: partition {holdings['partition']}, seed {holdings['seed']}", holdings["note"], ""]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if len(clients) > _MOST_CLIENTS:
        lines.append(f"and {len(clients) - _MOST_CLIENTS} more clients: --json has them all")
    return "\n".join(lines)


def _row(name: str, counts: Sequence[int]) -> tuple[str, ...]:
    shown = counts if len(counts) <= _MOST_CLASSES else [sum(count > 0 for count in counts)]
    return name, str(sum(counts)), *("·" if count == 0 else str(count) for count in shown)


def draw(holdings: Mapping[str, Any], path: Path) -> None:
    """Write a plot as .png or .svg: clients' sizes above, and below a disc for each class that a client has, its area
    in proportion to the number of examples. Black on white. Raises ConfigError for another kind of file.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a plot is written as {' or '.join(FORMATS)}", where=str(path), fix="--out plot.svg")
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    counts, classes = list(holdings["clients"].values()), holdings["classes"][:_MOST_DRAWN]
    title = f"{holdings['name']}: partition {holdings['partition']}, simulated"
    if len(counts) > _MOST_CLIENTS or len(holdings["classes"]) > _MOST_DRAWN:
        title += f"\nfirst {min(len(counts), _MOST_CLIENTS)} of {len(counts)} clients"
        title += f", first {len(classes)} of {len(holdings['classes'])} classes"
    counts = counts[:_MOST_CLIENTS]
    height = 0.25 * len(classes) + 0.3
    figure = Figure(figsize=(max(5.0, 2 + 0.3 * len(counts)), 3 + height), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.5, height))
    above.bar(range(len(counts)), [sum(one) for one in counts], color="white", edgecolor="black", hatch="//")
    above.set(ylabel="examples", title=title)
    _discs(below, [one[:_MOST_DRAWN] for one in counts])
    below.set(xlabel="client", ylabel="class", ylim=(len(classes) - 0.4, -0.6))
    below.set_yticks(range(len(classes)), classes)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "fedkd", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _discs(axes: Any, counts: Sequence[Sequence[int]]) -> None:
    held = [(x, y, count) for x, one in enumerate(counts) for y, count in enumerate(one) if count]
    most = max((count for _, _, count in held), default=1)
    x, y, size = zip(*held, strict=True) if held else ((), (), ())
    axes.scatter(x, y, s=[150 * count / most for count in size], color="black", linewidths=0)
    axes.text(1, 1.02, f"largest disc: {most} examples", ha="right", transform=axes.transAxes, fontsize="small")
