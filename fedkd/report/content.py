"""What a budget report says to people, in the order in which it is to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from fedkd.privacy.events import Unit
from fedkd.report import document
from fedkd.report.audit import sentences
from fedkd.report.client_content import change, client_section
from fedkd.report.document import Beside, Bullets, Document, Fields, Paragraph, Part, Section, Table, show
from fedkd.report.figures import budget_figures
from fedkd.report.schema import BudgetReport, Client

DETAILED = 20
"""Clients shown in detail, the worst ones; the tables and the JSON form have all of them."""

Shown = Callable[[Client], object]


def budget_document(report: BudgetReport) -> Document:
    """The report for a renderer. Begins with the sentences that state the guarantee of each unit."""
    clients = _worst_first(report)
    detailed = list(clients.items())[:DETAILED]
    return document.cleaned(
        Document(
            title="Privacy report",
            good=report.holds,
            lead=tuple(column.guarantee for column in report.units.values()),
            sections=(
                Section("What is covered, and what is not", (_covered(report),)),
                Section("Bounds", tuple(_bounds(report))),
                *_drawn(report, clients),
                Section("About this report", (_about(report),)),
                Section("Clients", tuple(_clients(report, clients))),
                *(client_section(name, client, n) for n, (name, client) in enumerate(detailed, start=1)),
            ),
        )
    )


def _worst_first(report: BudgetReport) -> dict[str, Client]:
    def worst(item: tuple[str, Client]) -> tuple[float, ...]:
        return tuple(-float(item[1].spent[unit].epsilon) for unit in report.units)

    return dict(sorted(report.clients.items(), key=worst))


def _covered(report: BudgetReport) -> Beside:
    return Beside(
        Bullets("Outputs covered", tuple(report.outputs_covered)),
        Bullets("Outputs NOT covered", tuple(report.outputs_not_covered), warning=True),
    )


def _bounds(report: BudgetReport) -> Iterator[Part]:
    rows = [
        (unit, change(column.adjacencies), column.epsilon, column.delta, column.meaning)
        for unit, column in report.units.items()
    ]
    header = ("unit", "adjacency", "epsilon", "delta", "one unit is")
    yield Table("Largest epsilon of a client, by unit", header, document.rows(rows))
    yield Fields(tuple(_by_mechanism("trust model", report.trust_models)))


def _clients(report: BudgetReport, clients: Mapping[str, Client]) -> Iterator[Part]:
    epsilons: dict[str, Shown] = {}
    for unit, column in report.units.items():
        epsilons |= _of(unit, column.adjacencies)
    yield _table(clients, "Epsilon by client and unit", epsilons | {"delta": lambda client: client.delta})
    charges: dict[str, Shown] = {
        "rounds charged": lambda client: client.charged.released + client.charged.reserved,
        "of them unreleased": lambda client: client.charged.reserved,
        "lost": lambda client: client.charged.lost or "-",
        "noise": lambda client: client.noise,
    }
    yield _table(clients, "Charges by client", charges, folded=len(clients) > DETAILED)
    if len(clients) > DETAILED:
        yield Paragraph(
            f"Below are the details of the {DETAILED} clients with the largest epsilon; the JSON form has those of all "
            f"{len(clients)}."
        )


def _table(clients: Mapping[str, Client], caption: str, columns: Mapping[str, Shown], folded: bool = False) -> Table:
    """A row a client; a column that has nothing to say of any client is left out."""
    told = {
        header: tell
        for header, tell in columns.items()
        if not clients or any(tell(client) != "-" for client in clients.values())
    }
    rows = ((name, *(tell(client) for tell in told.values())) for name, client in clients.items())
    return Table(caption, ("client", *told), document.rows(rows), folded)


def _of(unit: Unit, adjacencies: Sequence[str]) -> dict[str, Shown]:
    def left(client: Client) -> str:
        spent = client.spent[unit]
        return "-" if spent.limit is None else f"{show(spent.left)} of {show(spent.limit)}"

    def adjacency(client: Client) -> str:
        return change([client.spent[unit].adjacency]) if client.spent[unit].per_round else "-"

    same = len(adjacencies) == 1
    return {
        f"per {unit}, {change(adjacencies)}" if same else f"per {unit}": lambda client: client.spent[unit].epsilon,
        **({} if same else {f"adjacency of the {unit}": adjacency}),
        f"left per {unit}": left,
    }


def _by_mechanism(what: str, sentences: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each sentence once, with the mechanisms that it is true of."""
    for sentence in dict.fromkeys(sentences.values()):
        named = ", ".join(name for name, said in sentences.items() if said == sentence)
        yield f"{what}, {named}", sentence


def _drawn(report: BudgetReport, clients: Mapping[str, Client]) -> Iterator[Section]:
    figures = budget_figures(clients, report.units)
    if figures:
        yield Section("Figures", tuple(figures))


def _about(report: BudgetReport) -> Fields:
    code = report.code
    return Fields(
        (
            *_by_mechanism("floating point", report.floating_point),
            *(("" if n else "audit", sentence) for n, sentence in enumerate(sentences(report.audit))),
            ("code", f"fedkd {code.fedkd}, sources {code.sources}"),
            ("configuration", f"config_hash {code.config_hash}"),
            *(
                ("public weights", f"SHA-256 {one}; what they have learned from is not covered")
                for one in code.public_weights
            ),
            ("fields", "after NIST SP 800-226 and Ponomareva et al. 2023 (arXiv:2303.00654, section 5.3)"),
        )
    )
