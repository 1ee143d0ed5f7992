"""What a user can write down: scenarios, server and client configurations, and a client's privacy policy.

Every model refuses unknown keys, names the nearest right one, and points at file and line.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fedkd.errors import ConfigError

USER_CODE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"  # module:function or module:Class

SHA256 = r"^[0-9a-f]{64}$"
FEATURES = ("none", "pca", "scattering", "patches")
ARCHITECTURES = ("linear", "mlp", "cnn", "rnn", "transformer")

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
AUGMENT = r"^(none|(mixup|shift):[1-9])$"
CODEC = r"^(float32|float16|int8|label|top([2-9]|[1-9][0-9]))(\+zlib)?$"

Mechanism = Literal["dp_sgd", "gaussian", "sum", "votes", "none"]
Codec = Annotated[str, Field(pattern=CODEC)]
Rule = Literal["mean", "entropy", "confidence", "majority", "median", "trimmed", "sum", "votes"]
_OF_PROBABILITIES: tuple[Rule, ...] = ("mean", "entropy", "confidence", "majority", "median", "trimmed")
AGGREGATES: dict[Mechanism, tuple[Rule, ...]] = {
    "dp_sgd": _OF_PROBABILITIES,
    "gaussian": ("mean",),  # the noise of every client is only averaged away by a mean
    "sum": ("sum",),
    "votes": ("votes",),
    "none": _OF_PROBABILITIES,
}
"""What answers of a mechanism may be used for: the usual rule, and others."""
FEWEST_IN_A_SUM, FEW_IN_A_SUM = 20, 50  # clients below which a noised sum is refused, and warned of
COHORT_FROM = 50
"""Clients from which engine: auto trains students of linear layers together."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Delta = Annotated[float, Field(ge=1e-10, lt=1)]
SoftLabelTerm = Literal["kl", "soft_ce", "hard_ce", "mse", "tckd", "nckd", "dkd", "denoise"]
EarlierTerm = Literal["self", "hint", "hint_norm", "attention"]  # these compare with a network that is at hand
AnyTerm = Literal[SoftLabelTerm, EarlierTerm]
StudentTerms = dict[Literal[SoftLabelTerm, "self"], NonNegative]
TeacherTerms = dict[AnyTerm, NonNegative]
DistilTerms = dict[Literal[SoftLabelTerm, "hint", "hint_norm", "attention"], NonNegative]


class Model(BaseModel):
    """Frozen, and closed to keys that it does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _text(value: object) -> object:
    """Names and labels may be written as whole numbers; YAML's yes, no and 0.5 would not come back as written."""
    if isinstance(value, bool | float):
        raise ValueError(f"YAML reads this as {value!r}: put it in quotes")
    return str(value) if isinstance(value, int) else value


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, float) else value


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
Texts = tuple[Text, ...]


def _distinct(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what} named twice: {', '.join(twice)}")


class Column(Model):
    """A column of a table, and how it becomes numbers. All of it is public: nothing is counted or measured on private
    rows."""

    name: Text = Field(description="as the header has it")
    categories: Texts = Field((), description="fixed public list, one input each; without a list the column is numeric")
    mean: Finite | None = Field(None, description="public, of a numeric column; null: that of the proxy set")
    sd: Positive | None = Field(None, description="public, of a numeric column; null: that of the proxy set")
    fill: Annotated[Text | None, BeforeValidator(_number_as_text)] = Field(
        None, description="public, stands for a missing cell; null: a missing cell is an error"
    )

    @model_validator(mode="after")
    def _typed(self) -> Self:
        _distinct(self.categories, "categories")
        if (self.mean is None) != (self.sd is None):
            raise ValueError("mean and sd come together: give both, or neither")
        if self.categories and self.mean is not None:
            raise ValueError("a column with categories has no mean and sd")
        if self.fill is None:
            return self
        if self.categories and self.fill not in self.categories:
            raise ValueError(f"fill must be one of the categories, not {self.fill!r}")
        if not self.categories and not _is_finite(self.fill):
            raise ValueError(f"fill of a numeric column must be a number, not {self.fill!r}")
        return self


def _columns(value: object) -> object:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(item if isinstance(item, Mapping | Column) else {"name": item} for item in value)
    return value


class Image(Model):
    """To what size and colours every image is brought."""

    height: int = Field(ge=1, le=4096, description="pixels; images of another size are resampled")
    width: int = Field(ge=1, le=4096, description="pixels")
    colour: Literal["grey", "rgb"] = Field("grey", description="one channel or three")
    column: Text = Field("image", description="of a Hugging Face data set: the column of the images")


