"""The agent's door: a gRPC service on a Unix socket, three methods, opaque bytes in and out.

The payloads are already fedkd's own versioned wire format, so gRPC carries them as they are, without a schema of its
own. One worker thread serves all calls: the ledger has one writer.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import grpc

from client.channel import CHANNEL_OPTIONS, METHODS, SERVICE, Handler
from fedkd.errors import ConfigError

_log = logging.getLogger(__name__)

_UMASK = 0o117  # leaves rw-rw----: the agent's user and the group it shares with the relay
_PATH_LIMIT = 100  # the kernel allows 107 bytes
_QUEUE_LIMIT = 16


def serve(handler: Handler, address: str) -> grpc.Server:
    """Start answering on ``unix:/path``; the caller stops the returned server, which removes the socket.

    ``handler(method, payload)`` gets describe, agree or answer. What it raises stays in this process's log: the
    caller sees one constant status. Raises ConfigError if another agent already listens there.
    """
    path = _socket_path(address)
    _remove_stale(path)
    server = grpc.server(
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="agent"),
        handlers=[_generic_handler(handler)],
        options=CHANNEL_OPTIONS,
        maximum_concurrent_rpcs=_QUEUE_LIMIT,
    )
    _bind(server, address)
    server.start()
    return server


def _generic_handler(handler: Handler) -> grpc.GenericRpcHandler:
    methods = {
        name: grpc.unary_unary_rpc_method_handler(_behaviour(handler, action)) for action, name in METHODS.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _behaviour(handler: Handler, action: str) -> object:
    def behave(payload: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return handler(action, payload)
        except Exception:
            _log.exception("the agent failed to %s", action)
        _abort(context)

    return behave


def _abort(context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.INTERNAL, "the agent failed")
    raise AssertionError("abort raises")


def _bind(server: grpc.Server, address: str) -> None:
    """Bind under a umask: setting the mode afterwards would leave the socket open to all for a moment."""
    previous = os.umask(_UMASK)
    try:
        server.add_insecure_port(address)
    finally:
        os.umask(previous)


def _socket_path(address: str) -> Path:
    kind, _, name = address.partition(":")
    if kind != "unix" or not name.startswith("/") or len(os.fsencode(name)) > _PATH_LIMIT:
        raise ConfigError(
            "the agent can only listen on a Unix socket",
            where=address,
            fix=f"write unix:/absolute/path, of at most {_PATH_LIMIT} bytes",
        )
    return Path(name)


def _remove_stale(path: Path) -> None:
    """Remove the socket of an agent that died. gRPC itself would take the place of one that lives."""
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigError("a file is where the agent's socket should be", where=str(path))
    if _somebody_listens(path):
        raise ConfigError("another agent already listens", where=str(path), fix="stop it, or choose another socket")
    path.unlink(missing_ok=True)


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True
