"""Events -> epsilon(delta), as pure functions of the events.

The number that limits and reports is ``Pld``; where sampled rounds were chosen after answers it is that of a filter
(``filters``). ``ClosedForm`` is exact for full batches, and the Opacus accountant in ``opacus_prv`` is the independent
cross-check. Events of one unit and adjacency are composed, never of two: ``units`` gives the events as one sees them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Protocol

from scipy.optimize import brentq
from scipy.special import log_ndtr

from fedkd.errors import PrivacyError
from fedkd.privacy.events import PrivacyEvent, Spent, merged
from fedkd.privacy.grid import grid

History = tuple[tuple[float, float, int], ...]
"""Sorted (noise_multiplier, sample_rate, steps); at most one entry has sample rate 1."""

REPORTED = 10_000
"""Epsilons are reported in multiples of 1/REPORTED."""

MIN_DELTA = 1e-10
"""Below it, convolutions by FFT in float64 are no longer an upper bound."""

CURVE_DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


class Accountant(Protocol):
    """A pure function from events to what they spend together; order does not matter."""

    @property
    def name(self) -> str:
        """The accountant and its library's version."""

    def spent(self, events: Iterable[PrivacyEvent], delta: float) -> Spent:
        """Epsilon of all events together. Raises PrivacyError for a unit, adjacency or delta it cannot account for."""


class Pld:
    """Privacy loss distributions (dp-accounting), both add and remove, discretised pessimistically by connecting dots
    (Doroshenko et al. 2022, arXiv:2207.04380). Epsilon is rounded up to 1/REPORTED, never down."""

    name = f"PLD, dp-accounting {version('dp-accounting')}"

    def spent(self, events: Iterable[PrivacyEvent], delta: float) -> Spent:
        """See Accountant."""
        return Spent(round_up(pld_epsilon(history(events), checked(delta))), delta, self.name)


class ClosedForm:
    """The exact epsilon of Gaussians on full batches; refuses any other sample rate."""

    name = f"Gaussian closed form, scipy {version('scipy')}"

    def spent(self, events: Iterable[PrivacyEvent], delta: float) -> Spent:
        """See Accountant. Raises PrivacyError also for a sample rate below 1."""
        entries = history(events)
        if entries and any(rate < 1 for _, rate, _ in entries):
            raise PrivacyError("the closed form holds for full batches only", fix="use the PLD accountant")
        mu = math.inf if entries is None else 1 / entries[0][0] if entries else 0.0
        return Spent(gaussian_epsilon(mu, checked(delta)), delta, self.name)


def history(events: Iterable[PrivacyEvent]) -> History | None:
    """What an accountant composes; None if some event gives no protection. Raises PrivacyError for mixed units.

    ``noise_multiplier`` is relative to the sensitivity under the events' own adjacency, so that every release is the
    Gaussian pair N(0, z^2) and N(1, z^2), whichever unit it protects. Full-batch Gaussians compose to one:
    mu^2 = sum steps/z^2 (Dong, Roth & Su 2019, arXiv:1905.02383, section 3.2).
    """
    events = list(events)
    if len({(event.unit, event.adjacency) for event in events}) > 1:
        raise PrivacyError(
            "events of two units or two adjacencies are not composed into one epsilon: two units, two numbers",
            fix="take them as one unit sees them (fedkd.privacy.units.seen_by)",
        )
    if not all(event.protects for event in events):
        return None
    return normal(tuple((z, rate, steps) for (z, rate), steps in merged(events).items()))


def normal(entries: History) -> History:
    """The one form of a history, whatever the order and grouping of its entries."""
    total: dict[tuple[float, float], int] = {}
    for z, rate, steps in entries:
        if rate < 1:
            total[z, rate] = total.get((z, rate), 0) + steps
    mu2 = math.fsum(sorted(steps / z**2 for z, rate, steps in entries if rate == 1))
    full: History = ((1 / math.sqrt(mu2), 1.0, 1),) if mu2 else ()
    return full + tuple(sorted((z, rate, steps) for (z, rate), steps in total.items()))


def adaptive(contracts: int, events: Iterable[PrivacyEvent]) -> bool:
    """Whether ``events`` of so many contracts need a filter: a later contract may depend on earlier answers.

    Full-batch Gaussians compose adaptively as they do in advance (Smith & Thakurta 2022, arXiv:2210.17520). Under
    Poisson sampling PLD bounds schedules that were fixed in advance, and those alone.
    """
    return contracts > 1 and any(event.sample_rate < 1 and event.protects for event in events)


def checked(delta: float) -> float:
    """``delta``, or PrivacyError where it cannot be accounted for."""
    if not MIN_DELTA <= delta < 1:
        raise PrivacyError(f"delta must be in [{MIN_DELTA:g}, 1)", where=f"delta = {delta!r}")
    return delta


def round_up(epsilon: float) -> float:
    """The next multiple of 1/REPORTED."""
    return epsilon if math.isinf(epsilon) else math.ceil(epsilon * REPORTED) / REPORTED


def epsilon(events: Iterable[PrivacyEvent], delta: float) -> float:
    """The epsilon that is reported: PLD, rounded up; 0 for no events, infinite if one does not protect."""
    return Pld().spent(events, delta).epsilon


def curve(events: Iterable[PrivacyEvent], deltas: Sequence[float] = CURVE_DELTAS) -> list[tuple[float, float]]:
    """Points (epsilon, delta) of the privacy curve, by PLD, in the order of ``deltas``."""
    events = list(events)
    return [(epsilon(events, delta), delta) for delta in deltas]


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta(eps) = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) of a mu-GDP Gaussian (Balle & Wang 2018,
    arXiv:1805.06530, theorem 8), in log space because e^eps overflows where the product is harmless."""
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return math.exp(first) * -math.expm1(min(second - first, 0.0))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Inverse of ``gaussian_delta`` in epsilon; 0 where mu spends less than delta alone."""
    if mu == 0 or math.isinf(mu):
        return mu
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    # delta <= Phi(mu/2 - eps/mu) <= exp(-t^2/2) for eps = mu^2/2 + mu t, so this epsilon is enough
    enough = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda eps: gaussian_delta(mu, eps) - delta, 0.0, enough, xtol=1e-12))


@lru_cache(maxsize=65536)
def pld_epsilon(entries: History | None, delta: float) -> float:
    """Epsilon of a history by PLD, not yet rounded: an upper bound up to float64 convolution error."""
    if entries is None:
        return math.inf
    return float(_pld(entries).get_epsilon_for_delta(delta)) if entries else 0.0


@lru_cache(maxsize=4)
def _pld(entries: History) -> Any:
    interval = grid(entries)
    first, *others = (_steps(*entry, interval) for entry in entries)
    for other in others:
        first = first.compose(other)
    return first


@lru_cache(maxsize=16)
def _steps(noise_multiplier: float, sample_rate: float, steps: int, interval: float) -> Any:
    one = _step(noise_multiplier, sample_rate, interval)
    return one.self_compose(steps) if steps > 1 else one


@lru_cache(maxsize=16)
def _step(noise_multiplier: float, sample_rate: float, interval: float) -> Any:
    """Cached by itself: a report composes the same step over ever more rounds, and to discretise it takes longest."""
    # imported here: the client relay and the command line should not wait for it
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=sample_rate,
        neighboring_relation=pld.NeighborRel.ADD_OR_REMOVE_ONE,
    )
