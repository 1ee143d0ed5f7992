"""What a budget report says of one client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fedkd.report.document import Fields, Part, Section, Table, rows, show
from fedkd.report.schema import Client, CrossCheck, Limits, Mechanism, Spend


def client_section(name: str, client: Client, number: int) -> Section:
    """Everything but what all clients have in common."""
    return Section(name, tuple(_parts(client)), anchor=f"client-{number}")


def change(adjacencies: Iterable[str]) -> str:
    """How an adjacency is written: what happens to the unit."""
    return " or ".join(one.replace("_", "/") for one in adjacencies)


def _parts(client: Client) -> Iterator[Part]:
    for mechanism in client.mechanisms:
        yield Fields(tuple(_mechanism(mechanism)))
    yield Fields(tuple(_ledger(client)))
    for spent in client.spent.values():
        yield from _spent(spent, client)


def _mechanism(mechanism: Mechanism) -> Iterator[tuple[str, str]]:
    yield "mechanism", f"{mechanism.mechanism}: {mechanism.part} (run {mechanism.run})"
    yield "unit", f"{mechanism.unit}, {change([mechanism.adjacency])}"
    yield "sensitivity", f"{show(mechanism.sensitivity)}: {mechanism.derivation}"
    if mechanism.clip is None:
        yield "noise", f"z = {show(mechanism.noise_multiplier)}, sigma = {show(mechanism.sigma)}"
    else:
        noise = f"z = {show(mechanism.noise_multiplier)}, clip C = {show(mechanism.clip)}"
        yield "noise", f"{noise}, sigma = z C = {show(mechanism.sigma)}, nominal batch {show(mechanism.nominal_batch)}"
    steps = f"{mechanism.rounds} rounds of {mechanism.steps_per_round} steps"
    yield "schedule", f"{steps}, {mechanism.queries} proxy examples answered a round"
    yield "sampler", f"assumed: {mechanism.sampler.assumed}; actual: {mechanism.sampler.actual}"


def _ledger(client: Client) -> Iterator[tuple[str, str]]:
    yield "limit", _limits(client.limits)
    lost = f", {client.charged.lost} lost and charged by recovery" if client.charged.lost else ""
    unreleased = f"{client.charged.reserved} reserved and not released"
    yield "charged", f"{client.charged.released} rounds released, {unreleased}{lost}"
    yield "released", f"{client.bytes_released} bytes"
    yield "randomness", client.randomness
    yield "adaptivity", client.adaptivity
    for contract in client.contracts:
        about = f"run {contract.run} of server {contract.server}, {contract.mechanism}, {contract.rounds} rounds"
        yield "contract", f"{contract.hash} ({about})"
    for proxy, origin in client.proxies.items():
        yield "proxy set", f"{proxy}; provenance: {origin}"
    yield "ledger head", client.ledger_head


def _limits(limits: Limits) -> str:
    named = (
        ("per example in any block", limits.example),
        ("per client", limits.client),
        ("for one example in each block", limits.one_example_in_each_block),
    )
    found = [f"epsilon {show(limit)} {what}" for what, limit in named if limit is not None]
    if not found:
        return "not given"
    return f"{', '.join(found)}, at delta {show(limits.delta)}, over the ledger's lifetime"


def _spent(spent: Spend, client: Client) -> Iterator[Part]:
    if not spent.per_round:
        return
    unit = f"per {spent.unit}, {change([spent.adjacency])}"
    checks = (
        (f"cross-check, {spent.unit}" if not n else "", _check(check)) for n, check in enumerate(spent.cross_checks)
    )
    what = f"epsilon {show(spent.epsilon)} at delta {show(client.delta)}, {unit}, over the ledger's lifetime"
    left = () if spent.left is None else ((f"left per {spent.unit}", f"{show(spent.left)} of {show(spent.limit)}"),)
    if spent.unit == "client" and spent.epsilon == "inf":
        yield Fields(((f"spent per {spent.unit}", what), *left))
        return
    yield Fields(((f"spent per {spent.unit}", what), *left, ("accountant", spent.accountant), *checks))
    if len(spent.per_block) > 1:
        yield Table(f"Epsilon by block, {unit}", ("block", "epsilon"), rows(spent.per_block.items()))
        lifetime = client.limits.one_example_in_each_block
        of = "" if lifetime is None else f" of {show(lifetime)}"
        yield Fields(
            (("one example a block", f"epsilon {show(spent.one_example_in_each_block)}{of}, all blocks together"),)
        )
    curve = rows((point.delta, point.epsilon) for point in spent.curve)
    yield Table(f"Epsilon against delta, {unit}", ("delta", "epsilon"), curve)
    rounds = rows((at.charge, at.run, at.round, at.state, at.epsilon) for at in spent.per_round)
    header = ("charge", "run", "round", "state", "epsilon so far")
    yield Table(f"Epsilon after each round, {unit}", header, rounds, folded=True)


def _check(check: CrossCheck) -> str:
    if check.epsilon is None:
        return f"NOT AVAILABLE from {check.accountant} ({check.reason})"
    if check.difference is None:
        return f"{check.accountant}: {show(check.epsilon)} ({check.reason})"
    within = f"agrees with {check.compared_with} within {check.tolerance} (difference {check.difference:+.4f})"
    return f"{check.accountant}: {show(check.epsilon)}, {within}"
