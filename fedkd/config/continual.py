"""A stream of experiences, and how learners keep the earlier ones."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fedkd.config.base import NAME, Model, NonNegative, Positive, Share
from fedkd.config.learning import Training
from fedkd.config.policy import Privacy
from fedkd.config.scenario import Baseline, BaselineName, Scenario, read_baselines


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
    baselines: Annotated[dict[BaselineName, Baseline], BeforeValidator(read_baselines)] = Field(
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
