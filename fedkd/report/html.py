"""A document as one HTML page that needs nothing else: no script, no resource, for screen and paper.

Whatever a document holds is text: all of it is escaped, and the page's policy forbids it to load or run anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import assert_never

from fedkd.report.document import (
    Bars,
    Beside,
    Bullets,
    Document,
    Fields,
    Figure,
    Lines,
    Paragraph,
    Part,
    Section,
    Table,
)
from fedkd.report.style import STYLE
from fedkd.report.svg import svg

POLICY = "default-src 'none'; style-src 'unsafe-inline'"

EXPONENT, WHOLE = re.compile(r"\de-\d+"), r'<span class="whole">\g<0></span>'

UNBROKEN = 24
"""Characters of a name that is kept on one line."""

WIDE = 40
"""Characters of a text that is not squeezed into a narrow column."""

SHORT = 12
"""Rows of a table that stays on one page of paper."""


def render_html(document: Document) -> str:
    """The whole page."""
    page = _Page({section.title: section.anchor for section in document.sections if section.anchor})
    body = "\n".join([*_head(document), *(page.section(section) for section in document.sections)])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(document.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _head(document: Document) -> Iterator[str]:
    yield f"<header><h1>{escape(document.title)}</h1>"
    yield f'<div class="lead {"good" if document.good else "bad"}">'
    # a number is not to be broken at its minus sign
    yield from (f"<p>{EXPONENT.sub(WHOLE, escape(sentence))}</p>" for sentence in document.lead)
    yield "</div></header>"


class _Page:
    """Numbers the figures, and knows which names have a section to lead to."""

    def __init__(self, anchors: Mapping[str, str]) -> None:
        self._anchors, self._figures = anchors, 0

    def section(self, section: Section) -> str:
        anchor = f' id="{escape(section.anchor)}"' if section.anchor else ""
        parts = "\n".join(self._part(part) for part in section.parts)
        kind = "client" if section.anchor else "topic"
        return f'<section class="{kind}"{anchor}>\n<h2>{escape(section.title)}</h2>\n{parts}\n</section>'

    def _part(self, part: Part) -> str:
        match part:
            case Paragraph():
                return f"<p>{escape(part.text)}</p>"
            case Fields():
                return _fields(part)
            case Bullets():
                return _bullets(part)
            case Beside():
                return f'<div class="beside">{_bullets(part.left)}{_bullets(part.right)}</div>'
            case Table():
                return self._table(part)
            case Lines() | Bars():
                return self._figure(part)
        assert_never(part)

    def _figure(self, figure: Figure) -> str:
        self._figures += 1
        caption = f"<figcaption><strong>{escape(figure.title)}</strong><br>{escape(figure.summary)}</figcaption>"
        return f"<figure>{caption}{_scrolling(figure.title, svg(figure, self._figures))}</figure>"

    def _table(self, table: Table) -> str:
        numeric = [table.numeric(column) for column in range(len(table.header))]
        head = _cells("th", table.header, numeric, ' scope="col"')
        rows = "\n".join(f"<tr>{self._row(row, numeric)}</tr>" for row in table.rows)
        body = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
        caption = escape(table.caption)
        size = "short" if len(table.rows) <= SHORT else "long"
        drawn = f'<table class="{size}"><caption>{caption}</caption>\n{body}\n</table>'
        whole = _scrolling(table.caption, drawn)
        return (
            f"<details><summary>{caption}, {len(table.rows)} rows</summary>{whole}</details>" if table.folded else whole
        )

    def _row(self, row: Iterable[str], numeric: list[bool]) -> str:
        first, *others = row
        anchor = self._anchors.get(first)
        name = f'<a href="#{escape(anchor)}">{escape(first)}</a>' if anchor else escape(first)
        kinds = ("number" if numeric[0] else "", "whole" if len(first) <= UNBROKEN else "")
        return f'<th scope="row" class="{" ".join(kinds).strip()}">{name}</th>{_cells("td", others, numeric[1:])}'


def _scrolling(name: str, content: str) -> str:
    """A region that scrolls where it is too wide; the keyboard reaches it too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{content}</div>'


def _cells(tag: str, cells: Iterable[str], numeric: Iterable[bool], more: str = "") -> str:
    pairs = zip(cells, numeric, strict=True)
    return "".join(f"<{tag}{more}{_kind(cell, right)}>{escape(cell)}</{tag}>" for cell, right in pairs)


def _kind(cell: str, right: bool) -> str:
    kind = "number" if right else "wide" if len(cell) > WIDE else ""
    return f' class="{kind}"' if kind else ""


def _fields(part: Fields) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in part.rows)
    return f"<dl>{rows}</dl>"


def _bullets(part: Bullets) -> str:
    items = "".join(f"<li>{escape(item)}</li>" for item in part.items)
    kind = "warning" if part.warning else "plain"
    return f'<div class="list {kind}"><h3>{escape(part.title)}</h3><ul>{items}</ul></div>'