# What a source reads beside test_fraction, and which of it must be there.
_READS: dict[str, tuple[set[str], set[str]]] = {
    "digits": (set(), set()),
    "mnist1d": ({"size", "seed"}, set()),
    "idx": ({"path"}, set()),
    "npz": ({"path"}, set()),
    "csv": ({"path", "label", "labels", "columns", "missing"}, {"path", "label", "labels", "columns"}),
    "folder": ({"path", "labels", "image"}, {"path", "labels", "image"}),
    "hf": ({"path", "label", "labels", "columns", "missing", "image"}, {"path", "label", "labels"}),
}
_SOURCES = ", ".join(_READS)


class Data(Model):
    """Where examples come from."""

    source: str = Field("digits", description=f"{_SOURCES.replace(', ', ' | ')} | module:function")
    path: str | None = Field(
        None,
        description="folder of IDX files, of images, or of a Hugging Face data set (or its name, if it has been "
        "downloaded); the .npz or .csv file",
    )
    test_fraction: Rate = Field(0.2, description="share cut off for testing when the source has no test part")
    label: Text | None = Field(None, description="csv, hf: the column of the labels")
    labels: Texts = Field((), description="csv, folder, hf: the fixed public list of labels; their order numbers them")
    columns: Annotated[tuple[Column, ...], BeforeValidator(_columns)] = Field(
        (), description="csv, hf: the columns that are inputs, in this order; a bare name is a numeric column"
    )
    missing: tuple[str, ...] = Field(("",), description="csv, hf: texts that mean that a cell is missing")
    image: Image | None = Field(None, description="folder, hf: images")
    size: int = Field(5000, ge=10, le=10_000_000, description="mnist1d: examples, a fifth of them for testing")
    seed: int = Field(
        42, ge=0, lt=2**63, description="mnist1d: of the examples; the run's own seed does not touch them"
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.source in _READS:
            reads, needs = _READS[self.source]
        elif re.match(USER_CODE, self.source):
            reads, needs = {"path"}, set()
        else:
            raise ValueError(f"unknown source {self.source!r}: use {_SOURCES} or module:function")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in needs and not value:
                raise ValueError(f"the source {self.source} needs {name!r}")
            if value != field.default and name not in reads | {"source", "test_fraction"}:
                raise ValueError(f"the source {self.source} does not read {name!r}: remove it, or name another source")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _distinct(self.labels, "labels")
        _distinct([column.name for column in self.columns], "columns")
        if self.label in [column.name for column in self.columns]:
            raise ValueError(f"the label {self.label!r} cannot be an input too: take it out of 'columns'")
        if self.source == "hf" and bool(self.columns) == (self.image is not None):
            raise ValueError("the source hf needs either 'columns' or 'image'")
        return self


class Partition(Model):
    """How a simulation deals the private pool out to its clients."""

    kind: Literal["iid", "dirichlet", "pathological", "shard", "size", "natural_id"] = Field(
        "iid",
        description="dirichlet: clients differ in classes and sizes; pathological: each has a few classes; shard: each "
        "has a few runs of the examples sorted by class; size: some have more; natural_id: whoever a column names",
    )
    alpha: Positive = Field(0.5, description="dirichlet: concentration; small means that clients differ much")
    classes_per_client: int = Field(2, ge=1, description="pathological: how many classes a client has")
    shards_per_client: int = Field(2, ge=1, description="shard: how many shards a client has")
    growth: Literal["linear", "square", "exponential"] = Field(
        "linear", description="size: of client 1, 2, 3, ... as 1, 2, 3 or as 1, 4, 9 or as e, e^2, e^3"
    )
    column: Text = Field(
        "ids", description="natural_id: column (csv, hf) or array (npz, function) of whose an example is"
    )


class Poison(Model):
    """Simulated clients that send bad answers, of the right form."""

    kind: Literal["label_flip", "random", "colluding"] = Field(
        description="label_flip: every class named as the next one; random: sure of a class drawn for each answer; "
        "colluding: sure of the class next to their own first choice"
    )
    share: Annotated[float, Field(ge=0, le=1)] = Field(0.2, description="of the clients, chosen by the seed")


class Proxy(Model):
    """The public examples, cut off before anything else."""

    size: int = Field(400, ge=2, description="examples that all parties hold and answer on")
    labelled: bool = Field(False, description="labelled proxies also teach the teacher their labels")
    tune_size: int = Field(100, ge=0, description="a further public split, on which settings are chosen")


class Features(Model):
    """The frozen extractor fitted on the proxy set: one kind, or several joined by + and concatenated."""

    kind: str = Field("scattering", description="none | pca | scattering | patches | module:Class, or several: a+b")
    components: int = Field(30, ge=1, description="how many of them are kept of each kind, at the most")
    weights: str | None = Field(None, description="safetensors file with the weights of a module:Class")

    @model_validator(mode="after")
    def _known(self) -> Self:
        parts = self.kind.split("+")
        odd = [part for part in parts if part not in FEATURES and not re.match(USER_CODE, part)]
        if odd:
            raise ValueError(f"unknown features {odd[0]!r}: use {', '.join(FEATURES)} or module:Class")
        if len(parts) > 1 and ("none" in parts or len(set(parts)) < len(parts)):
            raise ValueError(f"features {self.kind!r} cannot be joined: name each once, and none alone")
        if self.weights is not None and sum(part not in FEATURES for part in parts) != 1:
            raise ValueError("weights belong to one module:Class: remove weights, or name the class in kind")
        return self


Size = Annotated[int, Field(ge=1)]


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


class Augment(Model):
    """Further proxy examples, made of the proxy set's own by everybody alike; for mechanisms that give answers away."""

    kind: Literal["none", "mixup", "shift"] = Field(
        "none", description="mixup: weighted means of pairs; shift: images moved by a pixel or two"
    )
    copies: int = Field(1, ge=1, le=9, description="how many of them for each proxy example")

    @property
    def spec(self) -> str:
        """As offers and contracts say it."""
        return "none" if self.kind == "none" else f"{self.kind}:{self.copies}"


class Aggregate(Model):
    """What the server makes of many clients' answers."""

    kind: Literal["auto", Rule] = Field(
        "auto",
        description="of probabilities: mean; entropy: the mean, sharpened; confidence: a mean weighted by the variance "
        "of rows; majority of first choices; coordinate-wise median, or trimmed mean. sum of one-hot votes, noised "
        "once; votes: noisy arg-max of each query (GNMax). auto: what the scenario's mechanism needs, for a deployed "
        "server mean",
    )
    queries: int | None = Field(
        None, ge=1, description="proxy examples asked a round, as far as there are so many; none: all"
    )
    choose: Literal["turn", "entropy"] = Field(
        "turn", description="which of them: the next in turn, or from round 2 those that the teacher is least sure of"
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="votes: share of the clients that must agree before a query is answered (Confident-GNMax)"
    )
    denoise: bool = Field(True, description="ridge regression of noisy sums on the public features, before the arg-max")
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = Field(0.1, description="entropy: T of the softmax")
    trim: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.2, description="trimmed: share of the clients cut off at either end of every probability"
    )

    @model_validator(mode="after")
    def _of_votes(self) -> Self:
        if self.threshold is not None and self.kind not in ("auto", "votes"):
            raise ValueError("a threshold is for aggregate.kind: votes")
        return self


