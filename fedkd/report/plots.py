"""Plots as files: of a run, drawn from its metrics alone, and of any document's curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from fedkd.report.comparisons import LABELS
from fedkd.report.document import Lines

DRAWN = (".svg", ".png")
"""What a plot's file may end in."""


def draw_lines(figure: Lines, path: Path) -> None:
    """Write one figure; curves differ by dash and marker. The same figure gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "fedkd"}):
        drawn = Figure(figsize=(7, 4), layout="constrained")
        axes = drawn.add_subplot()
        for series, style in zip(figure.series, cycle(("o-", "s--", "^:", "D-.")), strict=False):
            axes.plot(*zip(*series.points, strict=True), style, label=series.label)
        axes.set(xlabel=figure.x, ylabel=figure.y, title=figure.title)
        axes.legend()
        undated = {"Date": None} if path.suffix.lower() == ".svg" else None
        drawn.savefig(path, dpi=120, metadata=undated)


_STRAIGHT = (":", "-.", (0, (6, 2)), (0, (1, 4)), (0, (4, 1, 1, 1, 1, 1)), (0, (10, 3)))


def draw(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], folder: Path) -> None:
    """Write accuracy.png and budget.png: values over rounds."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    _accuracy(rows, summary, folder / "accuracy.png")
    _budget(rows, folder / "budget.png")


def _accuracy(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    rounds = [row["round"] for row in rows]
    axes.plot(rounds, [row["teacher_accuracy"] for row in rows], "o-", label="teacher")
    axes.plot(rounds, [row["student_accuracy"] for row in rows], "s--", label="students, mean")
    for style, (name, found) in zip(_STRAIGHT, summary["baselines"].items(), strict=False):
        if found["accuracy"] is not None:
            axes.axhline(found["accuracy"], linestyle=style, color="black", linewidth=1, label=LABELS[name])
    axes.set(xlabel="round", ylabel="test accuracy", title=f"{summary['name']}: accuracy")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _budget(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    finite = [(row["round"], row["epsilon"]) for row in rows if row["epsilon"] != "inf"]
    if finite:
        axes.step(*zip(*finite, strict=True), where="post", marker="o")
    else:
        axes.text(0.5, 0.5, "no privacy: epsilon is infinite", ha="center", transform=axes.transAxes)
    axes.set(xlabel="round", ylabel="epsilon spent, per example", title="privacy budget")
    figure.savefig(path, dpi=120)
