"""What a server reads, and the part of it that a simulation reads too."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedkd.config.answers import Aggregate, Augment, Codec
from fedkd.config.base import NAME, Model, Positive, Rate
from fedkd.config.data import Data
from fedkd.config.learning import Teacher


class Federation(Model):
    """What a simulation and a deployed server have in common."""

    seed: int = Field(0, ge=0, lt=2**63, description="of every random choice but deployed clients' noise")
    rounds: int = Field(5, ge=1, le=10_000, description="how often clients train and answer")
    quorum: Rate = Field(0.5, description="share of the expected clients that must answer for a round to count")
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = Field(1.0, description="T of the teacher's soft labels")
    codec: Codec = Field(
        "float16",
        description="how answers that are probabilities travel: float32 | float16 | int8 | label (the first choice and "
        "its probability) | top2, top3, ... (so many), each also with +zlib",
    )
    teacher: Teacher = Teacher()
    aggregate: Aggregate = Aggregate()
    augment: Augment = Augment()

    @property
    def aggregation(self) -> Aggregate:
        """``aggregate`` with its kind resolved."""
        kind = "mean" if self.aggregate.kind == "auto" else self.aggregate.kind
        return self.aggregate.model_copy(update={"kind": kind})


class ServerTls(Model):
    """What the server shows to relays."""

    certificate: str = Field(description="PEM file; 'fedkd certs' makes one")
    key: str = Field(description="its private key, readable by its owner alone")


class ServerConfig(Federation):
    """A deployed server. Paths are relative to the file."""

    name: str = Field("server", pattern=NAME, description="by which clients know this server, in all its runs")
    heads: str = Field("heads.json", description="file of the clients' newest ledger heads, kept across runs")
    proxy: str = Field(description="the proxy set's file")
    clients: int = Field(ge=1, description="how many clients are expected")
    out: str = Field("run", description="run directory")
    code: str = Field(".", description="folder of what is of your own: module:Class, the weights of init, a backbone")
    test: Data | None = Field(None, description="public labelled examples on which the teacher is tested")
    anchor: str | None = Field(
        None,
        description="teacher's file of the run before: what it says of the proxies is frozen, and is what clients "
        "learn from until the last round is over",
    )
    anchor_classes: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="labels that had come by then: the anchor has no mass on others; empty: all"
    )
    address: str = Field("127.0.0.1:8000", description="host:port on which relays are served")
    tls: ServerTls | None = Field(None, description="needed unless address is on the loopback interface")
    nodes: str | None = Field(None, description="folder of the clients' public node keys; needed with tls")
    superlink: str | None = Field(None, description="host:port of a SuperLink that runs already; then none is started")
    superlink_ca: str | None = Field(None, description="PEM file of the authority that signed its certificate")
    round_timeout: Positive = Field(
        600.0, description="seconds a request waits; a round below quorum asks for twice as long"
    )
    join_timeout: Positive = Field(600.0, description="seconds to wait for clients before the first round")

    @model_validator(mode="after")
    def _anchored(self) -> Self:
        if self.anchor_classes and self.anchor is None:
            raise ValueError("anchor_classes are those of an 'anchor': name its file, or remove them")
        return self