class Training(Model):
    """A client's own training; nothing here touches its privacy."""

    learning_rate: Positive = Field(0.5, description="of private training, on the sum over the nominal batch size")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="carried from round to round")
    terms: StudentTerms = Field({"kl": 1.0}, description="weights of the terms on the teacher's soft labels")
    perturbation: Positive = Field(0.1, description="of denoise: noise on inputs, in their standard deviations")
    distil_steps: int = Field(200, ge=0, description="steps on soft labels alone, after the last round")
    distil_learning_rate: Positive = Field(0.02, description="of these steps, AdamW")
    distil_weight_decay: NonNegative = Field(1.0, description="of these steps; lets go of the noise in the weights")


class Schedule(Model):
    """What one round of private training does. Public settings: never derived from a client's example count."""

    steps: int = Field(8, ge=1, description="optimiser steps a round")
    sample_rate: Rate = Field(1.0, description="Poisson sampling rate; 1 takes every example at every step")
    nominal_examples: int | None = Field(
        None, ge=1, description="public guess of a client's example count; nominal batch size = this x sample_rate"
    )


def _check_mechanism(choice: Privacy | Policy) -> None:
    """What would give a guarantee that protects nobody, or a model that nobody can use."""
    # an example that is used at all with a chance below delta needs no noise to satisfy (epsilon, delta)
    if choice.mechanism == "dp_sgd" and choice.steps * choice.sample_rate <= choice.delta:
        raise ValueError("steps x sample_rate is below delta: such a guarantee is vacuous, raise one or lower delta")
    mechanisms = {choice.mechanism, *(choice.also if isinstance(choice, Policy) else ())}
    if "gaussian" in mechanisms and not choice.accept_low_utility:
        raise ValueError(
            "noise on every answer of every client ('gaussian') drowns the answers of fewer than hundreds of clients: "
            "take dp_sgd, or say 'accept_low_utility: true'"
        )
    if choice.shards > 1 and mechanisms != {"votes"}:
        raise ValueError("shards are for the mechanism 'votes' alone")


class Protection(Model):
    """What a client decides about its privacy: in its own policy, or in a scenario that writes the policies."""

    mechanism: Mechanism = Field("dp_sgd", description="none: no privacy, epsilon is infinite")
    delta: Delta = Field(1e-5, description="the chance at which epsilon may fail")
    clip: Positive = Field(1.0, description="L2 bound on one example's gradient")
    min_noise: NonNegative = Field(0.0, description="least noise multiplier, however much of the limit is left")
    accept_low_utility: bool = Field(False, description="the mechanism 'gaussian' is refused without")
    shards: int = Field(1, ge=1, le=100, description="votes: one student a shard of the data; above 1: for examples")
    noise_ratio: Positive = Field(3.0, description="votes: noise of the threshold test over noise of the answer")


