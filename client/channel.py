"""How the relay reaches the agent: gRPC over a Unix socket, or a function of this process in a simulation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast

import grpc
from google.protobuf.wrappers_pb2 import BytesValue

from fedkd.errors import ConfigError

SERVICE = "fedkd.agent.v1.Agent"  # agent.proto
METHODS = {"describe": "Describe", "agree": "Agree", "answer": "Answer"}
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Set on both ends. Without the bound on its back-off a client would keep finding a restarted agent dead for minutes.
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

Handler = Callable[[str, bytes], bytes]


class Channel(Protocol):
    """A way to call the agent: ``method`` is one of METHODS, payloads are opaque."""

    def call(self, method: str, payload: bytes) -> bytes: ...


def channel_for(address: str, timeout: float | None = None) -> Channel:
    """The channel to ``unix:/path`` or ``local:NAME``. ``timeout`` (seconds) bounds each call over a socket."""
    kind, _, name = address.partition(":")
    if kind == "local" and name:
        return LocalChannel(name)
    if kind == "unix" and name.startswith("/"):
        return GrpcChannel(address, timeout)
    raise ConfigError(
        "the agent's address is not understood", where=address, fix="write unix:/absolute/path or local:NAME"
    )


@dataclass(frozen=True)
class GrpcChannel:
    """Calls to an agent process. Fails at once when nobody listens; raises grpc.RpcError for every failure."""

    address: str
    timeout: float | None

    def call(self, method: str, payload: bytes) -> bytes:
        invoke = _connection(self.address).unary_unary(
            f"/{SERVICE}/{METHODS[method]}", BytesValue.SerializeToString, BytesValue.FromString
        )
        return cast(bytes, invoke(BytesValue(value=payload), timeout=self.timeout).value)


@cache
def _connection(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)


@dataclass(frozen=True)
class LocalChannel:
    """Calls to an agent that lives in this process, by the name it is registered under."""

    name: str

    def call(self, method: str, payload: bytes) -> bytes:
        with _agents_lock:
            handler = _agents.get(self.name)
        if handler is None:
            raise LookupError(f"no agent is registered as {self.name!r}")
        return handler(METHODS[method].lower(), payload)


_agents: dict[str, Handler] = {}
_agents_lock = threading.Lock()


def register_local(name: str, handler: Handler) -> None:
    """Make ``handler(method, payload)`` the agent that ``local:name`` reaches; a name can be taken only once."""
    with _agents_lock:
        if name in _agents:
            raise ValueError(f"an agent is already registered as {name!r}")
        _agents[name] = handler


def unregister_local(name: str) -> None:
    """Forget the agent called ``name``, if there is one."""
    with _agents_lock:
        _agents.pop(name, None)
