"""Every form says the same, runs nothing, loads nothing, and takes names for what they are: text."""

from __future__ import annotations

import html.parser
import itertools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fedkd.report.budget import budget_report
from fedkd.report.content import DETAILED
from fedkd.report.document import Bar, Bars, Document, Fields, Lines, Section, Series, Table, visible
from fedkd.report.html import render_html
from fedkd.report.markdown import plain, render_markdown
from fedkd.report.plain import render_text
from fedkd.report.render import render
from fedkd.report.schema import json_schema
from tests.exports import agreed, dp_sgd, export, none

HOSTILE = "<script>alert(1)</script>\"'&|`*_[x](javascript:y)<img src=http://evil/x onerror=z>\x1b[2J\u202e\n# h"

REPORTS: dict[str, dict[str, Any]] = {
    "one client": {"a": export(dp_sgd())},
    "nothing charged": {"a": export()},
    "no clients": {},
    "no privacy": {"a": export(none()), "b": export(dp_sgd())},
    "blocks": {"a": export(agreed(block="spring", lifetime_epsilon=5.0))},
    "sampled": {"a": export(dp_sgd(2.0, 0.1))},
    "units": {name: export(agreed(mechanism=name)) for name in ("dp_sgd", "gaussian", "sum", "votes")},
    "many": {f"client-{n}": export(dp_sgd(), done=n % 3) for n in range(DETAILED + 5)},
    "hostile": {HOSTILE: export(dp_sgd(run=HOSTILE, proxy=HOSTILE))},
}


