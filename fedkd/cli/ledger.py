"""``fedkd ledger``: what a client's ledger says, whether it can be trusted, and what to do when entries are lost."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedkd.cli.output import print_json
from fedkd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedkd.config import ClientConfig, Policy
    from fedkd.privacy.events import PrivacyEvent
    from fedkd.privacy.ledger import Ledger
    from fedkd.privacy.rollback import Gap

ledger = typer.Typer(help="Look into a client's ledger, and mend one that was set back.", no_args_is_help=True)

LEDGER = Annotated[Path, typer.Argument(help="ledger.sqlite, a client's folder, or a run directory")]
CLIENT = Annotated[str | None, typer.Option(help="only this client")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(ledger, name="ledger")


@ledger.command("export")
def export(
    path: LEDGER,
    as_json: Annotated[bool, typer.Option("--json", help="a list of events, one object each")] = False,
    client: CLIENT = None,
) -> None:
    """Print every event ever charged, so that anybody can compute epsilon again."""
    from fedkd.report import collect

    exports = [one for one in collect.ledgers(path).values() if client in (None, one["client"])]
    if not exports:
        raise ConfigError(f"no ledger of client {client!r}", where=str(path))
    events = [{"client": one["client"], **event} for one in exports for event in one["events"]]
    if as_json:
        return print_json(events)
    for event in events:
        print("  ".join(f"{key}={event[key]}" for key in event))


@ledger.command("verify")
def verify(path: LEDGER) -> None:
    """Walk the chain and its branches, and compare with signature and head file; exit code 1 when something is amiss.
    A copy that is old in all its files is valid too: only the servers that the client has answered know of newer ones.
    """
    from fedkd.privacy.reading import reading
    from fedkd.report import collect

    for file in collect.files(path):
        with reading(file) as (chain, found):
            print(f"{chain.meta['client']}: {found.head.counter} entries, {found.head.charges} charges, chain intact")
            for server, at in sorted(found.branches.items()):
                print(f"  branch of {server or 'lost entries'}: intact, {at.counter} entries, {at.charges} charges")
            print(f"  signature: of the head, by key {chain.meta['key']}")
            print(f"  head file: {_head_file(found.behind)}")
            print(f"  head {found.head.hash}")


@ledger.command("show")
def show(
    path: LEDGER,
    as_json: Annotated[bool, typer.Option("--json", help="a list of ledgers, one object each")] = False,
    client: CLIENT = None,
) -> None:
    """Print contracts, charges and what they have spent, what is open, and whether the ledger is locked."""
    from fedkd.report import collect
    from fedkd.report.book import overview, render

    found = [overview(file) for file in collect.files(path)]
    found = [one for one in found if client in (None, one["client"])]
    if not found:
        raise ConfigError(f"no ledger of client {client!r}", where=str(path))
    if as_json:
        return print_json(found)
    print("\n".join(render(one) for one in found), end="")


@ledger.command("recover")
def recover(
    path: Annotated[Path, typer.Argument(help="client.yaml, or the folder that it is in")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Charge what a ledger that was set back has lost, at the policy's maximum, so that its client may go on. Needs
    'min_noise' in the policy: the least noise that any policy of this client has ever named."""
    from fedkd.config import ClientConfig, Policy, load
    from fedkd.locks import hold
    from fedkd.privacy.ledger import Ledger

    file = path / "client.yaml" if path.is_dir() else path
    config, base = load(ClientConfig, file), file.resolve().parent
    policy, state = load(Policy, base / config.policy), base / config.state
    if not state.is_dir():
        raise ConfigError("the client has no state yet, and so has lost nothing", where=str(state))
    held = hold(state, "another agent uses this state directory")
    with held, closing(Ledger(state / "ledger.sqlite", config.name, damaged=True)) as book:
        gap = book.missing()
        if gap is None:
            return print(f"{config.name}: nothing is missing")
        events = [] if gap.fork else _most(policy, config, base, book)  # a fork is refused by the ledger itself
        if not yes and not gap.fork:
            _tell(config.name, gap, events)
            typer.confirm("Charge them, for ever?", abort=True)
        _say_charged(config.name, book, book.recover(events), policy)


def _most(policy: Policy, config: ClientConfig, base: Path, book: Ledger) -> Sequence[PrivacyEvent]:
    from fedkd.data.proxy import ProxySet
    from fedkd.privacy.costs import most
    from fedkd.privacy.events import PrivacyEvent

    contracts = book.export()["contracts"]
    known = [PrivacyEvent.from_record(event) for contract in contracts for event in contract["events"]]
    return most(policy, len(ProxySet.load(base / config.proxy)), known)


def _tell(client: str, gap: Gap, events: Sequence[PrivacyEvent]) -> None:
    witness = f"server {gap.server} has seen" if gap.server else "the head file names"
    print(f"{client}: {witness} charge {gap.charges}, and this ledger is known to have them up to {gap.start}.")
    print(f"{gap.lost} rounds will be charged. Each of them costs, at the most:")
    for event in events:
        print(
            f"  {event.mechanism}: noise multiplier {event.noise_multiplier:g}, sampling rate {event.sample_rate:g}, "
            f"{event.steps} steps, for one {event.unit}, {event.adjacency}"
        )


def _say_charged(client: str, book: Ledger, lost: int, policy: Policy) -> None:
    from fedkd.report.spend import Account

    account = Account.of(client, book.export(), policy.delta)
    print(f"{client}: {lost} lost rounds charged; the ledger is open again")
    for unit in ("example", "client"):
        spent = max(account.by_block(unit, account.events).values())
        shown = "∞" if math.isinf(spent) else f"{spent:.4f}"
        print(f"  epsilon of one {unit} is now {shown} at delta {policy.delta:g}")


def _head_file(behind: int | None) -> str:
    if behind is None:
        return "none: an older copy of the database alone would not be noticed"
    return "names this head" if behind == 0 else f"names an entry {behind} before the head, as after a crash"
