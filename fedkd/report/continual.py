"""Plots of a continual run: the matrix R, and accuracies over experiences. Readable without colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

MARKS = "osD^vP*X<>"
LINES = ("-", "--", "-.", ":")


def draw(r: Sequence[Sequence[float]], title: str, folder: Path) -> None:
    """Write r.png and experiences.png: R [T, T], R[i][j] = accuracy on experience j after training on experience i."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    _matrix(r, title, folder / "r.png")
    _lines(r, title, folder / "experiences.png")


def _matrix(r: Sequence[Sequence[float]], title: str, path: Path) -> None:
    """Every cell has its number; below the diagonal is the past, above it what has not been seen yet."""
    from matplotlib.figure import Figure

    size = max(4.0, 0.8 * len(r) + 2)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(r, cmap="Greys", vmin=0, vmax=1)
    for i, row in enumerate(r):
        for j, value in enumerate(row):
            weight = "bold" if j <= i else "normal"
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", weight=weight, color=_ink(value))
    numbers = range(len(r))
    axes.set(
        xticks=numbers,
        yticks=numbers,
        xticklabels=[n + 1 for n in numbers],
        yticklabels=[n + 1 for n in numbers],
        xlabel="tested on experience",
        ylabel="after training on experience",
        title=f"{title}: accuracy in %, bold where seen",
    )
    figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=120)


def _ink(value: float) -> str:
    return "white" if value > 0.55 else "black"


def _lines(r: Sequence[Sequence[float]], title: str, path: Path) -> None:
    """A line an experience from when it was trained, and the mean over those seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for j in range(len(r)):
        seen = range(j, len(r))
        style = f"{MARKS[j % len(MARKS)]}{LINES[j % len(LINES)]}"
        axes.plot([i + 1 for i in seen], [r[i][j] for i in seen], style, color="0.35", label=f"experience {j + 1}")
    means = [sum(row[: i + 1]) / (i + 1) for i, row in enumerate(r)]
    axes.plot(range(1, len(r) + 1), means, "k-", linewidth=3, label="mean of those seen")
    axes.set(xlabel="after training on experience", ylabel="test accuracy", ylim=(0, 1.02), title=title)
    axes.set_xticks(range(1, len(r) + 1))
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=120)