class Privacy(Schedule, Protection):
    """Writes the policies of simulated clients. ``epsilon`` is the total of the whole run."""

    epsilon: Positive = Field(3.0, description="total of the whole run, for the unit that the mechanism protects")

    @model_validator(mode="after")
    def _useful(self) -> Self:
        _check_mechanism(self)
        return self


def _proxies(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Policy(Schedule, Protection):
    """A client's own decision, in a file that only the client writes."""

    epsilon: Positive = Field(
        description="limit of the ledger's lifetime, for the unit that the mechanism protects (example: in any block)"
    )
    block_epsilons: dict[Annotated[str, Field(pattern=NAME)], Positive] = Field(
        {}, description="limits of single data blocks, by name, where they differ from epsilon"
    )
    block_rounds: int | None = Field(
        None,
        ge=1,
        description="dp_sgd: rounds for which the noise makes a block's epsilon last; default a run's",
    )
    lifetime_epsilon: Positive | None = Field(
        None, description="limit of all blocks together: a person with one example in each"
    )
    client_epsilon: Positive | None = Field(
        None, description="limit for all that the client holds; with it no DP-SGD, which bounds nothing of the kind"
    )
    also: tuple[Mechanism, ...] = Field((), description="further mechanisms that a server may ask for")
    nominal_examples: int = Field(ge=1, description="public: never the true example count")
    proxies: Annotated[tuple[str, ...], BeforeValidator(_proxies)] = Field(
        min_length=1, description="content hashes of the proxy sets that this client answers on"
    )
    max_rounds: int = Field(1000, ge=1, description="longest run that is agreed to")
    max_answers: int | None = Field(None, ge=1, description="most proxy examples that are answered a round")
    release_offset: Positive | None = Field(
        None, description="seconds after a plan's arrival at which its answer leaves, whenever it was ready"
    )
    noise: Literal["os", "simulation"] = Field(
        "os", description="os: fresh key of the operating system; simulation: reproducible, gives NO guarantee"
    )
    seed: int | None = Field(None, description="only with noise: simulation")

    def limit(self, block: str) -> float:
        """Epsilon of an example in this data block; what touches ``all`` of them keeps the limit of each."""
        if block == "all":
            return min([self.epsilon, *self.block_epsilons.values()])
        return self.block_epsilons.get(block, self.epsilon)

    @model_validator(mode="after")
    def _no_user_seed(self) -> Self:
        _check_mechanism(self)
        if self.noise == "os" and self.seed is not None:
            raise ValueError("a chosen noise seed gives no privacy: remove 'seed', or say 'noise: simulation'")
        if self.noise == "simulation" and self.seed is None:
            raise ValueError("'noise: simulation' needs a 'seed'")
        if "none" in self.also and self.mechanism != "none":
            raise ValueError("with 'none' under 'also' any server could choose that there is no protection at all")
        if "dp_sgd" in (self.mechanism, *self.also) and self.delta * self.nominal_examples >= 1:
            # to publish one of n examples in the clear is (0, 1/n)-private
            raise ValueError("delta must be below 1 / nominal_examples: else it admits that an example is published")
        return self


def _students(value: object) -> object:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, Sequence):
        return tuple({"kind": item} if isinstance(item, str) else item for item in value)
    return value


BaselineName = Literal["local", "central", "central_dp_sgd", "fedavg", "fedprox", "fedavg_dp_sgd"]
_SCHEDULED = {"student", "rounds", "steps", "sample_rate", "learning_rate"}
# What each comparison reads: the first two have the run's own contract, and none.
_COMPARED: dict[str, set[str]] = {
    "local": set(),
    "central": set(),
    "central_dp_sgd": _SCHEDULED,
    "fedavg": _SCHEDULED,
    "fedprox": _SCHEDULED | {"mu"},
    "fedavg_dp_sgd": _SCHEDULED,
}


class Baseline(Model):
    """A model that a run is compared with, on the same splits. What is null is the scenario's own."""

    student: Student | None = Field(None, description="its architecture; null: the first of students")
    rounds: int | None = Field(None, ge=1, le=10_000, description="how often weights are averaged")
    steps: int | None = Field(None, ge=1, description="optimiser steps a round, as privacy.steps")
    sample_rate: Rate | None = Field(None, description="as privacy.sample_rate")
    learning_rate: Positive | None = Field(None, description="overrules that of student and training")
    mu: NonNegative = Field(0.01, description="fedprox: weight of the distance to the round's first weights")


