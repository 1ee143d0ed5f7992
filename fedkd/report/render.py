"""One report in every form that it is given in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fedkd.report.content import budget_document
from fedkd.report.html import render_html
from fedkd.report.markdown import render_markdown
from fedkd.report.plain import render_text
from fedkd.report.schema import BudgetReport

Form = Literal["text", "json", "html", "md"]

FORMS: dict[Form, Callable[[BudgetReport], str]] = {
    "text": lambda report: render_text(budget_document(report)),
    "json": lambda report: json.dumps(report.record(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    "html": lambda report: render_html(budget_document(report)),
    "md": lambda report: render_markdown(budget_document(report)),
}


def form_of(file: Path | None) -> Form:
    """The form that a file's name asks for, text for any other name."""
    named: dict[str, Form] = {".json": "json", ".html": "html", ".htm": "html", ".md": "md"}
    return named.get(file.suffix.lower(), "text") if file is not None else "text"


def render(report: BudgetReport, form: Form) -> str:
    """The whole text of a report."""
    return FORMS[form](report)
