"""A document as Markdown. A figure is told in words: a table has its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import assert_never

from fedkd.report.document import (
    Bars,
    Beside,
    Bullets,
    Document,
    Fields,
    Lines,
    Paragraph,
    Part,
    Section,
    Table,
)

SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+\-!|~&@:$^=])")
"""Every character that may begin markup, a link or HTML somewhere in Markdown or in a common dialect of it."""


def render_markdown(document: Document) -> str:
    """The whole text."""
    return "\n\n".join(_blocks(document)) + "\n"


def _blocks(document: Document) -> Iterator[str]:
    yield f"# {plain(document.title)}"
    yield from (f"> {plain(sentence)}" for sentence in document.lead)
    for section in document.sections:
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    yield f"## {plain(section.title)}"
    for part in section.parts:
        yield from _part(part)


def _part(part: Part) -> Iterator[str]:
    match part:
        case Paragraph():
            yield plain(part.text)
        case Fields():
            yield _items(f"**{plain(name)}**: {plain(value)}" if name else plain(value) for name, value in part.rows)
        case Bullets():
            yield from _bullets(part)
        case Beside():
            yield from (*_bullets(part.left), *_bullets(part.right))
        case Table():
            yield f"**{plain(part.caption)}**"
            yield _table(part)
        case Lines() | Bars():
            yield f"*{plain(part.title)}*: {plain(part.summary)}"
        case _:
            assert_never(part)


def _bullets(part: Bullets) -> Iterator[str]:
    yield f"### {plain(part.title)}"
    yield _items(plain(item) for item in part.items)


def _items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(table: Table) -> str:
    rules = ("---:" if table.numeric(column) else "---" for column in range(len(table.header)))
    rows = (table.header, *table.rows)
    head, *body = (_row(plain(cell) for cell in row) for row in rows)
    return "\n".join([head, _row(rules), *body])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """``text`` as itself, with nothing in it that Markdown would take for markup."""
    return SPECIAL.sub(r"\\\1", text)
