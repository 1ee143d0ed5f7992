"""A real browser shows the page, in light and dark, and prints it. Skipped where there is no Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.image import imread

from fedkd.report.budget import budget_report
from fedkd.report.render import render
from tests.exports import agreed, dp_sgd, export

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1000,1400"),
)
HOSTILE = "<script>document.title='taken'</script>"

pytestmark = [pytest.mark.long, pytest.mark.skipif(not BROWSER, reason="there is no Chromium")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    exports = {f"client-{n}": export(dp_sgd(12.0 + n)) for n in range(3)}
    exports |= {"sum": export(agreed(mechanism="sum")), HOSTILE: export(dp_sgd(run=HOSTILE))}
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(budget_report(exports), "html"), encoding="utf-8")
    return file


def browse(page: Path, *options: str) -> str:
    profile = page.with_name("profile")
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


@pytest.mark.parametrize(("scheme", "bright"), [(1, True), (0, False)])
def test_the_page_is_drawn_in_light_and_in_dark(page: Path, scheme: int, bright: bool) -> None:
    picture = page.with_name(f"{scheme}.png")
    browse(page, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}")
    pixels = imread(picture)[..., :3]
    assert bool(pixels[5, 5].mean() > 0.5) is bright
    assert pixels.std() > 0.1  # there is something on it


def test_the_page_is_printed_a_page_or_more_a_client(page: Path) -> None:
    paper = page.with_name("report.pdf")
    browse(page, "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    assert paper.read_bytes().startswith(b"%PDF")
    assert paper.read_bytes().count(b"/Type /Page\n") >= 6


def test_nothing_of_the_page_runs(page: Path) -> None:
    shown = browse(page, "--dump-dom")
    assert "<title>Privacy report</title>" in shown and "<script" not in shown
    assert "&lt;script&gt;document.title='taken'&lt;/script&gt;" in shown
