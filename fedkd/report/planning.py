"""What a schedule comes to before anything is run: noise from epsilon, epsilon from noise, rounds from both.

The numbers are those that a client's agent would calibrate and charge: the same costs, limits and accountants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from pydantic import ValidationError

from fedkd.config import AGGREGATES, FEW_IN_A_SUM, FEWEST_IN_A_SUM, Mechanism, Policy
from fedkd.errors import BudgetExceeded, ConfigError, PrivacyError
from fedkd.privacy import calibration
from fedkd.privacy.accounting import Accountant, checked
from fedkd.privacy.blocks import ALL
from fedkd.privacy.calibration import MAX_NOISE, MIN_NOISE
from fedkd.privacy.costs import Cost, cost_of
from fedkd.privacy.events import PrivacyEvent, Unit
from fedkd.privacy.filters import RenyiFilter
from fedkd.privacy.limits import Limits, Past
from fedkd.privacy.units import seen_by

MOST_ROUNDS = 10_000
"""A run has no more."""


@dataclass(frozen=True)
class Schedule:
    """What is public about a run. ``answers`` proxy examples are asked a round; ``clients`` and ``examples`` (of one
    client) are public guesses, never true counts."""

    mechanism: Mechanism = "dp_sgd"
    steps: int = 8
    sample_rate: float = 1.0
    answers: int = 400
    threshold: bool = False
    noise_ratio: float = 3.0
    shards: int = 1
    clients: int | None = None
    examples: int | None = None
    delta: float = 1e-5
    block: str = ALL
    past: Past = field(default_factory=Past)
    client_limit: float | None = None
    lifetime_limit: float | None = None

    @cached_property
    def cost(self) -> Cost:
        """Of one round, as an agent with such a policy would charge it for such an offer."""
        policy = self._policy()
        kind = "confident_votes" if self.threshold else AGGREGATES[self.mechanism][0]
        return cost_of(self.mechanism, policy, self.answers, kind, self.block)

    def _policy(self) -> Policy:
        try:
            return self._as_policy()
        except ValidationError as error:
            what = str(error.errors()[0]["msg"])
            raise ConfigError(f"there is no such plan: {what}", fix="see fedkd budget plan --help") from None

    def _as_policy(self) -> Policy:
        return Policy(
            mechanism=self.mechanism,
            epsilon=1.0,
            delta=self.delta,
            steps=self.steps,
            sample_rate=self.sample_rate,
            noise_ratio=self.noise_ratio,
            shards=self.shards,
            accept_low_utility=True,
            nominal_examples=1,
            proxies=("-",),
        )

    def events(self, noise: float, rounds: int) -> list[PrivacyEvent]:
        """Those of the whole run."""
        return [replace(event, steps=event.steps * rounds) for event in self.cost.events(noise)]

    def accountant(self) -> Accountant:
        """What would bound this run after that past."""
        return self.past.accountant(self.events(1.0, 1), self.delta, another=True)

    def epsilon(self, noise: float, rounds: int, unit: Unit | None = None) -> float:
        """What one unit would have spent over the life of the ledger, the largest over its blocks; by default the unit
        that the mechanism protects. Raises PrivacyError for a delta that cannot be accounted for."""
        unit = unit or self.cost.unit
        more, accountant = self.events(noise, rounds), self.accountant()
        blocks = Limits(unit, math.inf, self.delta).columns(self.past.events, self.cost.blocks[0])
        return max(accountant.spent(seen_by(unit, [*some, *more]), self.delta).epsilon for _, _, some in blocks)

    def spent(self) -> float:
        """What that unit has spent already."""
        blocks = Limits(self.cost.unit, math.inf, self.delta).columns(self.past.events, self.cost.blocks[0])
        seen = (seen_by(self.cost.unit, some) for _, _, some in blocks)
        return max(self.past.accountant((), self.delta, another=False).spent(some, self.delta).epsilon for some in seen)

    def noise(self, epsilon: float, rounds: int) -> float:
        """The smallest noise multiplier with which the run stays within every limit. Raises BudgetExceeded."""
        columns = self._limits(epsilon).columns(self.past.events, self.cost.blocks[0])
        return max(self._calibrated(unit, some, limit, rounds) for unit, limit, some in columns)

    def rounds(self, epsilon: float, noise: float) -> int:
        """The largest number of rounds within every limit, at most MOST_ROUNDS. Raises BudgetExceeded if it is 0."""
        limits, accountant = self._limits(epsilon), self.accountant()

        def fits(rounds: int) -> bool:
            return limits.admits([*self.past.events, *self.events(noise, rounds)], accountant)

        if not fits(1):
            raise BudgetExceeded(
                f"not one round fits: with a noise multiplier of {noise:g} it comes to epsilon "
                f"{self.epsilon(noise, 1):g}, where {epsilon:g} is the limit",
                fix="take more noise, fewer steps or answers, or a larger epsilon",
            )
        return _largest(fits, MOST_ROUNDS)

    def _limits(self, epsilon: float) -> Limits:
        return Limits(self.cost.unit, epsilon, self.delta, self.client_limit, self.lifetime_limit)

    def _calibrated(self, unit: Unit, past: Sequence[PrivacyEvent], limit: float, rounds: int) -> float:
        seen = seen_by(unit, [*past, *self.events(1.0, rounds)])
        future = seen[len(past) :]
        if not all(event.protects for event in future):
            raise BudgetExceeded(f"the mechanism {self.mechanism!r} bounds nothing for one {unit}, and the ledger does")
        by = self.accountant()
        shape = tuple((event.noise_multiplier, event.sample_rate, event.steps) for event in future)
        order = by if isinstance(by, RenyiFilter) else None
        return calibration.calibrate(seen[: len(past)], shape, limit, self.delta, order)


@dataclass(frozen=True)
class Plan:
    """A schedule with its noise multiplier, its rounds, and the epsilon that they spend together with the past;
    ``asked`` is the one of the three that was worked out."""

    schedule: Schedule
    asked: str
    epsilon: float
    noise: float
    rounds: int

    @property
    def other(self) -> tuple[Unit, float]:
        """The unit that the mechanism does not protect by itself, and what it spends all the same."""
        unit: Unit = "client" if self.schedule.cost.unit == "example" else "example"
        return unit, self.schedule.epsilon(self.noise, self.rounds, unit)


def plan(schedule: Schedule, epsilon: float | None, noise: float | None, rounds: int | None) -> Plan:
    """Works out the one of the three that is None.

    Raises ConfigError unless just one is, BudgetExceeded where there is no such schedule, and PrivacyError for what an
    agent would refuse.
    """
    _check(schedule, epsilon, noise)
    if epsilon is not None and rounds is not None and noise is None:
        return _found(schedule, "noise", schedule.noise(epsilon, rounds), rounds)
    if noise is not None and rounds is not None and epsilon is None:
        return _found(schedule, "epsilon", noise, rounds)
    if noise is not None and epsilon is not None and rounds is None:
        return _found(schedule, "rounds", noise, schedule.rounds(epsilon, noise))
    raise ConfigError("two of epsilon, noise and rounds give the third", fix="give two of --epsilon, --noise, --rounds")


def _found(schedule: Schedule, asked: str, noise: float, rounds: int) -> Plan:
    schedule.cost.variances(noise)  # refuses noise that cannot be drawn exactly
    return Plan(schedule, asked, schedule.epsilon(noise, rounds), noise, rounds)


def what_if(found: Plan) -> dict[str, list[tuple[float, float]]]:
    """Epsilon with other rounds, other noise, and other sampling rates (of DP-SGD), all else as planned."""
    schedule, noise, rounds = found.schedule, found.noise, found.rounds
    tables = {
        "rounds": [(float(n), schedule.epsilon(noise, n)) for n in _around(rounds, MOST_ROUNDS)],
        "noise": [(z, schedule.epsilon(z, rounds)) for z in (_rounded(noise * factor) for factor in FACTORS)],
    }
    if schedule.mechanism == "dp_sgd":
        rates = sorted({min(schedule.sample_rate * factor, 1.0) for factor in FACTORS})
        tables["sample rate"] = [(q, replace(schedule, sample_rate=q).epsilon(noise, rounds)) for q in rates]
    return tables


def over_rounds(found: Plan) -> dict[float, list[tuple[float, float]]]:
    """Noise multiplier -> epsilon after some of twice the planned rounds."""
    ends = sorted({max(1, round(2 * found.rounds * part / POINTS)) for part in range(1, POINTS + 1)})
    return {
        z: [(float(n), found.schedule.epsilon(z, n)) for n in ends]
        for z in (_rounded(found.noise * factor) for factor in (0.5, 1.0, 2.0))
    }


def warnings(found: Plan) -> Iterator[str]:
    """What a reader of the numbers should know."""
    schedule = found.schedule
    people = schedule.examples if schedule.cost.unit == "example" else schedule.clients
    if people is not None and schedule.delta >= 1 / people:
        yield (
            f"delta {schedule.delta:g} is not below 1/{people}: publishing a few of {people} in full would satisfy it; "
            "choose a smaller delta"
        )
    if schedule.mechanism == "sum" and schedule.clients is not None and schedule.clients < FEW_IN_A_SUM:
        yield f"the noise is large against the votes of {schedule.clients} clients: expect little"
    if schedule.mechanism == "gaussian":
        yield "noise on every answer drowns the answers of fewer than hundreds of clients"
    if isinstance(schedule.accountant(), RenyiFilter):
        yield (
            "sampled rounds that may depend on earlier answers are bounded by a Renyi filter, which costs more than "
            "rounds that were fixed in advance"
        )


FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
POINTS = 12


def _check(schedule: Schedule, epsilon: float | None, noise: float | None) -> None:
    """Refuse what an agent would refuse, or no accountant can say."""
    checked(schedule.delta)
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise ConfigError("an epsilon to plan with is above 0 and finite", where=f"epsilon = {epsilon:g}")
    if noise is not None and not MIN_NOISE <= noise <= MAX_NOISE:
        raise ConfigError(f"a noise multiplier is between {MIN_NOISE:g} and {MAX_NOISE:g}", where=f"noise = {noise:g}")
    if schedule.mechanism == "dp_sgd" and schedule.steps * schedule.sample_rate <= schedule.delta:
        raise PrivacyError("steps x sample rate is below delta: any noise would do", fix="choose a smaller delta")
    if schedule.mechanism == "sum" and schedule.clients is not None and schedule.clients < FEWEST_IN_A_SUM:
        raise PrivacyError(
            f"a noised sum of fewer than {FEWEST_IN_A_SUM} clients is refused: its noise drowns them",
            fix="take dp_sgd, or find more clients",
        )


def _around(rounds: int, most: int) -> list[int]:
    return sorted({min(max(1, round(rounds * factor)), most) for factor in FACTORS})


def _rounded(value: float) -> float:
    """To the grain of noise multipliers."""
    return round(value, 4)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number that fits, of 1 (which does) to ``most``; all below one that fits do too."""
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
