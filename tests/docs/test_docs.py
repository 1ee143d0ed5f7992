"""The documentation's examples run, its configurations are valid, its links lead somewhere, its reference is fresh.

The convention is in docs/index.md: an HTML comment right before a fence says ``run``, ``file NAME`` or ``valid KIND``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkd import cli
from fedkd.config import KINDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^((?:<!-- [^\n]* -->\n)*)```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- (.*) -->")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# An example's own --set comes after these, and wins.
SMALL = [
    "clients=2", "rounds=2", "privacy.steps=2", "proxy.size=60", "proxy.tune_size=20", "features.components=8",
    "teacher.steps=10", "training.distil_steps=5", "baselines=false",
]  # fmt: skip
SMALLER = {
    "simulate": ["--workers", "1"],
    "sweep": ["--workers", "1"],
    "continual": ["--workers", "1", "--set", "stream.experiences=2"],
    "prepare": [],
    "proxy": [],
    "audit": ["--quick", "--trials", "20", "--canaries", "20"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page and the comments right before it."""

    language: str
    text: str
    comments: tuple[str, ...]

    def told(self, word: str) -> str | None:
        """What follows ``word`` in a comment; None without such a comment."""
        found = [comment.partition(" ")[2] for comment in self.comments if comment.split(" ")[0] == word]
        return found[0] if found else None


def blocks(page: Path) -> list[Block]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language, text, tuple(COMMENT.findall(comments))) for comments, language, text in found]


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


# -- running -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of the page's own; what a page's code imports is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_examples_run_as_they_are_written(page: Path, folder: Path) -> None:
    variables: dict[str, Any] = {"__name__": "example"}
    for block in blocks(page):
        if (name := block.told("file")) is not None:
            (folder / name).write_text(block.text, encoding="utf-8")
        needed = block.told("run")
        if needed is None or (needed and importlib.util.find_spec(needed) is None):
            continue
        if block.language == "python":
            exec(compile(block.text, f"{page.name}, example", "exec"), variables)
            continue
        commands = list(commands_of(block.text))
        assert commands, f"nothing to run in {block.text}"
        for command in commands:
            run(command, folder)


def commands_of(text: str) -> Iterator[list[str]]:
    """The parts of a block's command lines that call fedkd."""
    console = "$ " in text
    for line in text.splitlines():
        if console and not line.startswith("$ "):
            continue
        for part in line.removeprefix("$ ").split("&&"):
            words = shlex.split(part, comments=True)
            if words and Path(words[0]).name == "fedkd":
                yield words[1:]


def run(words: list[str], folder: Path) -> None:
    """Run a command line in this process; ``> FILE`` takes its output."""
    words, target = (words[:-2], words[-1]) if ">" in words else (words, None)
    if words[0] in SMALLER and words[1:2] != ["verify"] and "--resume" not in words:
        at = 2 if words[0] == "proxy" else 1
        small = [word for setting in SMALL for word in ("--set", setting)]
        words = [*words[:at], *small, *SMALLER[words[0]], *words[at:]]
    sys.argv = ["fedkd", *words]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            cli.main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code
    assert code in (0, None), f"fedkd {shlex.join(words)}: {errors.getvalue()}"
    if target is not None:
        (folder / target).write_text(output.getvalue(), encoding="utf-8")


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_yaml_block_is_a_valid_configuration(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            kind = block.told("valid")
            assert kind in KINDS, f"say what this is, <!-- valid KIND -->:\n{block.text}"
            KINDS[kind].model_validate(yaml.safe_load(block.text))


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            headings = HEADING.findall(target.read_text(encoding="utf-8"))
            assert anchor in {anchor_of(heading) for heading in headings}, link


def anchor_of(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"{page.name})" in index


@pytest.mark.parametrize(("marker", "end"), [("run-command", "fedkd simulate"), ("test-command", "pytest")])
def test_the_readme_holds_the_two_commands(marker: str, end: str) -> None:
    (block,) = [block for block in blocks(ROOT / "README.md") if block.told(marker) is not None]
    (command,) = block.text.splitlines()
    assert command.startswith("python -m venv .venv && .venv/bin/pip install ") and command.endswith(f".venv/bin/{end}")


def test_the_reference_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.OUT.read_text(encoding="utf-8") == maker.reference(), "run: python docs/make_reference.py"
