"""What a client agrees to for a whole run, decided by its own policy before the first round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedkd.config import AGGREGATES, FEWEST_IN_A_SUM, Mechanism, Policy
from fedkd.errors import BudgetExceeded, PrivacyError
from fedkd.privacy import calibration
from fedkd.privacy.blocks import ALL
from fedkd.privacy.costs import Cost, cost_of
from fedkd.privacy.events import PrivacyEvent, Unit
from fedkd.privacy.filters import RenyiFilter
from fedkd.privacy.limits import Limits, Past
from fedkd.privacy.units import seen_by
from fedkd.tensors import canonical, digest
from fedkd.wire import Code, Offer, Plan, pool


class Refused(Exception):
    """The client says no. The code is all that the server learns."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.value)
        self.code = code


@dataclass(frozen=True)
class Training:
    """What a client's own training does in one round; all of it public, and under DP-SGD what its event says.

    ``nominal_batch`` is the public divisor of the noised gradient sum, ``clip`` the L2 bound on a gradient.
    """

    steps: int
    sample_rate: float
    clip: float
    nominal_batch: float


@dataclass(frozen=True)
class Contract:
    """``rounds`` rounds, all alike, fixed in advance: that is what lets their privacy losses be composed exactly.

    ``events`` are charged for each round; ``variances`` are those of the noise on released integers (gaussian, sum:
    one; votes: of the threshold test, or 0, and of the answer); ``limits`` and ``block_rounds`` are the policy's.
    """

    run: str
    server: str
    proxy: str
    examples: int
    classes: int
    queries: int
    rounds: int
    codec: str
    aggregate: str
    mechanism: Mechanism
    shards: int
    events: tuple[PrivacyEvent, ...]
    variances: tuple[int, ...]
    training: Training
    limits: Limits
    noise: str
    augment: str = "none"
    block_rounds: int | None = None

    def __post_init__(self) -> None:
        charged = {(event.sample_rate, event.steps) for event in self.events}
        if self.mechanism == "dp_sgd" and charged != {(self.training.sample_rate, self.training.steps)}:
            raise ValueError("DP-SGD must be charged for exactly the steps that it trains")

    @property
    def most(self) -> int:
        """The most rounds that one data block is charged for, by which the noise was chosen."""
        return min(self.rounds, self.block_rounds or self.rounds)

    def record(self) -> dict[str, Any]:
        """JSON-able form; ``from_record`` is its inverse."""
        plain = {**asdict(self), "events": [e.record() for e in self.events], "variances": list(self.variances)}
        usual = {"augment": "none", "block_rounds": None}
        # left out as usual: contracts from before there were such things keep their hash
        return {name: value for name, value in plain.items() if name not in usual or value != usual[name]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Contract:
        """Inverse of ``record``."""
        built: dict[str, Any] = {
            "events": tuple(PrivacyEvent.from_record(event) for event in record["events"]),
            "variances": tuple(record["variances"]),
            "training": Training(**record["training"]),
            "limits": Limits(**record["limits"]),
        }
        return cls(**{name: built.get(name, record[name]) for name in cls.__dataclass_fields__ if name in record})

    @property
    def pool(self) -> int:
        """How many examples may be asked."""
        return pool(self.examples, self.augment)

    @property
    def hash(self) -> str:
        """The hash that the ledger registers."""
        return digest(canonical(self.record()))

    def answers(self, offer: Offer) -> bool:
        """Whether this is the contract of that offer."""
        return all(getattr(self, name) == getattr(offer, name) for name in _OFFERED)

    def schedule(self, rounds: int) -> list[PrivacyEvent]:
        """The events of so many rounds."""
        return [replace(event, steps=event.steps * rounds) for event in self.events]


_OFFERED = ("run", "server", "proxy", "examples", "classes", "queries", "rounds", "codec", "aggregate", "augment")


def draw_up(policy: Policy, offer: Offer, past: Past, block: str = ALL) -> Contract:
    """The contract under which ``policy`` accepts ``offer``: noise enough that what the ledger has left is not
    overspent. Raises Refused."""
    mechanism = check_offer(policy, offer)
    cost = cost_of(mechanism, policy, offer.queries, offer.aggregate, block)
    epsilon = policy.limit(cost.blocks[0])
    limits = Limits(cost.unit, epsilon, policy.delta, policy.client_epsilon, policy.lifetime_epsilon)
    block_rounds = policy.block_rounds if mechanism == "dp_sgd" else None
    noise = _noise(offer, past, cost, limits, policy.min_noise, block_rounds)
    return Contract(
        mechanism=mechanism,
        shards=policy.shards if mechanism == "votes" else 1,
        events=cost.events(noise),
        variances=_variances(cost, noise),
        training=_training(policy),
        limits=limits,
        noise=policy.noise,
        block_rounds=block_rounds,
        **{name: getattr(offer, name) for name in _OFFERED},
    )


def check_offer(policy: Policy, offer: Offer) -> Mechanism:
    """The first mechanism of the policy that the offer has a use for. Raises Refused for what the policy does not
    allow, whatever the ledger holds."""
    if offer.proxy not in policy.proxies:
        raise Refused(Code.PROXY)
    if not 1 <= offer.rounds <= policy.max_rounds:
        raise Refused(Code.ROUNDS)
    there = pool(offer.examples, offer.augment)
    most = there if policy.max_answers is None else min(policy.max_answers, there)
    if not 1 <= offer.queries <= most:
        raise Refused(Code.ANSWERS)
    kind = "votes" if offer.aggregate == "confident_votes" else offer.aggregate
    fitting = [m for m in (policy.mechanism, *policy.also) if kind in AGGREGATES[m]]
    if not fitting:
        raise Refused(Code.MECHANISM)
    if fitting[0] == "sum" and offer.clients < FEWEST_IN_A_SUM:
        raise Refused(Code.CLIENTS)
    return fitting[0]


def check_plan(policy: Policy, contract: Contract | None, plan: Plan, block: str = ALL) -> None:
    """Raise Refused for a plan outside its contract, to be answered from a data block. Only learning needs no
    contract."""
    if plan.proxy not in policy.proxies:
        raise Refused(Code.PROXY)
    if not plan.answer:
        return
    if contract is None:
        raise Refused(Code.NO_CONTRACT)
    if plan.proxy != contract.proxy or not allows(policy, contract, block):
        raise Refused(Code.CONTRACT)
    if not 1 <= plan.round <= contract.rounds:
        raise Refused(Code.ROUNDS)
    if not _asks(plan, contract):
        raise Refused(Code.ANSWERS)


def _asks(plan: Plan, contract: Contract) -> bool:
    """Whether a plan asks for as many different proxy examples as were agreed to; no ids stand for all."""
    if not len(plan.asked):
        return contract.queries == contract.pool
    rising = bool((plan.asked[1:] > plan.asked[:-1]).all())
    return len(plan.asked) == contract.queries and rising and int(plan.asked[-1]) < contract.pool


def allows(policy: Policy, contract: Contract, block: str = ALL) -> bool:
    """Whether today's policy still is the one that the contract was drawn up under, for answers from a data block; only
    a higher limit may differ.

    A client who has since asked for more protection gets it at once.
    """
    limits, agreed = contract.limits, (contract.training, contract.limits.delta, contract.noise)
    epsilon = policy.limit(block if contract.mechanism == "dp_sgd" else ALL)
    within = limits.epsilon <= epsilon and all(
        new is None or (old is not None and old <= new)
        for old, new in ((limits.client, policy.client_epsilon), (limits.lifetime, policy.lifetime_epsilon))
    )
    allowed = contract.mechanism in (policy.mechanism, *policy.also)
    loud = contract.mechanism == "none" or all(e.noise_multiplier >= policy.min_noise for e in contract.events)
    shards = contract.mechanism != "votes" or contract.shards == policy.shards
    few = contract.rounds <= policy.max_rounds
    few &= contract.mechanism != "dp_sgd" or contract.block_rounds == policy.block_rounds
    few &= policy.max_answers is None or contract.queries <= policy.max_answers
    return agreed == (_training(policy), policy.delta, policy.noise) and within and allowed and loud and shards and few


def _training(policy: Policy) -> Training:
    divisor = policy.nominal_examples * policy.sample_rate
    return Training(policy.steps, policy.sample_rate, policy.clip, divisor)


def _noise(offer: Offer, past: Past, cost: Cost, limits: Limits, least: float, block_rounds: int | None) -> float:
    """The smallest noise with which every limit holds over the whole run, and no less than the policy's least.

    Where a block has rounds of its own, its limit holds for so many. How many it really has is chosen as they come:
    each is one fixed mechanism or nothing, which so many rounds of it dominate (Zhu, Dong & Wang 2022,
    arXiv:2106.08567, theorem 10). The ledger refuses a round beyond the limit.
    """
    if not cost.shape:
        return 0.0
    by = past.accountant([*cost.events(1.0)] * offer.rounds, limits.delta, another=True)
    order = by if isinstance(by, RenyiFilter) else None
    columns, most = limits.columns(past.events, cost.blocks[0]), min(offer.rounds, block_rounds or offer.rounds)
    own = len(columns) - sum(limit is not None for limit in (limits.client, limits.lifetime))
    try:
        found = [
            _calibrated(unit, some, cost, most if index < own else offer.rounds, limit, limits.delta, order)
            for index, (unit, limit, some) in enumerate(columns)
        ]
    except BudgetExceeded:
        raise Refused(Code.EXHAUSTED) from None
    return max([*found, cost.loud(least)])


def _variances(cost: Cost, noise: float) -> tuple[int, ...]:
    try:
        return cost.variances(noise)
    except PrivacyError:  # so little is left that the noise would be larger than any that is drawn exactly
        raise Refused(Code.EXHAUSTED) from None


def _calibrated(
    unit: Unit, past: list[PrivacyEvent], cost: Cost, rounds: int, limit: float, delta: float, by: RenyiFilter | None
) -> float:
    """Noise for one limit: past and future as its unit sees them."""
    seen = seen_by(unit, [*past, *cost.events(1.0)])
    before, future = seen[: len(past)], seen[len(past) :]
    if not all(event.protects for event in future):
        raise BudgetExceeded(f"this mechanism bounds nothing for one {unit}")
    shape = tuple((event.noise_multiplier, event.sample_rate, event.steps * rounds) for event in future)
    return calibration.calibrate(before, shape, limit, delta, by)
