"""The JSON form of a budget report, as types. Its published schema is made from them, and every report is checked by
them when it is made."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fedkd.config import Model
from fedkd.privacy.events import Adjacency, Unit
from fedkd.report.audit import Audited
from fedkd.report.numbers import Finite, Number

VERSION = 3
"""Grows with every change that a reader of the JSON form could notice."""

State = Literal["released", "reserved", "lost"]


class Point(Model):
    """A point of the privacy curve."""

    epsilon: Number
    delta: Finite


class Charge(Model):
    """The state of a ledger after one of its charges."""

    charge: int = Field(description="how many charges there had been, this one included")
    run: str | None
    round: int | None
    state: State
    epsilon: Number = Field(description="of all charges so far together")


class CrossCheck(Model):
    """The same composition, of the block that has spent most, by another accountant."""

    accountant: str
    epsilon: Number | None = Field(description="null where that accountant has no number, for the reason given")
    compared_with: str | None = Field(description="the accountant whose number must agree; null: not compared")
    difference: Finite | None = Field(description="of that accountant's epsilon from this one")
    tolerance: Finite = Field(description="a larger difference fails the whole report")
    reason: str | None


class Limits(Model):
    """The policy's limits over the whole life of the ledger, as the newest contract has them; null: not limited."""

    delta: Finite | None
    example: Finite | None = Field(description="epsilon of an example, in whichever block")
    client: Finite | None = Field(description="epsilon of everything that the client holds")
    one_example_in_each_block: Finite | None = Field(description="epsilon of all blocks together")
    blocks: dict[str, Finite] = Field(
        description="epsilon of an example in each block that has been charged, as its newest contract has it"
    )

    def of(self, unit: Unit) -> float | None:
        """The limit of that unit; of an example the largest that a block has."""
        if unit == "client" or self.example is None:
            return self.client if unit == "client" else None
        return max([self.example, *self.blocks.values()])


class Spend(Model):
    """What one unit of this client has spent over the whole life of the ledger."""

    unit: Unit
    adjacency: Adjacency
    epsilon: Number
    limit: Finite | None = Field(description="null: this unit is not limited")
    left: Finite | None = Field(description="limit - epsilon, at least 0; null without a limit")
    accountant: str
    cross_checks: list[CrossCheck]
    curve: list[Point] = Field(description="the whole delta(epsilon) curve, at powers of ten of delta")
    per_round: list[Charge] = Field(description="after each charge, or after some of them evenly spread, the last too")
    per_block: dict[str, Number] = Field(description="an example in each block; 'all': in one that no charge names")
    limit_per_block: dict[str, Finite] = Field(description="of each of them; empty without a limit")
    one_example_in_each_block: Number | None = Field(
        description="of a person with at most one example in each block: all blocks composed; null for a whole client"
    )


class Sampler(Model):
    """Which examples a step is computed on."""

    assumed: str
    actual: str


class Mechanism(Model):
    """One kind of release that a contract made each round."""

    run: str
    mechanism: str
    part: str = Field(description="what is released: a contract may release several things a round")
    unit: Unit
    adjacency: Adjacency
    sensitivity: Number = Field(description="L2, of one unit under that adjacency")
    derivation: str = Field(description="of the sensitivity and of sigma")
    clip: Finite | None = Field(description="L2 bound on one example's gradient; null where nothing is clipped")
    noise_multiplier: Finite = Field(description="as charged: at most sigma / sensitivity")
    sigma: Finite = Field(description="standard deviation of the noise that was added")
    nominal_batch: Finite | None
    queries: int = Field(description="proxy examples answered a round")
    steps_per_round: int
    rounds: int
    sample_rate: Finite
    sampler: Sampler


class Agreed(Model):
    """A contract of the ledger."""

    run: str
    server: str
    hash: str
    mechanism: str
    rounds: int
    proxy: str


class Charged(Model):
    """Number of charges by what became of them."""

    released: int
    reserved: int = Field(description="charged for ever, without a release")
    lost: int = Field(description="charged by 'ledger recover' for what a rolled back ledger may have forgotten")


class Client(Model):
    """Everything that is said of one client's ledger."""

    delta: Finite
    limits: Limits
    spent: dict[Unit, Spend] = Field(description="one entry a unit: they have different meanings and never add up")
    charged: Charged
    bytes_released: int
    mechanisms: list[Mechanism]
    adaptivity: str
    noise: str = Field(description="os, simulation or unknown: the weakest source that the ledger has used")
    randomness: str
    proxies: dict[str, str] = Field(description="proxy set's hash -> its provenance")
    contracts: list[Agreed]
    ledger_head: str


class Column(Model):
    """What the numbers of one unit mean, and the largest of them."""

    unit: Unit
    adjacencies: list[Adjacency] = Field(description="each client has one")
    meaning: str
    guarantee: str
    epsilon: Number
    delta: Finite


class Code(Model):
    """What this report was computed by, and what was run."""

    fedkd: str
    sources: str = Field(description="hash of the installed source files")
    config_hash: str
    public_weights: list[str] = Field(description="SHA-256 of the files that networks started from, taken as public")


class BudgetReport(Model):
    """How much privacy has been spent: fields after NIST SP 800-226 and Ponomareva et al. 2023 (arXiv:2303.00654,
    section 5.3)."""

    schema_version: Literal[3]
    holds: bool = Field(description="whether the guarantee is one at all, and no audit has refuted it")
    units: dict[Unit, Column]
    trust_models: dict[str, str] = Field(description="mechanism -> whom its guarantee relies on")
    outputs_covered: list[str]
    outputs_not_covered: list[str]
    floating_point: dict[str, str] = Field(description="mechanism -> how its noise is made in a computer's arithmetic")
    audit: list[Audited] | Literal["none run"]
    code: Code
    clients: dict[str, Client]

    def record(self) -> dict[str, Any]:
        """The JSON form."""
        return self.model_dump(mode="json")


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of ``BudgetReport.record``."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **BudgetReport.model_json_schema(mode="serialization")}
