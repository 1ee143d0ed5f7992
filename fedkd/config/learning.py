"""Networks, and how a client, the server and ``fedkd distil`` train them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fedkd.config.base import SHA256, USER_CODE, Model, NonNegative, Positive, Size

ARCHITECTURES = ("linear", "mlp", "cnn", "rnn", "transformer")

SoftLabelTerm = Literal["kl", "soft_ce", "hard_ce", "mse", "tckd", "nckd", "dkd", "denoise"]
EarlierTerm = Literal["self", "hint", "hint_norm", "attention"]  # these compare with a network that is at hand
AnyTerm = Literal[SoftLabelTerm, EarlierTerm]
StudentTerms = dict[Literal[SoftLabelTerm, "self"], NonNegative]
TeacherTerms = dict[AnyTerm, NonNegative]
DistilTerms = dict[Literal[SoftLabelTerm, "hint", "hint_norm", "attention"], NonNegative]


class Architecture(Model):
    """A network: ``linear`` and ``mlp`` on public features, ``cnn``, ``rnn`` and ``transformer`` on raw examples, or a
    user's own class."""

    kind: str = Field("linear", description="linear | mlp | cnn | rnn | transformer | module:Class")
    hidden: tuple[Size, ...] = Field((64,), description="widths of an mlp's or an rnn's hidden layers")
    activation: Literal["tanh", "relu"] = Field("tanh", description="of an mlp; tanh suits DP-SGD")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="of an mlp's hidden layers")
    channels: tuple[Size, ...] = Field((32, 64), min_length=1, description="of a cnn's blocks")
    cell: Literal["gru", "lstm"] = Field("gru", description="of an rnn")
    width: Size = Field(32, description="of a transformer's tokens, a multiple of heads")
    layers: Size = Field(2, description="of a transformer")
    heads: Size = Field(4, description="of a transformer's attention")
    patch: Size = Field(4, description="side of the squares, or steps, that are a transformer's tokens")
    init: str = Field(
        "random", description="random, or a safetensors file of PUBLIC weights, in code: nobody accounts for them"
    )
    init_hash: str | None = Field(None, pattern=SHA256, description="SHA-256 of that file, which must match")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.kind not in ARCHITECTURES and not re.match(USER_CODE, self.kind):
            raise ValueError(f"unknown architecture {self.kind!r}: use {', '.join(ARCHITECTURES)} or module:Class")
        if self.kind == "rnn" and not self.hidden:
            raise ValueError("an rnn has a hidden layer at least: give its width in hidden")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if (self.init == "random") != (self.init_hash is None):
            raise ValueError("init and init_hash come together: the hash says which public weights a run starts from")
        return self


class Student(Architecture):
    """A client's model, and how it learns where that differs from the client's training block."""

    learning_rate: Positive | None = Field(None, description="overrules training.learning_rate")
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="overrules training.momentum")


class Training(Model):
    """A client's own training; nothing here touches its privacy."""

    learning_rate: Positive | None = Field(
        None, description="of private training, on the sum over the nominal batch size; null: what suits each student"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="carried from round to round")
    terms: StudentTerms = Field({"kl": 1.0}, description="weights of the terms on the teacher's soft labels")
    perturbation: Positive = Field(0.1, description="of denoise: noise on inputs, in their standard deviations")
    distil_steps: int = Field(200, ge=0, description="steps on soft labels alone, after the last round")
    distil_learning_rate: Positive = Field(0.02, description="of these steps, AdamW")
    distil_weight_decay: NonNegative = Field(1.0, description="of these steps; lets go of the noise in the weights")


class Teacher(Architecture):
    """The server's shared model and how it is distilled from the consensus: AdamW on a one-cycle schedule."""

    steps: int = Field(100, ge=1, description="optimiser steps a round")
    batch_size: int = Field(4096, ge=1, description="proxy examples a step, at the most")
    learning_rate: Positive = Field(0.05, description="peak of the schedule")
    weight_decay: NonNegative = Field(0.01, description="decoupled, as in AdamW")
    terms: TeacherTerms = Field(
        {"kl": 1.0}, description="weights of the terms on the consensus, and on the teacher of the round before"
    )
    perturbation: Positive = Field(0.1, description="of denoise: noise on inputs, in their standard deviations")
    label_weight: NonNegative = Field(1.0, description="weight of the labels of a labelled proxy set")

    @field_validator("terms")
    @classmethod
    def _learns(cls, terms: dict[str, float]) -> dict[str, float]:
        if not any(weight for name, weight in terms.items() if name not in get_args(EarlierTerm)):
            raise ValueError(
                "the teacher learns from nothing: give a term on the consensus a weight, such as {kl: 1.0}"
            )
        return terms

    @model_validator(mode="after")
    def _has_layers(self) -> Self:
        wanted = {name for name, weight in self.terms.items() if weight}
        if self.kind == "linear" and wanted & {"hint", "hint_norm"}:
            raise ValueError("a linear teacher has no hidden layer to take hints from: use mlp")
        if self.kind in ("linear", "mlp") and "attention" in wanted:
            raise ValueError(f"a teacher of kind {self.kind} has no attention maps: use cnn, rnn or transformer")
        return self


def _named(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


class Distil(Model):
    """How ``fedkd distil`` teaches a student on a proxy set: AdamW on a one-cycle schedule. Given by its options."""

    student: Annotated[Architecture, BeforeValidator(_named)] = Field(
        Architecture(kind="mlp"), description="a kind, or a mapping as in students"
    )
    terms: DistilTerms = Field({"kl": 1.0}, description="weights of the terms on each teacher")
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = Field(2.0, description="T of the teachers' soft labels")
    perturbation: Positive = Field(0.1, description="of denoise: noise on inputs, in their standard deviations")
    label_weight: NonNegative = Field(0.0, description="weight of the labels of a labelled proxy set")
    steps: int = Field(1000, ge=1, description="optimiser steps")
    batch_size: int = Field(256, ge=1, description="proxy examples a step, at the most")
    learning_rate: Positive = Field(0.003, description="peak of the schedule")
    weight_decay: NonNegative = Field(0.01, description="decoupled, as in AdamW")
    seed: int = Field(0, ge=0, lt=2**63, description="of starting weights and batch order")

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if not any(self.terms.values()) and not self.label_weight:
            raise ValueError("the student learns from nothing: give one term a weight above 0, such as kl=1")
        return self
