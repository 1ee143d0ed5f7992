"""Whether the errors of what a device serves say that its records have changed: a signal for the device alone.

It is made of private records. It may choose what is served, and never what trains, answers or takes part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from fedkd.errors import FedkdError

Kind = Literal["adwin", "page_hinkley"]


class DriftWatch:
    """ADWIN (Bifet & Gavaldà 2007) or Page-Hinkley (Page 1954), as ``river`` has them with its own settings."""

    def __init__(self, kind: Kind) -> None:
        """Raises FedkdError when river is not installed."""
        try:
            from river import drift
        except ImportError as error:
            raise FedkdError(
                f"drift needs a package that is not installed: {error}", fix="pip install 'fedkd[drift]'"
            ) from None
        self._detector: Any = drift.ADWIN() if kind == "adwin" else drift.PageHinkley()

    def see(self, wrong: Iterable[bool]) -> bool:
        """Whether these further answers, each wrong or not, show a change."""
        found = False
        for one in wrong:
            self._detector.update(int(one))
            found |= bool(self._detector.drift_detected)
        return found
