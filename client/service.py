"""The agent's door: a gRPC service on a Unix socket, as ``agent.proto`` has it, and the standard health service.

The payloads are fedkd's own versioned wire format; gRPC carries them unread. Calls are handled one at a time, since the
ledger has one writer; a few wait in line, and more are turned away.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import grpc
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.channel import CHANNEL_OPTIONS, METHODS, SERVICE, Handler
from fedkd.errors import ConfigError

_log = logging.getLogger(__name__)

_UMASK = 0o117  # leaves rw-rw----: the agent's user and the group it shares with the relay
_PATH_LIMIT = 100  # the kernel allows 107 bytes
_WAITING = 8
_THREADS = _WAITING + 4  # calls that wait hold a thread each; the rest answers about health, and turns away
_QUEUE_LIMIT = 64


def serve(handler: Handler, address: str) -> grpc.Server:
    """Start answering on ``unix:/path``; the caller stops the returned server, which removes the socket.

    ``handler(method, payload)`` gets describe, agree or answer. What it raises stays in this process's log: the
    caller sees one constant status. Raises ConfigError if another agent already listens there.
    """
    path = _socket_path(address)
    _remove_stale(path)
    server = grpc.server(
        ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="agent"),
        handlers=[_generic_handler(handler)],
        options=CHANNEL_OPTIONS,
        maximum_concurrent_rpcs=_QUEUE_LIMIT,
    )
    state = health.HealthServicer()
    state.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    _bind(server, address)
    server.start()
    return server


def is_healthy(address: str, timeout: float = 5.0) -> bool:
    """Whether an agent answers on ``unix:/path``."""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _generic_handler(handler: Handler) -> grpc.GenericRpcHandler:
    line, turn = threading.BoundedSemaphore(_WAITING), threading.Lock()
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            _behaviour(handler, action, line, turn), BytesValue.FromString, BytesValue.SerializeToString
        )
        for action, name in METHODS.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _behaviour(
    handler: Handler, action: str, line: threading.BoundedSemaphore, turn: threading.Lock
) -> Callable[[BytesValue, grpc.ServicerContext], BytesValue]:
    def behave(request: BytesValue, context: grpc.ServicerContext) -> BytesValue:
        if not line.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls wait for the agent")
        try:
            with turn:
                if context.is_active():  # else nobody waits for this answer any more: do not train for it
                    return BytesValue(value=handler(action, request.value))
        except Exception:
            _log.exception("the agent failed to %s", action)
        finally:
            line.release()
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
