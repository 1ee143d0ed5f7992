"""How labels and cells become numbers: public, the same for all parties, configured or fitted on the proxy set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fedkd.config import Column, Data
from fedkd.errors import DataError

_ELSEWHERE = {"source", "path", "test_fraction"}
_FIX = "all parties need one encoding: agree on one 'data' block, and build the proxy set with it"


def fitted(data: Data, public: NDArray[Any]) -> Data:
    """``data`` with mean and standard deviation of the public examples [q, d], which were encoded by it, for every
    numeric column that has none. A column that is constant there is only centred.
    """
    columns = [_fitted(c, public[:, at]) for c, at in zip(data.columns, _starts(data), strict=True)]
    return data.model_copy(update={"columns": tuple(columns)})


def _fitted(column: Column, values: NDArray[Any]) -> Column:
    if column.categories or column.mean is not None:
        return column
    mean, sd = (float(getattr(values.astype(np.float64), name)()) for name in ("mean", "std"))
    return column.model_copy(update={"mean": mean, "sd": sd or 1.0})


def _starts(data: Data) -> Iterator[int]:
    """The first input of every column."""
    at = 0
    for column in data.columns:
        yield at
        at += len(column.categories) or 1


def describe(data: Data) -> dict[str, Any]:
    """What a proxy set says of how its examples were read; nothing, where there was nothing to say."""
    return data.model_dump(mode="json", exclude=_ELSEWHERE, exclude_defaults=True)


def agreed(data: Data, described: Any, where: str) -> Data:
    """``data`` with the means and standard deviations of a proxy set where it has none of its own.

    ``described`` is what describe said of the proxy set. Raises DataError where labels or columns are not those of the
    proxy set, and for a numeric column that neither scales: private rows must not be what scales it.
    """
    labels, columns = _read(described, where)
    if data.labels and labels and data.labels != labels:
        raise _differs("the labels are", data.labels, labels, where)
    if data.columns and columns:
        names, known = ([column.name for column in some] for some in (data.columns, columns))
        if names != known:
            raise _differs("the columns are", names, known, where)
        data = data.model_copy(update={"columns": tuple(map(_agreed, data.columns, columns, [where] * len(columns)))})
    for column in data.columns:
        if not column.categories and column.mean is None:
            raise DataError(
                f"column {column.name!r} has no mean and sd, and the proxy set has none for it",
                where=where,
                fix="give both; take public numbers, never those of private rows",
            )
    return data


def _read(described: Any, where: str) -> tuple[tuple[str, ...], tuple[Column, ...]]:
    try:
        columns = tuple(Column.model_validate(column) for column in described.get("columns", ()))
        return tuple(str(label) for label in described.get("labels", ())), columns
    except (ValidationError, TypeError, AttributeError) as error:
        raise DataError(f"the proxy set describes no encoding that can be read: {error}", where=where) from None


def _agreed(own: Column, known: Column, where: str) -> Column:
    if own.categories != known.categories:
        raise _differs(f"column {own.name!r} has the categories", own.categories, known.categories, where)
    if own.mean is not None and (own.mean, own.sd) != (known.mean, known.sd):
        raise _differs(f"column {own.name!r} has mean and sd", (own.mean, own.sd), (known.mean, known.sd), where)
    return own.model_copy(update={"mean": known.mean, "sd": known.sd})


def _differs(what: str, own: Any, known: Any, where: str) -> DataError:
    return DataError(f"{what} {list(own)}, those of the proxy set {list(known)}", where=where, fix=_FIX)
