"""How much privacy has been spent, computed anew from exported ledgers, so that a privacy officer can check it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from fedkd import __version__
from fedkd.privacy.events import Unit
from fedkd.report import statements
from fedkd.report.audit import AuditResult, audited, refutations
from fedkd.report.mechanisms import mechanisms
from fedkd.report.numbers import number
from fedkd.report.schema import VERSION, Agreed, BudgetReport, Charged, Client, Code, Column, Limits
from fedkd.report.spend import Account, past_of, spend
from fedkd.tensors import canonical, digest

DEFAULT_DELTA = 1e-5
UNITS: tuple[Unit, ...] = ("example", "client")

POINTS, ALL_POINTS, FEWEST_POINTS = 50, 2000, 10
"""After how many charges an epsilon is computed: of one client, of all together, and of each at least."""


class LedgerExport(TypedDict, total=False):
    """What a ledger says of itself: ``client``, ``head``, ``events`` and ``contracts`` always, the rest if known."""

    schema: int
    client: str
    policy: Mapping[str, Any]
    noise: str
    head: str
    contracts: Sequence[Mapping[str, Any]]
    begun: int
    first: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]


def budget_report(
    exports: Mapping[str, Any],
    *,
    delta: float | None = None,
    provenance: Mapping[str, str] | None = None,
    config_hash: str | None = None,
    public_weights: Sequence[str] = (),
    compared: Sequence[str] = (),
    audit: Sequence[AuditResult] = (),
) -> BudgetReport:
    """The report of client -> LedgerExport. ``delta`` overrules the policies'; ``provenance`` is by proxy hash;
    ``public_weights`` are the hashes of what networks started from; ``compared`` is what a simulation was compared
    with; ``audit`` are results of ``fedkd audit``, and one that refutes its claim leaves no guarantee.

    Raises PrivacyError if the accountants disagree by more than TOLERANCE, or for events or a delta that they cannot
    account for.
    """
    points = max(FEWEST_POINTS, min(POINTS, ALL_POINTS // max(len(exports), 1)))
    clients = {name: _client(name, exports[name], delta, provenance or {}, points) for name in sorted(exports)}
    used = sorted({one["mechanism"] for export in exports.values() for one in export.get("events", ())})
    sources = sources_hash()
    shown = audited(audit, config_hash, sources)
    refuted = refutations(shown)
    units = {unit: _column(unit, clients.values(), used, refuted) for unit in UNITS}
    return BudgetReport(
        schema_version=VERSION,
        holds=not _simulated(clients.values()) and units["example"].epsilon != "inf" and not refuted,
        units=units,
        trust_models={mechanism: statements.trust(mechanism) for mechanism in used},
        outputs_covered=statements.covered(used),
        outputs_not_covered=statements.not_covered(used, compared),
        floating_point={mechanism: statements.arithmetic(mechanism) for mechanism in used},
        audit=shown,
        code=Code(
            fedkd=__version__,
            sources=sources,
            config_hash=config_hash or "not given",
            public_weights=list(public_weights),
        ),
        clients=clients,
    )


def sources_hash() -> str:
    """SHA-256 over the names and hashes of fedkd's installed source files."""
    root = Path(__file__).resolve().parent.parent
    return digest(canonical({str(file.relative_to(root)): digest(file.read_bytes()) for file in root.rglob("*.py")}))


def _simulated(clients: Collection[Client]) -> bool:
    return any(client.noise != "os" for client in clients)


def _column(unit: Unit, clients: Collection[Client], used: Collection[str], refuted: Sequence[str]) -> Column:
    charged = [client for client in clients if client.spent[unit].per_round]
    adjacencies = sorted({client.spent[unit].adjacency for client in charged}) or ["add_remove"]
    epsilon = max((float(client.spent[unit].epsilon) for client in charged), default=0.0)
    delta = max((client.delta for client in charged), default=0.0)
    central = any(mechanism in statements.CENTRAL for mechanism in used)
    promised = statements.guarantee(unit, adjacencies, epsilon, delta, central, _simulated(clients))
    return Column(
        unit=unit,
        adjacencies=adjacencies,
        meaning=statements.UNITS[unit],
        guarantee=statements.refuted(refuted) if refuted else promised,
        epsilon=number(epsilon),
        delta=delta,
    )


def _client(name: str, export: LedgerExport, delta: float | None, provenance: Mapping[str, str], points: int) -> Client:
    records, contracts = list(export.get("events", ())), list(export.get("contracts", ()))
    limits = limits_of(export.get("policy"), contracts)
    delta = (limits.delta or DEFAULT_DELTA) if delta is None else delta
    account = Account.of(name, export, delta)
    noise = _noise(export, contracts)
    return Client(
        delta=delta,
        limits=limits,
        spent={unit: spend(account, unit, limits, points) for unit in UNITS},
        charged=_charged(account),
        bytes_released=sum(int(record.get("bytes") or 0) for record in records),
        mechanisms=[part for contract in contracts for part in mechanisms(contract)],
        adaptivity=statements.adaptivity(past_of(export).contracts, account.events),
        noise=noise,
        randomness=statements.randomness(noise, {event.mechanism for event in account.events}),
        proxies={str(c["proxy"]): provenance.get(str(c["proxy"]), "not given") for c in contracts},
        contracts=[Agreed(**{key: contract[key] for key in Agreed.model_fields}) for contract in contracts],
        ledger_head=export["head"],
    )


def limits_of(policy: Mapping[str, Any] | None, contracts: Sequence[Mapping[str, Any]]) -> Limits:
    """The policy's where it is known, else the newest contract's."""
    given: Mapping[str, Any] = policy or (contracts[-1]["limits"] if contracts else {})
    whole = given.get("unit") == "client"
    epsilon = given.get("epsilon")
    return Limits(
        delta=given.get("delta"),
        example=None if whole else epsilon,
        client=epsilon if whole else given.get("client"),
        one_example_in_each_block=given.get("lifetime"),
        blocks={
            block: contract["limits"]["epsilon"]
            for contract in contracts
            if contract["limits"]["unit"] == "example"
            for event in contract["events"]
            for block in event["blocks"]
        },
    )


def _charged(account: Account) -> Charged:
    states = [charge[0]["state"] for charge in account.charges]
    return Charged(**{state: states.count(state) for state in Charged.model_fields})


def _noise(export: LedgerExport, contracts: Sequence[Mapping[str, Any]]) -> str:
    """The weakest source of noise that this ledger has ever used."""
    said = [export.get("noise"), *(contract.get("noise") for contract in contracts)]
    kinds = {str(kind) for kind in said if kind is not None}
    if not kinds:
        return "unknown" if export.get("events") else "os"
    return next(iter(kinds - {"os"}), "os")
