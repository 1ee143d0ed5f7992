"""The web server of the live page: the loopback interface, GET alone, four addresses."""

from __future__ import annotations

import json
import logging
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

from fedkd.errors import ConfigError, FedkdError
from fedkd.report.live.snapshot import Run

_log = logging.getLogger(__name__)

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Dashboard(ThreadingHTTPServer):
    """Serves one run on 127.0.0.1. Port 0 takes one that is free."""

    daemon_threads = True

    def __init__(self, run: Run, port: int) -> None:
        """Raises ConfigError if the port is taken."""
        self.run = run
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"the page cannot be served: {error.strerror}", where=f"127.0.0.1:{port}", fix="choose another --port"
            ) from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Dashboard
    protocol_version = "HTTP/1.1"
    timeout = 30
    server_version, sys_version = "fedkd", ""

    def do_GET(self) -> None:
        if self.headers.get("Host") not in {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}:
            return self._answer(403, "text/plain", b"another host's name")  # a page elsewhere that points its name here
        if self.path == "/data.json":
            return self._data()
        if self.path not in _FILES:
            return self._answer(404, "text/plain", b"not here")
        name, kind = _FILES[self.path]
        self._answer(200, kind, files("fedkd.report.live").joinpath(name).read_bytes())

    def _data(self) -> None:
        try:
            self._answer(200, "application/json", json.dumps(self.server.run.snapshot()).encode())
        except FedkdError as error:
            self._answer(500, "text/plain", str(error).encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        _log.debug(format, *args)
