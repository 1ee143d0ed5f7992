"""``fedkd budget plan``: what a schedule costs, before anything is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedkd.cli.output import print_json
from fedkd.errors import ConfigError

if TYPE_CHECKING:
    from fedkd.report.planning import Schedule

budget = typer.Typer(help="Plan privacy budgets.", no_args_is_help=True)

DELTA = 1e-5


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(budget, name="budget")


@budget.callback()
def group() -> None:
    """Plan privacy budgets."""


@budget.command("plan")
def plan(
    epsilon: Annotated[float | None, typer.Option(help="limit over the life of a client's ledger")] = None,
    noise: Annotated[
        float | None, typer.Option(help="noise multiplier: deviation of the noise over sensitivity")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=10_000, help="rounds of the run")] = None,
    mechanism: Annotated[
        Literal["dp_sgd", "gaussian", "sum", "votes"], typer.Option(help="dp_sgd | gaussian | sum | votes")
    ] = "dp_sgd",
    delta: Annotated[float | None, typer.Option(help="by default the ledger's, else 1e-5")] = None,
    steps: Annotated[int, typer.Option(min=1, help="dp_sgd: optimiser steps a round")] = 8,
    sample_rate: Annotated[float | None, typer.Option(help="dp_sgd: Poisson sampling rate; by default 1")] = None,
    batch: Annotated[float | None, typer.Option(help="dp_sgd: nominal batch; with --examples gives the rate")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="public guess of one client's examples")] = None,
    answers: Annotated[int, typer.Option(min=1, help="gaussian, sum, votes: proxy examples answered a round")] = 400,
    clients: Annotated[int | None, typer.Option(min=1, help="public guess of the number of clients")] = None,
    threshold: Annotated[bool, typer.Option("--threshold", help="votes: with a threshold test of each query")] = False,
    noise_ratio: Annotated[float, typer.Option(help="votes: noise of that test over noise of the answer")] = 3.0,
    shards: Annotated[
        int, typer.Option(min=1, max=100, help="votes: shards of the data; above 1 protects examples")
    ] = 1,
    ledger: Annotated[Path | None, typer.Option(help="plan with what this ledger has left")] = None,
    block: Annotated[str, typer.Option(help="data block that is charged")] = "all",
    plot: Annotated[Path | None, typer.Option(help="draw epsilon over rounds into this .svg or .png file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Work out the third of --epsilon, --noise and --rounds from two of them, and what would change it.

    With --ledger what has been spent counts, and the ledger's own limit stands in for --epsilon.
    """
    from fedkd.report import plan_content, planning, plots
    from fedkd.report.plain import render_text

    if plot is not None and plot.suffix.lower() not in plots.DRAWN:
        raise ConfigError(f"a plot is drawn as {' or '.join(plots.DRAWN)}", where=str(plot), fix="name such a file")
    schedule = planning.Schedule(
        mechanism=mechanism, steps=steps, sample_rate=_rate(sample_rate, batch, examples), answers=answers,
        threshold=threshold, noise_ratio=noise_ratio, shards=shards, clients=clients, examples=examples,
        delta=DELTA if delta is None else delta, block=block,
    )  # fmt: skip
    if ledger is not None:
        schedule, limit = _after(schedule, ledger, delta)
        epsilon = limit if epsilon is None and None in (noise, rounds) else epsilon
    found = planning.plan(schedule, epsilon, noise, rounds)
    if plot is not None:
        plots.draw_lines(plan_content.plan_figure(found), plot)
    if as_json:
        print_json(plan_content.plan_record(found))
    else:
        print(render_text(plan_content.plan_document(found)), end="")


def _rate(sample_rate: float | None, batch: float | None, examples: int | None) -> float:
    if sample_rate is not None and batch is not None:
        raise ConfigError("--sample-rate and --batch both say how much is sampled", fix="give one of them")
    if batch is None:
        rate = 1.0 if sample_rate is None else sample_rate
    elif examples is None:
        raise ConfigError("--batch gives a sampling rate only with --examples", fix="add --examples, a public guess")
    else:
        rate = batch / examples
    if not 0 < rate <= 1:
        raise ConfigError(f"a sampling rate is above 0 and at most 1, not {rate:g}")
    return rate


def _after(schedule: Schedule, path: Path, delta: float | None) -> tuple[Schedule, float | None]:
    """The schedule with that ledger's past and limits, and the limit of the unit that the schedule protects."""
    from fedkd.report import collect
    from fedkd.report.budget import limits_of
    from fedkd.report.spend import past_of

    found = list(collect.ledgers(path).values())
    if len(found) != 1:
        raise ConfigError(f"there are {len(found)} ledgers here", where=str(path), fix="name one client's folder")
    (export,) = found
    limits = limits_of(None, export["contracts"])
    known = schedule.delta if delta is not None or limits.delta is None else limits.delta
    after = replace(
        schedule, delta=known, past=past_of(export),
        client_limit=limits.client, lifetime_limit=limits.one_example_in_each_block,
    )  # fmt: skip
    return after, limits.of(after.cost.unit)
