"""What a client agrees to for a whole run, decided by its own policy before the first round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedkd.config import Policy
from fedkd.errors import BudgetExceeded
from fedkd.privacy import calibration
from fedkd.privacy.accounting import composable
from fedkd.privacy.events import PrivacyEvent
from fedkd.tensors import canonical, digest
from fedkd.wire import Code, Offer, Plan


class Refused(Exception):
    """The client says no. The code is all that the server learns."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.value)
        self.code = code


@dataclass(frozen=True)
class Contract:
    """``rounds`` events, all alike, fixed in advance: that is what lets their privacy losses be composed exactly.

    ``nominal_batch`` is the public divisor of the noised gradient sum; ``epsilon`` and ``delta`` are the policy's limit
    over the whole life of the ledger.
    """

    run: str
    proxy: str
    examples: int
    classes: int
    rounds: int
    codec: str
    event: PrivacyEvent
    clip: float
    nominal_batch: float
    epsilon: float
    delta: float
    noise: str

    def record(self) -> dict[str, Any]:
        """JSON-able form; ``from_record`` is its inverse."""
        return {**asdict(self), "event": self.event.record()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Contract:
        """Inverse of ``record``."""
        fields = {name: record[name] for name in cls.__dataclass_fields__ if name != "event"}
        return cls(**fields, event=PrivacyEvent.from_record(record["event"]))

    @property
    def hash(self) -> str:
        """The hash that the ledger registers."""
        return digest(canonical(self.record()))

    def answers(self, offer: Offer) -> bool:
        """Whether this is the contract of that offer."""
        mine = (self.run, self.proxy, self.examples, self.classes, self.rounds, self.codec)
        return mine == (offer.run, offer.proxy, offer.examples, offer.classes, offer.rounds, offer.codec)


def draw_up(policy: Policy, offer: Offer, past: Sequence[PrivacyEvent]) -> Contract:
    """The contract under which ``policy`` accepts ``offer``: noise enough that what the ledger has left is not
    overspent. Raises Refused."""
    check_offer(policy, offer)
    event = PrivacyEvent(policy.mechanism, _noise(policy, offer, past), policy.sample_rate, policy.steps)
    if not composable(past, event):
        raise Refused(Code.EXHAUSTED)
    return Contract(
        run=offer.run,
        proxy=offer.proxy,
        examples=offer.examples,
        classes=offer.classes,
        rounds=offer.rounds,
        codec=offer.codec,
        event=event,
        clip=policy.clip,
        nominal_batch=policy.nominal_examples * policy.sample_rate,
        epsilon=policy.epsilon,
        delta=policy.delta,
        noise=policy.noise,
    )


def check_offer(policy: Policy, offer: Offer) -> None:
    """Raise Refused for what the policy does not allow, whatever the ledger holds."""
    if offer.proxy not in policy.proxies:
        raise Refused(Code.PROXY)
    if not 1 <= offer.rounds <= policy.max_rounds:
        raise Refused(Code.ROUNDS)


def check_plan(policy: Policy, contract: Contract | None, plan: Plan) -> None:
    """Raise Refused for a plan outside its contract. Only learning needs no contract."""
    if plan.proxy not in policy.proxies:
        raise Refused(Code.PROXY)
    if not plan.answer:
        return
    if contract is None:
        raise Refused(Code.NO_CONTRACT)
    if plan.proxy != contract.proxy or not allows(policy, contract):
        raise Refused(Code.CONTRACT)
    if not 1 <= plan.round <= contract.rounds:
        raise Refused(Code.ROUNDS)


def allows(policy: Policy, contract: Contract) -> bool:
    """Whether today's policy still is the one that the contract was drawn up under; only a higher limit may differ.

    A client who has since asked for more protection gets it at once.
    """
    event = contract.event
    agreed = (event.mechanism, event.sample_rate, event.steps, contract.clip, contract.delta, contract.noise)
    wanted = (policy.mechanism, policy.sample_rate, policy.steps, policy.clip, policy.delta, policy.noise)
    divisor = policy.nominal_examples * policy.sample_rate
    return agreed == wanted and contract.nominal_batch == divisor and contract.epsilon <= policy.epsilon


def _noise(policy: Policy, offer: Offer, past: Sequence[PrivacyEvent]) -> float:
    if policy.mechanism == "none":
        return 0.0
    steps = policy.steps * offer.rounds
    try:
        return calibration.noise_multiplier(tuple(past), policy.sample_rate, steps, policy.epsilon, policy.delta)
    except BudgetExceeded:
        raise Refused(Code.EXHAUSTED) from None
