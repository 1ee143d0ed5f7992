"""A document as plain text for a terminal or a file: 100 columns, no colours; a figure is told in words."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import assert_never

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from fedkd.report.document import Bars, Beside, Bullets, Document, Fields, Lines, Paragraph, Part, Table

WIDTH = 100


def render_text(document: Document) -> str:
    """The whole text, beginning with the sentence that is read first."""
    buffer = StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    for sentence in document.lead:
        console.print(Text(sentence))
    for section in document.sections:
        console.print(Text(f"\n{section.title}\n{'-' * len(section.title)}"))
        for part in section.parts:
            _part(console, part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _part(console: Console, part: Part) -> None:
    match part:
        case Paragraph():
            console.print(Text(part.text))
        case Fields():
            _fields(console, part.rows)
        case Bullets():
            _bullets(console, part)
        case Beside():
            _bullets(console, part.left)
            _bullets(console, part.right)
        case Table():
            _table(console, part)
        case Lines() | Bars():
            console.print(Text(f"{part.title}: {part.summary}"))
        case _:
            assert_never(part)


def _bullets(console: Console, part: Bullets) -> None:
    items = ((part.title if not index else "", f"- {item}") for index, item in enumerate(part.items))
    _fields(console, items)


def _fields(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(width=20)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    console.print(grid)


def _table(console: Console, table: Table) -> None:
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column, name in enumerate(table.header):
        right = bool(table.rows) and table.numeric(column)
        grid.add_column(name, overflow="fold", justify="right" if right else "left")
    for row in table.rows:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(Text(f"\n{table.caption}"))
    console.print(Padding(grid, (0, 0, 1, 2)))
