"""Plots of a run, drawn from its metrics alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
    for name, style in (("local_accuracy", ":"), ("central_accuracy", "-.")):
        if summary.get(name) is not None:
            axes.axhline(summary[name], linestyle=style, color="black", label=name.replace("_accuracy", ", alone"))
    axes.set(xlabel="round", ylabel="test accuracy", title=f"{summary['name']}: accuracy")
    axes.legend()
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
