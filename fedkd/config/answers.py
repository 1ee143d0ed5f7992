"""Clients' answers: what protects them, how they travel, and what the server makes of them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedkd.config.base import Model

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
