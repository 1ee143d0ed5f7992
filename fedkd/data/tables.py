"""Tables with typed columns as examples: every rule is written in the configuration, none is learnt from the rows."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.config import Column, Data
from fedkd.errors import DataError

Floats = NDArray[np.float32]
_FIXED = "the lists of labels and categories are fixed and public: correct the cell, or leave the row out"


@dataclass(frozen=True, eq=False)
class Table:
    """Cells by column, as texts or as plain values; ``place`` tells where row i is, for the owner's console."""

    cells: Mapping[str, Sequence[Any]]
    place: Callable[[int], str]


def wanted(data: Data, ids: str | None) -> list[str]:
    """The columns that a source has to read."""
    names = [data.label, *(column.name for column in data.columns), *([] if ids is None else [ids])]
    return list(dict.fromkeys(name for name in names if name is not None))


def read_csv(path: Path, names: Sequence[str]) -> Table:
    """These columns of a CSV file in UTF-8, with commas and a header, without the blanks around cells.

    Other columns are left alone. Raises DataError that names file and line for a file that cannot be read, a column
    that is not in the header, and a row of another length than the header.
    """
    cells: dict[str, list[str]] = {name: [] for name in names}
    lines: list[int] = []
    for line, row in _rows(path, names):
        lines.append(line)
        for name, cell in row.items():
            cells[name].append(cell)
    return Table(cells, lambda row: f"{path}:{lines[row]}")


def _rows(path: Path, names: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and wanted cells of every row that is not blank."""
    line = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            at = _positions(header, names, str(path))
            line = reader.line_num + 1
            for row in reader:
                if row and len(row) != len(header):
                    raise DataError(f"the row has {len(row)} cells, the header {len(header)}", where=f"{path}:{line}")
                if row:
                    yield line, {name: row[position].strip() for name, position in at.items()}
                line = reader.line_num + 1
    except FileNotFoundError:
        raise DataError("the file does not exist", where=str(path), fix="check 'path'") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not a CSV file in UTF-8: {error}", where=f"{path}:{line}") from None


def _positions(header: Sequence[str], names: Sequence[str], where: str) -> dict[str, int]:
    for name in names:
        if name not in header:
            near = difflib.get_close_matches(name, header, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the header has: {', '.join(header[:20]) or 'nothing'}"
            raise DataError(f"there is no column {name!r}", where=where, fix=hint)
        if header.count(name) > 1:
            raise DataError(f"the header has two columns {name!r}", where=where)
    return {name: header.index(name) for name in names}


def encode(table: Table, data: Data) -> dict[str, Any]:
    """A table's inputs x float32 [n, d], labels y int64 [n] and number of classes; with neither inputs nor an image
    there is no x.

    A numeric column gives (cell - mean) / sd, or the cell itself where the configuration has no mean and sd yet; a
    column with categories gives a one-hot vector. A missing cell counts as the column's ``fill``. Raises DataError
    naming line and column of the first cell that is missing, is no finite number, or is not in the fixed list.
    """
    assert data.label is not None
    cells = table.cells
    parts = [_one_hot(table, c, data) if c.categories else _numeric(table, c, data)[:, None] for c in data.columns]
    y = _positions_in(data.labels, cells[data.label], table, data.label, "label", data.missing)
    found: dict[str, Any] = {"y": y, "classes": len(data.labels)}
    return {**found, "x": np.concatenate(parts, axis=1)} if parts else found


def _numeric(table: Table, column: Column, data: Data) -> Floats:
    values = np.array([_number(cell, i, table, column) for i, cell in enumerate(_filled(table, column, data))])
    mean, sd = (0.0, 1.0) if column.mean is None or column.sd is None else (column.mean, column.sd)
    with np.errstate(over="ignore"):
        scaled = ((values - mean) / sd).astype(np.float32)
    if not np.isfinite(scaled).all():
        row = int(np.argmin(np.isfinite(scaled)))
        raise _refused("the number is too large", row, table, column.name)
    return scaled


def _number(cell: Any, row: int, table: Table, column: Column) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise _refused(f"{cell!r} is not a number", row, table, column.name) from None
    if not np.isfinite(value) or (isinstance(cell, str) and "_" in cell):  # Python would read 1_0 as 10
        raise _refused(f"{cell!r} is not a finite number", row, table, column.name)
    return value


def _one_hot(table: Table, column: Column, data: Data) -> Floats:
    cells = _filled(table, column, data)
    codes = _positions_in(column.categories, cells, table, column.name, "category", ())
    return np.eye(len(column.categories), dtype=np.float32)[codes]


def _filled(table: Table, column: Column, data: Data) -> list[Any]:
    """The column's cells, ``fill`` in the place of those that are missing."""
    cells = table.cells[column.name]
    missing = [_is_missing(cell, data.missing) for cell in cells]
    if column.fill is None and any(missing):
        fix = "give the column a public 'fill', or leave the row out"
        raise _refused("the cell is missing", missing.index(True), table, column.name, fix)
    return [column.fill if gone else cell for cell, gone in zip(cells, missing, strict=True)]


def owners(table: Table, name: str, data: Data) -> list[str]:
    """Whose each example is, as the column says it. Raises DataError for a cell without an owner."""
    cells = table.cells[name]
    for row, cell in enumerate(cells):
        if _is_missing(cell, data.missing) or cell == "":
            raise _refused("the owner is missing", row, table, name, "leave the row out")
    return [str(cell) for cell in cells]


def _positions_in(
    known: Sequence[str], cells: Sequence[Any], table: Table, name: str, what: str, missing: Sequence[str]
) -> NDArray[np.int64]:
    """Every cell's position in a fixed list."""
    number = {text: position for position, text in enumerate(known)}
    codes = np.empty(len(cells), np.int64)
    for row, cell in enumerate(cells):
        if _is_missing(cell, missing):
            raise _refused(f"the {what} is missing", row, table, name, "leave the row out")
        if str(cell) not in number:
            raise _refused(f"{what} {str(cell)!r} is not in the list", row, table, name, _FIXED)
        codes[row] = number[str(cell)]
    return codes


def _is_missing(cell: Any, missing: Sequence[str]) -> bool:
    return cell is None or (isinstance(cell, str) and cell in missing)


def _refused(what: str, row: int, table: Table, name: str, fix: str = "") -> DataError:
    return DataError(what, where=f"{table.place(row)}, column {name!r}", fix=fix)