class Page(html.parser.HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module", params=sorted(REPORTS))
def report(request: pytest.FixtureRequest) -> Any:
    return budget_report(REPORTS[request.param], provenance={"0" * 64: HOSTILE, HOSTILE: HOSTILE})


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_reports_follow_the_published_schema(report: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.validate(json.loads(render(report, "json")), json_schema())


def test_the_schema_admits_no_other_field_and_no_missing_one() -> None:
    record = budget_report(REPORTS["one client"]).record()
    for wrong in ({**record, "more": 1}, {key: record[key] for key in record if key != "holds"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, json_schema())


def test_the_published_schema_is_what_the_code_says() -> None:
    published = Path(__file__).parents[2] / "docs" / "report.schema.json"
    assert json.loads(published.read_text()) == json_schema(), "run: fedkd report --schema > docs/report.schema.json"


# -- HTML --------------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_runs_nothing_and_loads_nothing(report: Any) -> None:
    text = render(report, "html")
    page = Page(text)
    assert not page.open
    assert "<script" not in text and "url(" not in text and "@import" not in text
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image")
        assert not any(name.startswith("on") for name in attributes)
        assert not {"src", "style", "srcset", "xlink:href", "action"} & set(attributes)
        assert attributes.get("href", "#")[:1] == "#"  # type: ignore[index]


def test_the_page_forbids_itself_to_load_anything(report: Any) -> None:
    (policy,) = [a["content"] for tag, a in Page(render(report, "html")).tags if "http-equiv" in a]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_every_table_has_a_caption_and_every_drawing_a_title_and_a_description(report: Any) -> None:
    tags = [tag for tag, _ in Page(render(report, "html")).tags]
    assert tags.count("caption") == tags.count("table")
    drawings = [a for tag, a in Page(render(report, "html")).tags if tag == "svg"]
    identifiers = {a["id"] for _, a in Page(render(report, "html")).tags if "id" in a}
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert {*str(drawing["aria-labelledby"]).split()} <= identifiers


def test_headings_do_not_skip_a_level(report: Any) -> None:
    levels = [int(tag[1]) for tag, _ in Page(render(report, "html")).tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_links_lead_to_sections_of_the_page(report: Any) -> None:
    page = Page(render(report, "html"))
    identifiers = {a["id"] for _, a in page.tags if "id" in a}
    assert {str(a["href"])[1:] for tag, a in page.tags if tag == "a"} <= identifiers


def test_curves_can_be_told_apart_without_colour() -> None:
    exports = {f"client-{n}": export(dp_sgd(10.0 + n)) for n in range(6)}
    text = render(budget_report(exports), "html")
    page = Page(text)
    curves = {a["class"] for tag, a in page.tags if tag == "path" and str(a["class"]).startswith("curve")}
    assert len(curves) == 6
    dashes = {text.split(f".curve.s{n}{{", 1)[1].split("dasharray:", 1)[1].split("}", 1)[0] for n in range(6)}
    assert len(dashes) == 6
    for n in range(6):
        assert f"client-{n}</text>" in text


# -- other people's strings --------------------------------------------------------------------------------------------


def test_a_hostile_name_is_text_in_html() -> None:
    text = render(budget_report(REPORTS["hostile"]), "html")
    assert visible(HOSTILE) in Page(text).text
    assert "<script" not in text and "<img" not in text and "\x1b" not in text and "\u202e" not in text


def test_a_hostile_name_is_text_in_markdown() -> None:
    text = render(budget_report(REPORTS["hostile"]), "md")
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    assert not {"html_block", "code_block", "fence"} & {token.type for token in tokens}
    assert not {"html_inline", "link_open", "image", "code_inline"} & {child.type for child in inline}
    headings = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    assert plain(visible(HOSTILE)) in headings
    assert visible(HOSTILE) in "".join(child.content for child in inline)


def test_a_hostile_name_moves_no_cursor_in_text() -> None:
    text = render(budget_report(REPORTS["hostile"]), "text")
    assert text.isprintable() or {char for char in text if not char.isprintable()} == {"\n"}


@given(st.text())
def test_visible_text_is_one_printable_line(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable() and len(shown.splitlines()) <= 1
    shown.encode()


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_markdown_gives_any_text_back_as_text(text: str) -> None:
    text = visible(text).strip() or "x"
    tokens = MarkdownIt("commonmark", {"html": True}).parse(f"**x**: {plain(text)}")
    inline = [child for token in tokens for child in token.children or ()]
    assert "".join(child.content for child in inline) == f"x: {text}"


# -- the same in every form --------------------------------------------------------------------------------------------

EVERYTHING = Document(
    title="title",
    good=True,
    lead=("the lead",),
    sections=(
        Section(
            "section",
            (
                Fields((("name", "value"), ("", "more"))),
                Table("caption", ("left", "right"), (("cell", "7.5"),), folded=True),
                Lines("curves", "rises", "x", "y", (Series("one", ((1.0, 2.0), (2.0, float("inf")))),)),
                Bars("bars", "half", (Bar("used", 1.0, 2.0),)),
            ),
        ),
    ),
)


@pytest.mark.parametrize("form", [render_html, render_markdown, render_text])
def test_no_form_leaves_a_part_out(form: Any) -> None:
    text = form(EVERYTHING)
    said = Page(text).text if form is render_html else text
    for part in ("the lead", "section", "name", "value", "more", "caption", "left", "right", "cell", "7.5", "curves",
                 "rises", "bars", "half"):  # fmt: skip
        assert part in said


@pytest.mark.parametrize("form", ["text", "md", "html"])
def test_what_is_not_covered_is_said_in_every_form(form: Any) -> None:
    text = render(budget_report(REPORTS["one client"]), form)
    said = " ".join((Page(text).text if form == "html" else text).replace("\\", "").split())
    for left_out in ("latency", "missed deadlines", "participation pattern", "hyper-parameters", "outside the wire"):
        assert left_out in said


@pytest.mark.parametrize("form", ["text", "md", "html"])
def test_every_field_of_the_design_is_in_every_form(form: Any) -> None:
    text = render(budget_report(REPORTS["blocks"], provenance={"0" * 64: "origin of it"}, config_hash="f00d"), form)
    said = " ".join((Page(text).text if form == "html" else text).replace("\\", "").split())
    for field in ("unit", "adjacency", "trust model", "Outputs NOT covered", "Epsilon against delta",
                  "Epsilon by block", "one example a block", "Epsilon after each round",
                  "sensitivity", "sigma = z", "clip C",
                  "assumed: full batch", "actual: full batch", "PLD, dp-accounting", "PRV, opacus", "closed form",
                  "randomness", "floating point", "origin of it", "audit", "h" * 64, "f00d", "sources", "lifetime",
                  "limit", "left"):  # fmt: skip
        assert field in said, field


@pytest.mark.parametrize("form", ["text", "md", "html"])
def test_of_many_clients_all_are_in_the_table_and_the_worst_in_detail(form: Any) -> None:
    exports = {f"client-{n}": export(dp_sgd(100.0 - n, rounds=1)) for n in range(25)}
    text = render(budget_report(exports), form).replace("\\", "")
    said = Page(text).text if form == "html" else text
    for client in exports:
        assert client in said
    headings = {"text": "client-{}\n---", "md": "## client-{}\n", "html": "<h2>client-{}</h2>"}
    detailed = [n for n in range(25) if headings[form].format(n) in text]
    assert detailed == list(range(25 - DETAILED, 25))
    assert "the 20 clients with the largest epsilon" in " ".join(said.split())


def test_equal_clients_share_a_curve() -> None:
    text = render(budget_report({f"client-{n}": export(dp_sgd()) for n in range(5)}), "html")
    assert "client-0 and 4 more</text>" in text
