"""The cross-check: Opacus' accountant. The only accountant whose library imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version

import numpy as np

from fedkd.errors import PrivacyError
from fedkd.privacy.accounting import History, checked, history, pld_epsilon
from fedkd.privacy.events import PrivacyEvent, Spent

LIMIT = 100.0
"""Above this epsilon, which protects nobody, Opacus loses digits and then asks for gigabytes."""

EPSILON_ERROR = 0.01
"""What Opacus adds to its estimate to make it an upper bound, and hence how far it lies above a tight epsilon."""


class Prv:
    """Privacy random variables (Gopi, Lee & Wutschitz 2021, arXiv:2106.02848), an upper bound.

    Opacus fails on an empty history and is slow on one whose equal steps are not merged; both are seen to here.
    """

    name = f"PRV, opacus {version('opacus')}"

    def spent(self, events: Iterable[PrivacyEvent], delta: float) -> Spent:
        """See Accountant. Raises PrivacyError also where Opacus cannot compute, or above ``LIMIT``."""
        return Spent(_epsilon(history(events), checked(delta)), delta, self.name)


@lru_cache(maxsize=65536)
def _epsilon(entries: History | None, delta: float) -> float:
    if not entries:
        return float("inf") if entries is None else 0.0
    if pld_epsilon(entries, delta) > LIMIT:
        raise PrivacyError(f"Opacus cannot compute an epsilon above {LIMIT:g}")
    # Opacus takes logarithms of 0 at sample rate 1, overflows in tails that it then multiplies by 0, and warns of the
    # order of an RDP bound that only sizes its grid. An epsilon spoilt by any of it would fail the cross-check.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(z, rate, steps) for z, rate, steps in entries]
        try:
            result = float(accountant.get_epsilon(delta, eps_error=EPSILON_ERROR))
        except (RuntimeError, ValueError, FloatingPointError, OverflowError) as error:
            raise PrivacyError(f"Opacus cannot compute this epsilon: {error}") from None
    if not np.isfinite(result):
        raise PrivacyError("Opacus cannot compute this epsilon: the result is not finite")
    return result
