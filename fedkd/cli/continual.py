"""``fedkd continual``: a learner, or a federation, that meets one experience after another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fedkd.cli.running import OUT, RESUME, SEED, SET, SUMMARY, WORKERS, asked, end, stopping

HEADER = f"{'step':>4}  {'classes so far':<28}  {'of those seen':<30}  {'ε':>7}"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("continual")(continual)


def continual(
    scenario: Annotated[
        Path | None, typer.Argument(help="scenario file; without one: digits, 5 clients, epsilon 3 an experience")
    ] = None,
    overrides: SET = None,
    out: OUT = None,
    resume: RESUME = False,
    seed: SEED = None,
    workers: WORKERS = None,
    as_json: SUMMARY = False,
) -> None:
    """Learn from a stream of experiences, alone or in a federation, and measure what is kept."""
    from fedkd.config import Continual
    from simulations.continual.run import run

    chosen, options = asked(Continual, scenario, overrides, seed, out, resume, workers)
    stream = sys.stderr if as_json else sys.stdout
    print(HEADER, file=stream)
    with stopping() as stop:
        summary = run(chosen, replace(options, stop=stop), lambda row: print(_line(row), file=stream, flush=True))
    end("continual", summary, options.out, as_json, _closing)


def _line(row: Mapping[str, Any]) -> str:
    classes = " ".join(map(str, row["classes"]))
    seen = ", ".join(f"{who} {value:.1%}" for who, value in row["seen"].items())
    spent = row.get("epsilon", "inf")
    return f"{row['step']:>4}  {classes:<28}  {seen:<30}  {'∞' if spent == 'inf' else f'{spent:.3f}':>7}"


def _closing(summary: Mapping[str, Any]) -> str:
    lines = [""]
    who = {"teacher": summary.get("teacher"), "student": summary.get("student")}
    for name, found in who.items():
        if found is not None:
            lines += [f"{name}, {measure:<18} {_share(found[measure])}" for measure in MEASURES]
    if summary.get("student_acc") is not None:
        lines.append(f"students, mean acc          {_share(summary['student_acc'])}")
    memory, privacy = summary["memory"], summary.get("privacy", {"epsilon": "inf"})
    lines.append(
        f"kept: {memory['private_examples']} private examples, {memory['bytes']} bytes, beside "
        f"{memory['public_examples']} public ones of {memory['public_bytes']} bytes"
    )
    if privacy["epsilon"] == "inf":
        lines.append("privacy: none, epsilon = ∞")
    else:
        lines.append(
            f"privacy: epsilon {privacy['epsilon']:.4f} at delta {privacy['delta']:g} per example, the largest of any "
            f"experience ({privacy['noise']})"
        )
    lines.append(f"written to {summary['run_dir']}: summary.json, plots/")
    return "\n".join(lines)


MEASURES = ("acc", "aia", "bwt", "fwt", "forgetting", "learning_accuracy")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:6.1%}"