def _baselines(value: object) -> object:
    """True and False, names, a list of names, or a mapping from names to settings."""
    if isinstance(value, bool):
        value = ["local", "central"] if value else []
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Mapping):
        return {name: {} if settings is None else settings for name, settings in value.items()}
    if isinstance(value, Sequence):
        _distinct([str(name) for name in value], "baselines")
        return {str(name): {} for name in value}
    return value


def _read_what_is_set(baselines: dict[str, Baseline]) -> dict[str, Baseline]:
    for name, settings in baselines.items():
        odd = sorted(settings.model_fields_set - _COMPARED[name])
        set_to = [key for key in odd if getattr(settings, key) != Baseline.model_fields[key].default]
        if set_to:
            raise ValueError(f"{name} does not read {set_to[0]!r}: remove it")
    return baselines


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


class Scenario(Federation):
    """A whole federation on one machine."""

    name: str = Field("digits", pattern=NAME, description="names the run directory")
    clients: int = Field(5, ge=1, le=100_000, description="how many are simulated")
    data: Data = Data()
    partition: Partition = Partition()
    proxy: Proxy = Proxy()
    features: Features = Features()
    students: Annotated[tuple[Student, ...], BeforeValidator(_students)] = Field(
        (Student(),), min_length=1, description="dealt to the clients in turn"
    )
    training: Training = Training()
    engine: Literal["auto", "process", "cohort"] = Field(
        "auto",
        description="process: every client trained by itself, by --workers processes; cohort: students of linear "
        "layers trained together, in one process; auto: cohort for 10 clients and more that all have such "
        "students. The two round differently. A stream's clients are always trained by themselves",
    )
    privacy: Privacy = Privacy()
    poison: Poison | None = Field(None, description="clients that lie; only where clients are simulated")
    baselines: Annotated[
        dict[BaselineName, Baseline], BeforeValidator(_baselines), AfterValidator(_read_what_is_set)
    ] = Field(
        {"local": Baseline(), "central": Baseline()},
        description="what to compare with, each by itself: true (local, central), false, a list of names, or a mapping "
        "from names to settings",
    )

    @model_validator(mode="after")
    def _fits_the_mechanism(self) -> Self:
        fitting = AGGREGATES[self.privacy.mechanism]
        if self.aggregate.kind not in ("auto", *fitting):
            raise ValueError(f"the mechanism {self.privacy.mechanism!r} needs aggregate.kind: {' or '.join(fitting)}")
        if self.privacy.mechanism == "sum" and self.clients < FEWEST_IN_A_SUM:
            raise ValueError(f"the mechanism 'sum' needs {FEWEST_IN_A_SUM} clients at least: its noise drowns fewer")
        return self

    @model_validator(mode="after")
    def _answers_are_free(self) -> Self:
        if self.augment.kind != "none" and self.privacy.mechanism not in ("dp_sgd", "none"):
            raise ValueError(
                f"every answer costs under the mechanism {self.privacy.mechanism!r}: remove augment, or take dp_sgd"
            )
        return self

    @model_validator(mode="after")
    def _somebody_lies(self) -> Self:
        if self.poison is not None and 0 < self.poison.share * self.clients <= 0.5:
            raise ValueError(f"poison.share {self.poison.share} of {self.clients} clients is nobody: raise one of them")
        return self

    @property
    def trained_together(self) -> bool:
        """Whether the engine is the cohort: a function of the scenario alone, since it decides how sums are rounded."""
        linear = all(s.kind in ("linear", "mlp") and not s.dropout for s in self.students)
        cheap = self.features.kind in ("none", "pca")  # where features take the time, more processes save more
        many = self.clients >= COHORT_FROM and linear and cheap and self.privacy.shards == 1
        return self.engine == "cohort" or (self.engine == "auto" and many)

    @property
    def aggregation(self) -> Aggregate:
        """``aggregate`` with its kind resolved."""
        usual = AGGREGATES[self.privacy.mechanism][0]
        kind = usual if self.aggregate.kind == "auto" else self.aggregate.kind
        return self.aggregate.model_copy(update={"kind": kind})


class ServerTls(Model):
    """What the server shows to relays."""

    certificate: str = Field(description="PEM file; 'fedkd certs' makes one")
    key: str = Field(description="its private key, readable by its owner alone")


class RelayTls(Model):
    """Whom a relay trusts."""

    ca: str = Field(description="PEM file of the authority that signed the server's certificate")


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


class Live(Model):
    """Records that a device goes on writing. Paths are relative to the file."""

    source: str = Field(description="folder of .npz files (x [n, ...], y [n], time [n]), or an SQLite file")
    table: str = Field(
        "records", pattern=r"^[A-Za-z_]\w*$", description="SQLite: table with the columns id, time, x (.npy bytes), y"
    )
    by: Literal["time", "hash"] = Field("time", description="what puts a record into its block")
    period: int = Field(86_400, ge=1, description="time: seconds of a block")
    delay: NonNegative = Field(0.0, description="seconds that a client waits for records after a block is over")
    every: Positive = Field(60.0, description="seconds between a client's looks at the source")
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of records, by a hash of each, that nothing learns: the gate of served versions"
    )
    delete: bool = Field(False, description="folder: remove a file once its records have been taken")
    blocks: int = Field(10, ge=1, description="hash: how many blocks there are")


