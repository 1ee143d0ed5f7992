"""The door for relays: TLS, known node keys alone, and of Flower's interfaces only the one that is meant for relays.

A SuperLink serves three interfaces on one port: Fleet for relays, Control for operators and Runtime for its own
processes. Control asks for no credentials in the open-source edition: whoever reaches it may register nodes and start
apps, that is, run code on the server. So the SuperLink itself listens on the loopback interface, and this proxy passes
on nothing but Fleet calls, under a key that the operator has put among the node keys. The SuperLink then checks the
call's signature under that key.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import logging
import re
import ssl
import threading
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fedkd.errors import FedkdError
from fedkd.flower import NODE_KEY_HEADER
from fedkd.processes import listen
from fedkd.trust import fingerprint
from server.allowance import Allowance

_log = logging.getLogger(__name__)

_CALL = re.compile(r"[a-z]+(-[a-z]+)*")
_BODY_LIMIT = 32 * 1024 * 1024  # Flower sends arrays in pieces of 5 MB
_BODY_SECONDS = 120.0
_ANSWER_SECONDS = 60.0
_CONNECTIONS = 1024
_START_SECONDS = 20.0
_STRANGERS_TOLD = 1000
# RFC 9110, section 7.6.1: these belong to one connection. Where a call came from is not the caller's to say.
_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_NOT_PASSED_ON = _HOP | {"host", "content-length", "forwarded", "x-forwarded-for", "x-forwarded-proto", "x-real-ip"}


@dataclass(frozen=True)
class Upstream:
    """The SuperLink behind the gate, on the loopback interface, and the authority of its certificate there."""

    address: str
    authority: Path


class Gate:
    """Serves ``address`` with TLS until it is stopped. ``nodes`` maps a client's name to its public key (PEM)."""

    def __init__(
        self, address: str, certificate: Path, key: Path, upstream: Upstream, nodes: Mapping[str, bytes]
    ) -> None:
        self._address, self._upstream = address, upstream
        self._names = {key.strip(): name for name, key in nodes.items()}
        self._allowances = {name: Allowance() for name in nodes}
        self._met: set[str] = set()
        self._flooded: set[str] = set()
        self._strangers: set[str] = set()
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=[Route("/v1/fleet/{call}", self._fleet, methods=["POST"])], lifespan=self._connected),
                http="h11",
                ws="none",
                ssl_certfile=certificate,
                ssl_keyfile=key,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # a relay on this machine would say in its own words where it is
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to serve, on a thread of its own. Raises ConfigError if the address is taken."""
        socket = listen(self._address)
        self._thread = threading.Thread(target=self._server.run, args=([socket],), name="gate", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        if not self._server.started:
            raise FedkdError("the gate for relays did not start", where=self._address)

    def stop(self) -> None:
        """Close all connections. Idempotent."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # to cut idle connections is no error
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=10)

    @contextlib.asynccontextmanager
    async def _connected(self, _app: Starlette) -> AsyncIterator[None]:
        trusted = ssl.create_default_context(cafile=self._upstream.authority)
        # trust_env: a proxy of the environment is not for loopback traffic
        async with httpx.AsyncClient(verify=trusted, timeout=_ANSWER_SECONDS, trust_env=False) as client:
            self._client = client
            yield

    async def _fleet(self, request: Request) -> Response:
        call = request.path_params["call"]
        name = self._name(request)
        if name is None or not _CALL.fullmatch(call):
            return _refusal(400, "the server does not know this node key")
        if not self._allowances[name].enter():
            self._tell_flood(name, _peer(request))
            return _refusal(503, "too many calls of one relay")  # which a SuperNode repeats a little later
        try:
            return await self._received(call, name, request)
        finally:
            self._allowances[name].leave()

    async def _received(self, call: str, name: str, request: Request) -> Response:
        try:
            body = await _body(request)
        except (TimeoutError, ClientDisconnect):
            return _refusal(408, "the request did not end")
        if body is None:
            return _refusal(413, "the request is too large")
        return await self._pass_on(call, name, request, body)

    async def _pass_on(self, call: str, name: str, request: Request, body: bytes) -> Response:
        headers = {key: value for key, value in request.headers.items() if key not in _NOT_PASSED_ON}
        try:
            answer = await self._client.post(
                f"https://{self._upstream.address}/v1/fleet/{call}", content=body, headers=headers
            )
        except httpx.TransportError:
            return _refusal(503, "the SuperLink does not answer")
        if call == "activate-node" and answer.is_success and name not in self._met:
            self._met.add(name)
            _log.info("the relay of %s has connected from %s", name, _peer(request))
        passed = {key: value for key, value in answer.headers.items() if key not in _NOT_PASSED_ON}
        passed.pop("content-encoding", None)  # httpx has decoded it
        return Response(answer.content, answer.status_code, passed)

    def _name(self, request: Request) -> str | None:
        try:
            key = b64decode(request.headers.get(NODE_KEY_HEADER, ""), validate=True)
        except binascii.Error:
            key = b""
        name = self._names.get(key.strip())
        if name is None:
            self._tell(fingerprint(key) if key else "", _peer(request))
        return name

    def _tell(self, stranger: str, peer: str) -> None:
        """One line for each unknown key: a stranger that knocks for ever must not fill the disk."""
        if stranger in self._strangers or len(self._strangers) >= _STRANGERS_TOLD:
            return
        self._strangers.add(stranger)
        key = (
            f"its node key {stranger} is not among the {len(self._names)} registered" if stranger else "it shows no key"
        )
        _log.warning("refused a relay from %s: %s", peer, key)

    def _tell_flood(self, name: str, peer: str) -> None:
        """One line for each relay, for the same reason."""
        if name not in self._flooded:
            self._flooded.add(name)
            _log.warning("the relay of %s at %s makes too many calls; the surplus is turned away", name, peer)


async def _body(request: Request) -> bytes | None:
    """The request's body; None if it is too large. Raises TimeoutError, or ClientDisconnect."""
    body = bytearray()
    async with asyncio.timeout(_BODY_SECONDS):
        async for piece in request.stream():
            body += piece
            if len(body) > _BODY_LIMIT:
                return None
    return bytes(body)


def _peer(request: Request) -> str:
    return request.client.host if request.client else "nowhere"


def _refusal(status: int, reason: str) -> JSONResponse:
    """As Flower writes its errors, so that a relay's log says the reason. (At 401 and 403 it would only end.)"""
    return JSONResponse({"code": 0, "detail": reason}, status)
