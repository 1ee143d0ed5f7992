"""What a budget plan says, to people and to programs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fedkd.privacy.costs import GRID
from fedkd.privacy.events import Unit
from fedkd.report import statements
from fedkd.report.client_content import change
from fedkd.report.document import Bullets, Document, Fields, Lines, Part, Section, Series, Table, cleaned, rows, show
from fedkd.report.numbers import number
from fedkd.report.planning import Plan, Schedule, over_rounds, warnings, what_if


def plan_record(plan: Plan) -> dict[str, Any]:
    """JSON-able form; an infinite epsilon is the string "inf"."""
    schedule, (unit, other) = plan.schedule, plan.other
    return {
        "asked": plan.asked,
        "meaning": list(_meaning(plan)),
        "mechanism": schedule.mechanism,
        "unit": schedule.cost.unit,
        "adjacency": schedule.cost.adjacency,
        "epsilon": number(plan.epsilon),
        "delta": schedule.delta,
        "noise_multiplier": plan.noise,
        "rounds": plan.rounds,
        "events_of_a_round": [event.record() for event in schedule.cost.events(plan.noise)],
        "spent_before": number(schedule.spent()),
        "other_unit": {"unit": unit, "epsilon": number(other)},
        "accountant": schedule.accountant().name,
        "trust_model": statements.trust(schedule.mechanism),
        "warnings": list(warnings(plan)),
        "what_if": {
            name: [{"value": value, "epsilon": number(epsilon)} for value, epsilon in table]
            for name, table in what_if(plan).items()
        },
    }


def plan_document(plan: Plan) -> Document:
    """The plan for a renderer. Begins with what the number means."""
    cautions = tuple(warnings(plan))
    sections = [
        Section("Plan", (Fields(tuple(_fields(plan))),)),
        Section("What if", tuple(_tables(plan))),
        *([Section("Warnings", (Bullets("mind", cautions, warning=True),))] if cautions else []),
    ]
    return cleaned(Document("Budget plan", True, tuple(_meaning(plan)), tuple(sections)))


def plan_figure(plan: Plan) -> Lines:
    """Epsilon over rounds, with the planned noise, half of it and twice of it."""
    unit = plan.schedule.cost.unit
    return Lines(
        title=f"Epsilon over rounds, {plan.schedule.mechanism}",
        summary="with the planned noise, half of it and twice of it",
        x="rounds",
        y=f"epsilon per {unit} at delta {plan.schedule.delta:g}",
        series=tuple(Series(f"noise multiplier {show(z)}", tuple(points)) for z, points in over_rounds(plan).items()),
    )


def _meaning(plan: Plan) -> Iterator[str]:
    schedule, (unit, other) = plan.schedule, plan.other
    before = schedule.spent()
    past = f"epsilon {show(before)} of it spent before" if before else "nothing spent before"
    yield (
        f"{_answer(plan)}: epsilon {show(plan.epsilon)} at delta {schedule.delta:g} for {_unit(plan)}, over the whole "
        f"life of the client's ledger ({past}; all rounds together, whether released or not)."
    )
    yield _other(unit, other)


def _answer(plan: Plan) -> str:
    rounds = "1 round" if plan.rounds == 1 else f"{plan.rounds} rounds"
    verb = {"noise": "is needed for", "epsilon": "over", "rounds": "leaves room for"}[plan.asked]
    return f"Noise multiplier {show(plan.noise)} {verb} {rounds}"


def _unit(plan: Plan) -> str:
    cost = plan.schedule.cost
    what = "one training example" if cost.unit == "example" else "all that one client holds"
    return f"{what} ({change([cost.adjacency])})"


def _other(unit: Unit, epsilon: float) -> str:
    what = "all that one client holds together" if unit == "client" else "one training example (add/remove)"
    if math.isinf(epsilon):
        return f"For {what} there is no bound: epsilon is infinite."
    return f"For {what} it is epsilon {show(epsilon)}: another unit, and another number."


def _fields(plan: Plan) -> Iterator[tuple[str, str]]:
    schedule = plan.schedule
    yield "mechanism", schedule.mechanism
    yield "trust model", statements.trust(schedule.mechanism)
    yield "rounds", f"{plan.rounds} of {_round(plan)}"
    yield from (("noise" if not n else "", line) for n, line in enumerate(_noise(plan)))
    yield "accountant", schedule.accountant().name


def _round(plan: Plan) -> str:
    schedule = plan.schedule
    if schedule.mechanism == "dp_sgd":
        return f"{schedule.steps} steps at sample rate {show(schedule.sample_rate)}"
    return f"{schedule.answers} answers"


def _noise(plan: Plan) -> Iterator[str]:
    """Over the sensitivity, and in the units of what is released, beside what it has to be compared with."""
    schedule = plan.schedule
    parts = schedule.cost.events(plan.noise)
    named = " (threshold test), ".join(show(event.noise_multiplier) for event in parts)
    yield f"{named}: standard deviation of the noise over the sensitivity"
    if schedule.mechanism == "dp_sgd":
        yield f"sigma = {show(plan.noise)} C on the sum of gradients clipped to C{_of_batch(plan)}"
        return
    sigma = math.sqrt(schedule.cost.variances(plan.noise)[-1])
    if schedule.mechanism == "gaussian":
        yield f"sigma = {sigma / GRID:.3g} on every probability of every answer{_of_clients(schedule, sigma / GRID)}"
    else:
        yield f"sigma = {sigma:.3g} votes on every count{_of_votes(schedule)}"


def _of_votes(schedule: Schedule) -> str:
    return "" if schedule.clients is None else f", of {schedule.clients * schedule.shards} votes"


def _of_clients(schedule: Schedule, sigma: float) -> str:
    return "" if schedule.clients is None else f", {sigma / math.sqrt(schedule.clients):.3g} on the clients' average"


def _of_batch(plan: Plan) -> str:
    if plan.schedule.examples is None:
        return ""
    batch = plan.schedule.examples * plan.schedule.sample_rate
    return f", {plan.noise / batch:.3g} C on their mean over a nominal batch of {show(batch)}"


def _tables(plan: Plan) -> Iterator[Part]:
    unit = plan.schedule.cost.unit
    for name, table in what_if(plan).items():
        yield Table(f"Epsilon per {unit} against {name}, all else as planned", (name, "epsilon"), rows(table))
