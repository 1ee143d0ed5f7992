"""What a document says, whatever it is written in: text, Markdown, HTML.

Renderers decide how a part looks, never whether it is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar, cast


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more."""

    text: str


@dataclass(frozen=True)
class Fields:
    """(name, value) pairs. An empty name continues the one before."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Bullets:
    """A list under a title of its own."""

    title: str
    items: tuple[str, ...]
    warning: bool = False


@dataclass(frozen=True)
class Beside:
    """Two lists of equal weight, next to each other where there is room."""

    left: Bullets
    right: Bullets


@dataclass(frozen=True)
class Table:
    """Rows as wide as the header. ``folded`` ones may start closed where a reader can open them."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers alone, to be set flush right."""
        return all(_is_number(row[column]) for row in self.rows)


@dataclass(frozen=True)
class Series:
    """Points (x, y) in order of x; y may be infinite."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Lines:
    """Curves over one axis. ``summary`` says in words what they show, for who cannot see them."""

    title: str
    summary: str
    x: str
    y: str
    series: tuple[Series, ...]
    log_x: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Bar:
    """How much of a limit is used; both may be infinite."""

    label: str
    used: float
    limit: float


@dataclass(frozen=True)
class Bars:
    """A bar for every limit, each on a scale of its own."""

    title: str
    summary: str
    bars: tuple[Bar, ...]


Figure = Lines | Bars
Part = Paragraph | Fields | Bullets | Beside | Table | Lines | Bars


@dataclass(frozen=True)
class Section:
    """Parts under a heading; ``anchor`` is what a table's cells with the same text lead to."""

    title: str
    parts: tuple[Part, ...]
    anchor: str | None = None


@dataclass(frozen=True)
class Document:
    """``lead`` is read first; ``good`` is whether it promises anything."""

    title: str
    good: bool
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


T = TypeVar("T")


def cleaned(value: T) -> T:
    """The same document with ``visible`` texts only."""
    if isinstance(value, str):
        return cast(T, visible(value))
    if isinstance(value, tuple):
        return cast(T, tuple(cleaned(item) for item in value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: cleaned(getattr(value, field.name)) for field in fields(value)})
    return value


def visible(text: str) -> str:
    """``text`` on one line, with control and direction characters spelt out: names are other people's strings, and
    must not move a terminal's cursor or turn what is printed beside them around."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def shortened(text: str, width: int) -> str:
    """At most ``width`` characters, the last an ellipsis if some are left out."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def rows(values: Iterable[Iterable[object]]) -> tuple[tuple[str, ...], ...]:
    """Rows of a table, each cell as ``show`` has it."""
    return tuple(tuple(show(value) for value in row) for row in values)


def show(value: object) -> str:
    """A number for people, with every digit of a reported epsilon; infinity is never blank."""
    if value in ("inf", math.inf):
        return "∞"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def used_of(bar: Bar) -> float:
    """Which part of its limit is used, from 0 to 1."""
    if math.isinf(bar.used):
        return 1.0
    return min(bar.used / bar.limit, 1.0) if 0 < bar.limit < math.inf else 0.0


def _is_number(cell: str) -> bool:
    if cell in ("∞", ""):
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True