class Gate(Model):
    """What a new version must satisfy before a device serves it, on the device's own held-out examples."""

    max_accuracy_drop: Share = Field(0.01, description="of the accuracy of the version that is served now")
    max_class_forgetting: Share = Field(
        0.1, description="of one class, from the best accuracy of the versions that were served"
    )
    min_class_examples: int = Field(20, ge=1, description="a class with fewer examples is not judged on its own")
    max_int8_drop: Share = Field(0.01, description="from the student in float32 to the file that is served")
    max_bytes: int | None = Field(None, ge=1, description="size of that file")
    max_p95_us: Positive | None = Field(None, description="95th percentile of its latency, in microseconds")


class Device(Model):
    """What a device serves. None of it touches the student that trains and answers."""

    format: Literal["safetensors", "onnx", "executorch"] = Field("safetensors", description="of the served file")
    int8: bool = Field(False, description="onnx, executorch: eight-bit student, calibrated on the proxy set")
    keep: int = Field(5, ge=2, description="versions that are kept, and served versions to go back to")
    gate: Gate = Gate()
    drift: Literal["none", "adwin", "page_hinkley"] = Field(
        "none", description="client: what tells from a served version's errors that records have changed"
    )

    @model_validator(mode="after")
    def _exported(self) -> Self:
        if self.int8 and self.format == "safetensors":
            raise ValueError("int8 needs an exported file: format: onnx or executorch")
        return self


class ClientConfig(Model):
    """A deployed client. Paths are relative to the file."""

    name: str = Field(pattern=NAME, description="by which the server and the ledger know this client")
    data: Data | None = Field(None, description="the private examples")
    live: Live | None = Field(None, description="instead of data: records that the device goes on writing")
    serve: Device | None = Field(None, description="live: which of its students the device serves; default none")
    proxy: str = Field(description="the proxy set's file, the same for all parties")
    policy: str = Field("policy.yaml", description="the client's privacy policy")
    state: str = Field("state", description="folder of ledger, outbox and student")
    block: str = Field(
        "all",
        pattern=NAME,
        description="which disjoint part of the client's data this is, by its time, not by a count",
    )
    student: Student = Student()
    code: str = Field(".", description="folder of what is of your own: module:Class, the weights of init, a backbone")
    training: Training = Training()
    seed: int = Field(0, ge=0, lt=2**63, description="initial weights and batch order; never the noise")
    address: str = Field("127.0.0.1:8000", description="host:port of the server")
    tls: RelayTls | None = Field(None, description="needed unless address is on the loopback interface")
    node_key: str | None = Field(None, description="private key by which the server knows this client's relay")
    socket: str | None = Field(None, description="where the agent answers; default agent.sock in the state folder")
    socket_group: str | None = Field(None, description="group whose members may connect: the relay's user")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (self.live is None):
            raise ValueError("a client has either 'data', or 'live'")
        if self.live is None:
            if self.serve is not None:
                raise ValueError("'serve' needs 'live', whose held-out records the gate looks at")
            return self
        if self.live.by != "time":
            raise ValueError("a client learns blocks by time: one that is closed when it is learned would lose records")
        if self.block != "all":
            raise ValueError("'live' names the blocks itself: remove 'block'")
        if self.serve is not None and not self.live.held_out:
            raise ValueError("'serve' needs live.held_out above 0: its gate looks at those records")
        return self


class RelayConfig(Model):
    """A relay that runs apart from its agent: all that it may know. Paths are relative to the file."""

    address: str = Field("127.0.0.1:8000", description="host:port of the server")
    socket: str = Field(description="where the agent answers")
    home: str = Field("relay", description="folder of logs and of the app that the server ships")
    tls: RelayTls | None = Field(None, description="needed unless address is on the loopback interface")
    node_key: str | None = Field(None, description="private key by which the server knows this client's relay")


