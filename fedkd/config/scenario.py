"""A whole federation on one machine, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fedkd.config.answers import AGGREGATES, FEWEST_IN_A_SUM, Aggregate
from fedkd.config.base import NAME, Model, NonNegative, Positive, Rate, distinct
from fedkd.config.data import Data, Features, Partition, Poison, Proxy
from fedkd.config.learning import Student, Training
from fedkd.config.policy import Privacy
from fedkd.config.server import Federation

COHORT_FROM = 50
"""Clients from which engine: auto trains students of linear layers together."""


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


def read_baselines(value: object) -> object:
    """True and False, names, a list of names, or a mapping from names to settings."""
    if isinstance(value, bool):
        value = ["local", "central"] if value else []
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Mapping):
        return {name: {} if settings is None else settings for name, settings in value.items()}
    if isinstance(value, Sequence):
        distinct([str(name) for name in value], "baselines")
        return {str(name): {} for name in value}
    return value


def _read_what_is_set(baselines: dict[str, Baseline]) -> dict[str, Baseline]:
    for name, settings in baselines.items():
        odd = sorted(settings.model_fields_set - _COMPARED[name])
        set_to = [key for key in odd if getattr(settings, key) != Baseline.model_fields[key].default]
        if set_to:
            raise ValueError(f"{name} does not read {set_to[0]!r}: remove it")
    return baselines


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
        description="process: every client trained by itself; cohort: students of linear layers trained together; "
        f"auto: cohort where {COHORT_FROM} clients or more all have such students and one shard each. Either way by "
        "--workers processes. The two round differently. A stream's clients are always trained by themselves",
    )
    privacy: Privacy = Privacy()
    poison: Poison | None = Field(None, description="clients that lie; only where clients are simulated")
    baselines: Annotated[
        dict[BaselineName, Baseline], BeforeValidator(read_baselines), AfterValidator(_read_what_is_set)
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
