"""The live page: what a run's files say, to this machine alone, and nothing that could be changed through it."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedkd.errors import ConfigError
from fedkd.report.live.serve import Dashboard
from fedkd.report.live.snapshot import Run
from tests.journeys.conftest import sets

Fedkd = Callable[..., tuple[int, str, str]]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOLD = "round 2: <b>client-1</b>: budget_exhausted"


@pytest.fixture
def run(tmp_path: Path, fedkd: Fedkd) -> Path:
    out = tmp_path / "run"
    code, _, err = fedkd("simulate", "--out", out, "--workers", 1, *sets("clients=2", "baselines=false"))
    assert code == 0, err
    (out / "server/server.log").write_text(f"INFO: something else\n{TOLD}\n")
    return out


@pytest.fixture
def page(run: Path) -> Iterator[Dashboard]:
    with Dashboard(Run(run), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    page: Dashboard, path: str, method: str = "GET", host: str | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{page.server_port}"})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_it_shows_what_the_run_has_written(page: Dashboard, run: Path) -> None:
    shown = json.loads(ask(page, "/data.json")[1])
    rows = [json.loads(line) for line in (run / "server/metrics.jsonl").read_text().splitlines()]
    assert shown["rounds"] == rows and shown["bytes_up"] == sum(row["bytes_up"] for row in rows)
    report = json.loads((run / "report.json").read_text())
    assert {one["client"]: one["spent"]["example"]["epsilon"] for one in shown["clients"]} == {
        name: client["spent"]["example"]["epsilon"] for name, client in report["clients"].items()
    }
    assert {one["noise"] for one in shown["clients"]} == {"simulation"}
    assert shown["errors"] == [TOLD]


def test_it_can_only_be_read_and_only_here(page: Dashboard) -> None:
    assert page.server_address[0] == "127.0.0.1"
    for method in ("POST", "PUT", "DELETE"):
        assert ask(page, "/", method)[0].status == 501
    for path in ("/../server.yaml", "/%2e%2e/config.yaml", "/snapshot.py", "/data.json?x"):
        assert ask(page, path)[0].status == 404
    assert ask(page, "/data.json", host="evil.example")[0].status == 403


def test_nothing_comes_from_elsewhere(page: Dashboard) -> None:
    for path in ("/", "/page.css", "/page.js"):
        response, body = ask(page, path)
        policy = response.getheader("Content-Security-Policy")
        assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy
        links = re.findall(rb"https?://[^\s\"']+", body)
        assert [link for link in links if link != b"http://www.w3.org/2000/svg"] == []


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run here"):
        Run(tmp_path)


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_it(page: Dashboard) -> None:
    command = [
        CHROMIUM or "",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        "--dump-dom",
        page.url,
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert '<b id="rounds">2</b>' in dom and dom.count("<polyline") == 2
    assert "simulation: NO guarantee" in dom
    assert "<li>round 2: &lt;b&gt;client-1&lt;/b&gt;: budget_exhausted</li>" in dom