class Stream(Model):
    """How a party's examples come one experience after another. Which one an example is in depends on it alone."""

    kind: Literal["class", "domain", "task", "data"] = Field(
        "class",
        description="class: new classes; task: the same, and the task is told when it is tested; domain: the same "
        "classes look different; data: more of the same",
    )
    experiences: int = Field(5, ge=1, le=10_000, description="how many there are")
    order: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="class, task: all labels in the order in which they come; empty: as they are numbered"
    )
    own_order: bool = Field(False, description="every client has an order of its own, drawn from the seed")
    transform: Literal["permuted", "rotated", "drifting"] = Field(
        "permuted", description="domain: pixels in another order; images turned; gain and offset drift away"
    )
    strength: Share = Field(0.5, description="rotated, drifting: of the last experience; 1 is half a turn, or all gain")
    proxies: Literal["all", "first"] = Field(
        "all", description="domain: the proxy set looks like all experiences in turn, or like the first one alone"
    )
    online: bool = Field(False, description="one learner: every example is seen once, whatever keeping.epochs says")
    pace: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1,), min_length=1, description="periods that a client stays in an experience, dealt to the clients in turn"
    )
    joins: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1,), min_length=1, description="period in which a client joins, dealt to the clients in turn"
    )
    leaves: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="its last period, dealt to the clients in turn; 0: it stays"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.order and self.kind in ("domain", "data"):
            raise ValueError(f"a stream of kind {self.kind!r} has no order of classes")
        if self.order and self.own_order:
            raise ValueError("either 'order', or 'own_order'")
        return self


WEIGHTS = {"proxy": 0.5, "finetune": 0.0, "lwf": 1.0, "er": 1.0, "derpp": 0.5, "ewc": 100.0, "joint": 0.0}
HEAVIEST_ANCHOR = 4.0
"""Above it an anchor keeps new classes out: proxies that look like them are held to old ones."""


class Keeping(Model):
    """How a learner keeps earlier experiences while it meets a new one, and how long it trains."""

    method: Literal["proxy", "finetune", "lwf", "er", "derpp", "ewc", "joint"] = Field(
        "proxy",
        description="proxy: earlier answers on the proxy set are frozen and distilled; lwf: those on the new examples; "
        "er, derpp: private examples are replayed; ewc: weights are held; finetune: nothing; joint: all examples",
    )
    weight: NonNegative | None = Field(
        None, description=f"of the term that keeps; null: {', '.join(f'{n} {w:g}' for n, w in WEIGHTS.items() if w)}"
    )
    alpha: NonNegative = Field(0.5, description="derpp: weight of the kept logits")
    buffer: int = Field(200, ge=1, description="er, derpp: private examples that are kept")
    epochs: int = Field(5, ge=1, description="one learner: passes over an experience")
    batch_size: int = Field(128, ge=1, description="one learner: examples a step")
    learning_rate: Positive = Field(0.003, description="one learner: peak of the one-cycle schedule of AdamW")
    weight_decay: NonNegative = Field(0.01, description="one learner: decoupled, as in AdamW")

    @property
    def strength(self) -> float:
        """``weight``, or the method's usual one."""
        return WEIGHTS[self.method] if self.weight is None else self.weight

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.method == "proxy" and self.strength > HEAVIEST_ANCHOR:
            raise ValueError(
                f"an anchor of weight {self.strength:g} keeps new classes out: proxies that look like them are held to "
                f"old ones; take {HEAVIEST_ANCHOR:g} at the most"
            )
        return self


class PrivacyByExperience(Privacy):
    """Every experience is a data block, with a limit of its own. ``epsilon`` is the limit of each."""

    epsilons: tuple[Positive, ...] = Field(
        (), description="limits of the first experiences, where they differ; the others have epsilon"
    )
    lifetime_epsilon: Positive | None = Field(
        None, description="limit of all experiences together: a person with one example in each"
    )


class Continual(Scenario):
    """A stream that one learner meets (clients: 1), or a federation; ``rounds`` are those of one period."""

    name: str = Field("continual", pattern=NAME, description="names the run directory")
    clients: int = Field(5, ge=1, le=100_000, description="1: one learner, without a server and without protection")
    rounds: int = Field(3, ge=1, le=10_000, description="of a period; a client is in one experience for a whole period")
    stream: Stream = Stream()
    keeping: Keeping = Keeping()
    privacy: PrivacyByExperience = PrivacyByExperience()
    baselines: Annotated[dict[BaselineName, Baseline], BeforeValidator(_baselines)] = Field(
        {}, description="none: a stream is compared with keeping.method finetune and joint"
    )

    @model_validator(mode="after")
    def _fits_the_stream(self) -> Self:
        if self.training.terms != Training().terms:
            raise ValueError("the weight of the anchor is keeping.weight: remove training.terms")
        for name in ("baselines", "poison"):
            if getattr(self, name):
                raise ValueError(f"{name!r} is for 'fedkd simulate': remove it")
        if self.engine == "cohort":
            raise ValueError("a stream's clients are trained by themselves: engine 'cohort' is for 'fedkd simulate'")
        if len(self.privacy.epsilons) > self.stream.experiences:
            raise ValueError("privacy.epsilons has more limits than there are experiences")
        self._check_alone() if self.clients == 1 else self._check_together()
        return self

    def _check_alone(self) -> None:
        if self.privacy.mechanism != "none":
            raise ValueError(
                "one learner answers nobody, and is trained without protection: say privacy.mechanism: none, or have "
                "more clients"
            )
        for name in ("own_order", "pace", "joins", "leaves"):
            if getattr(self.stream, name) != Stream.model_fields[name].default:
                raise ValueError(f"stream.{name} is for clients: one learner has no timetable")

    def _check_together(self) -> None:
        if self.keeping.method not in ("proxy", "finetune"):
            raise ValueError(
                f"clients keep by 'proxy' or 'finetune': {self.keeping.method!r} would train again on what earlier "
                "blocks have left, and each answer would be charged to all of them"
            )
        if self.privacy.mechanism not in ("dp_sgd", "none"):
            raise ValueError(
                f"the mechanism {self.privacy.mechanism!r} touches all blocks with every answer: a limit for each "
                "experience needs dp_sgd"
            )
        if self.stream.online:
            raise ValueError("clients train by privacy.steps and rounds: stream.online is for one learner")


