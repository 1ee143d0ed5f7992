"""What a client decides about its privacy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fedkd.config.answers import Mechanism
from fedkd.config.base import NAME, Delta, Model, NonNegative, Positive, Rate


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
