"""The one exception a user meets: what happened, where, and what to do about it."""

from __future__ import annotations

from typing import Self


class FedkdError(Exception):
    """An error that a user can cause and can mend.

    ``what`` says what happened, ``where`` names the file, key, line or client, ``fix`` says what to do.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def at(self, place: str) -> Self:
        """The same error, told with the place where it came up."""
        return type(self)(self.what, where=f"{place}: {self.where}" if self.where else place, fix=self.fix)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[FedkdError], what: str, where: str, fix: str) -> FedkdError:
    return kind(what, where=where, fix=fix)


class ConfigError(FedkdError):
    """A configuration that cannot be used as it is written."""


class DataError(FedkdError):
    """Data that is missing, of the wrong shape, or not finite."""


class WireError(FedkdError):
    """A message that is not exactly what the schema admits."""


class PrivacyError(FedkdError):
    """A combination that would break a privacy guarantee, and is therefore refused."""


class BudgetExceeded(PrivacyError):
    """The ledger refuses an event: it would spend more than the policy allows."""


class LedgerError(FedkdError):
    """A ledger that cannot be read, or whose entries contradict each other."""


class ClientFailure(FedkdError):
    """Too few clients answered for the round to count."""
