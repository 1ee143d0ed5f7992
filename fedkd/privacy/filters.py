"""What limits a ledger whose sampled rounds were chosen after answers: a Renyi filter at one order.

An accountant that composes tightly (PLD, PRV) assumes parameters fixed in advance. At one order that was fixed in
advance Renyi divergences add up however each round was chosen (Feldman & Zrnic 2021, arXiv:2008.11193, theorem 3.1;
Rogers et al. 2016, arXiv:1605.08294, for (epsilon, delta)); the filter refuses what would pass the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

from fedkd.privacy.accounting import History, checked, history, round_up
from fedkd.privacy.events import PrivacyEvent, Spent

ORDERS = tuple(1 + k / 10 for k in range(1, 100)) + tuple(range(11, 65)) + (96, 128, 192, 256, 512, 1024)


@dataclass(frozen=True)
class RenyiFilter:
    """Epsilon by Renyi divergence at ``order`` alone. An upper bound also for adaptively chosen events."""

    order: float

    @property
    def name(self) -> str:
        """The accountant and its library's version."""
        return f"Renyi filter of order {self.order:g}, dp-accounting {version('dp-accounting')}"

    def spent(self, events: Iterable[PrivacyEvent], delta: float) -> Spent:
        """See Accountant; conversion by Canonne, Kamath & Steinke 2020 (arXiv:2004.00010, proposition 12)."""
        return Spent(round_up(renyi_epsilon(history(events), checked(delta), self.order)), delta, self.name)


def first_choice(events: Iterable[PrivacyEvent], delta: float) -> RenyiFilter:
    """The filter whose order serves a ledger's first contract best, over its whole schedule.

    The first contract was fixed before any answer, so the order depends on nothing that is private.
    """
    entries = history(events)
    return RenyiFilter(min(ORDERS, key=lambda order: renyi_epsilon(entries, checked(delta), order)))


@lru_cache(maxsize=65536)
def renyi_epsilon(entries: History | None, delta: float, order: float) -> float:
    """Epsilon of a history at one order, not yet rounded."""
    if not entries:
        return math.inf if entries is None else 0.0
    # imported here: the client relay and the command line should not wait for it
    from dp_accounting import dp_event, rdp

    accountant = rdp.RdpAccountant([order])
    for z, rate, steps in entries:
        one: dp_event.DpEvent = dp_event.GaussianDpEvent(z)
        if rate < 1:
            one = dp_event.PoissonSampledDpEvent(rate, one)
        accountant.compose(dp_event.SelfComposedDpEvent(one, steps))
    return float(accountant.get_epsilon(delta))