KINDS: dict[str, type[Model]] = {
    "scenario": Scenario,
    "continual": Continual,
    "server": ServerConfig,
    "client": ClientConfig,
    "relay": RelayConfig,
    "policy": Policy,
    "device": Device,
    "live": Live,
    "distil": Distil,
}

M = TypeVar("M", bound=Model)


def default_simulation(run_id: int) -> Path:
    """Where Flower's simulation runtime finds the server's configuration of a run that names none."""
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    return home / "fedkd" / f"run-{run_id}" / "server.yaml"


def load(kind: type[M], path: Path | None, overrides: Sequence[str] = ()) -> M:
    """Read a YAML file (none: the defaults) and apply ``key=value`` overrides. Raises ConfigError."""
    tree: dict[str, Any] = {}
    lines: dict[str, int] = {}
    if path is not None:
        tree, lines = _read(path)
    for override in overrides:
        _override(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise _explain(kind, error, path, lines, tree) from None


def dump(model: Model) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree, lines = yaml.safe_load(text), dict(_lines(node))
    except RecursionError:
        raise ConfigError("the configuration contains itself, or is nested too deep", where=str(path)) from None
    except FileNotFoundError:
        raise ConfigError("the configuration file does not exist", where=str(path), fix="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from None
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise ConfigError("a configuration is a mapping of keys to values", where=str(path))
    return tree, lines


def _lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _lines(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield f"{prefix}{index}", value.start_mark.line + 1
            yield from _lines(value, f"{prefix}{index}.")


def setting(text: str) -> tuple[str, Any]:
    """Key and value of ``key=value``, the value in YAML. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, not {text!r}", fix="for example: --set privacy.epsilon=8")
    try:
        return key.strip(), _scalar(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value is not valid YAML: {error}", where=f"--set {text}") from None


def mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises ConfigError."""
    return _read(path)[0]


def _override(tree: dict[str, Any], override: str) -> None:
    key, value = setting(override)
    *parents, leaf = key.split(".")
    for parent in parents:
        below = tree.get(parent)
        tree = tree.setdefault(parent, {}) if not isinstance(below, dict) else below
        if not isinstance(tree, dict):
            raise ConfigError(f"{parent!r} has no keys below it", where=f"--set {override}")
    tree[leaf] = value


def _scalar(text: str) -> Any:
    """A YAML value; unlike YAML 1.1, ``1e-5`` is a number."""
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return yaml.safe_load(text)


def _explain(
    kind: type[Model], error: ValidationError, path: Path | None, lines: Mapping[str, int], tree: Mapping[str, Any]
) -> ConfigError:
    problems, wheres = [], []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        line = lines.get(key) or lines.get(key.rpartition(".")[0])
        source = f"{path}:{line}" if path and line else str(path) if path else "--set"
        wheres.append(f"{source}, key {key!r}" if key else source)
        if problem["type"] == "extra_forbidden":
            problems.append(_nearest(kind, key))
        else:
            problems.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}" if key else problem["msg"])
    return ConfigError(
        "the configuration is not valid: " + "; ".join(problems),
        where="; ".join(wheres),
        fix=f"'fedkd config schema {_name(kind)}' lists every key",
    )


def _name(kind: type[Model]) -> str:
    return next(name for name, known in KINDS.items() if known is kind)


def _nearest(kind: type[Model], key: str) -> str:
    names = list(keys(kind))
    leaves = {name.rpartition(".")[2]: name for name in names}
    near = difflib.get_close_matches(key, names, 1, 0.6)
    near = near or [leaves[leaf] for leaf in difflib.get_close_matches(key.rpartition(".")[2], list(leaves), 1, 0.5)]
    return f"unknown key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a configuration of this kind understands."""
    for name, field in kind.model_fields.items():
        yield prefix + name
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            yield from keys(below, f"{prefix}{name}.")
