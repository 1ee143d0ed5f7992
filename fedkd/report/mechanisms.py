"""What a contract's mechanism did to the data: one entry for each kind of release in a round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedkd.privacy.costs import GRID
from fedkd.privacy.discrete import SMOOTHING
from fedkd.privacy.events import PrivacyEvent
from fedkd.report import statements
from fedkd.report.schema import Mechanism, Sampler

Contract = Mapping[str, Any]


def mechanisms(contract: Contract) -> list[Mechanism]:
    """The parts of a contract as its ledger exports it."""
    events = [PrivacyEvent.from_record(record) for record in contract["events"]]
    return [_part(contract, event, name) for event, name in zip(events, _names(events), strict=True)]


def _names(events: Sequence[PrivacyEvent]) -> list[str]:
    """What each event of a round releases."""
    named = {
        "dp_sgd": ["sums of clipped gradients"],
        "gaussian": ["answers"],
        "sum": ["sum of all clients' votes"],
        "votes": ["threshold test", "most votes"][-len(events) :],
        "none": ["answers, bare"],
    }
    return named[events[0].mechanism]


def _part(contract: Contract, event: PrivacyEvent, name: str) -> Mechanism:
    training, private = contract["training"], event.mechanism == "dp_sgd"
    sensitivity, why = _sensitivity(contract, event, name)
    sigma = _sigma(contract, event, name, sensitivity)
    return Mechanism(
        run=contract["run"],
        mechanism=event.mechanism,
        part=name,
        unit=event.unit,
        adjacency=event.adjacency,
        sensitivity="inf" if math.isinf(sensitivity) else sensitivity,
        derivation=why if math.isinf(sensitivity) else f"{why}; {_noise(event, sensitivity, sigma)}",
        clip=training["clip"] if private else None,
        noise_multiplier=event.noise_multiplier,
        sigma=sigma,
        nominal_batch=training["nominal_batch"] if private else None,
        queries=contract["queries"],
        steps_per_round=event.steps,
        rounds=contract["rounds"],
        sample_rate=event.sample_rate,
        sampler=Sampler(**statements.sampler(event)),
    )


def _sensitivity(contract: Contract, event: PrivacyEvent, name: str) -> tuple[float, str]:
    """L2, and where it comes from."""
    q, clip = contract["queries"], contract["training"]["clip"]
    if not event.protects:
        return math.inf, "nothing is clipped or noised: the sensitivity has no bound"
    if event.mechanism == "dp_sgd":
        return clip, (
            f"each example's gradient is clipped to L2 norm C = {clip:g}, so one example added or removed changes the "
            f"sum by at most Delta = C = {clip:g}; the divisor is the public nominal batch"
        )
    if event.mechanism == "gaussian":
        return math.sqrt(2 * q) * GRID, (
            f"an answer is {q} rows of integers that are not negative and add up to {GRID}; two such rows differ by at "
            f"most sqrt(2) x {GRID}, so a replaced client changes its answer by at most Delta = sqrt(2 x {q}) x {GRID}"
        )
    if event.mechanism == "sum":
        return math.sqrt(q), (
            f"a client has one vote on each of {q} queries, so one added or removed changes the sum by at most "
            f"Delta = sqrt({q})"
        )
    if name == "threshold test":
        return 1.0, f"one changed vote changes the largest count by at most Delta = 1, on each of {q} queries asked"
    return math.sqrt(2), (
        f"one changed vote changes two counts by 1, Delta = sqrt(2), on each of {q} queries asked: charged as if all "
        "were answered"
    )


def _sigma(contract: Contract, event: PrivacyEvent, name: str, sensitivity: float) -> float:
    if not event.protects:
        return 0.0
    if event.mechanism == "dp_sgd":
        return event.noise_multiplier * sensitivity
    variances = contract["variances"]
    return math.sqrt(variances[0 if name == "threshold test" else -1])


def _noise(event: PrivacyEvent, sensitivity: float, sigma: float) -> str:
    if event.mechanism == "dp_sgd":
        return f"sigma = z Delta = {event.noise_multiplier:g} x {sensitivity:g} = {sigma:g}"
    asked = (event.noise_multiplier * sensitivity) ** 2
    return (
        f"sigma^2 = {sigma**2:.10g} on integers, which is charged as a continuous Gaussian of variance "
        f"(z Delta)^2 = {asked:.10g}, no more than the sigma^2 - {SMOOTHING} that is proved"
    )
