"""A ClientApp of a server that wants everything: the test ships it in the place of the relay.

What it is told and what it brings home are JSON: paths to try, and what came of it.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from google.protobuf.wrappers_pb2 import BytesValue

from client.channel import MAX_MESSAGE_BYTES, METHODS, SERVICE, channel_for
from fedkd import wire
from fedkd.errors import WireError
from fedkd.flower import payload_of, reply_with

app = ClientApp()
RUNS = ("run-1", "run-2", "run-3")
ROUNDS = 3


@app.query("answer")
def attack(message: Message, context: Context) -> Message:
    orders = json.loads(payload_of(message))
    report = {
        "user": os.getuid(),
        "opened": [path for path in orders["paths"] if opened(path)],
        "listed": [path for path in orders["folders"] if listed(path)],
        "signalled": signalled(orders["agent"]),
        "written": [path for path in orders["folders"] if written(path)],
        **asked(str(context.node_config["agent"]), orders),
    }
    return reply_with(message, json.dumps(report).encode())


def opened(path: str) -> bool:
    try:
        return bool(Path(path).read_bytes()[:1])
    except OSError:
        return False


def listed(path: str) -> bool:
    try:
        list(Path(path).iterdir())
    except OSError:
        return False
    return True


def written(path: str) -> bool:
    try:
        Path(path, "mine").write_text("mine")
    except OSError:
        return False
    return True


def signalled(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return False
    return True


# -- at the agent's door -----------------------------------------------------------------------------------------------


def asked(address: str, orders: dict[str, Any]) -> dict[str, Any]:
    channel = channel_for(address, timeout=120)
    kinds: Counter[str] = Counter()
    released: dict[str, set[str]] = {}
    fields: set[str] = set()

    def call(method: str, payload: bytes) -> None:
        try:
            reply = channel.call(method, payload)
        except grpc.RpcError as error:
            kinds[error.code().name] += 1
            return
        try:
            answer = wire.decode(reply, wire.Hello, wire.Agreement, wire.Answers, wire.Learned, wire.Refusal)
        except WireError:
            kinds["outside the schema"] += 1
            return
        fields.update(vars(answer))
        kinds[f"refused: {answer.code}" if isinstance(answer, wire.Refusal) else answer.kind] += 1
        if isinstance(answer, wire.Answers):
            released.setdefault(f"{answer.run} {answer.round}", set()).add(reply.hex())

    call("agree", offer(orders, RUNS[0]))
    for _ in range(1000):
        call("answer", plan(orders, RUNS[0], 1))
    for payload in malformed(orders):
        for method in METHODS:
            call(method, payload)
    for number in range(50):
        call("answer", plan(orders, RUNS[0], 1, temperature=2.0 + number))
        call("answer", plan(orders, RUNS[number % 3], number + 1))
        call("agree", offer(orders, RUNS[number % 3], rounds=number % 5 + 1))
        call("agree", offer(orders, f"new-{number}"))
        call("answer", plan(orders, f"new-{number}", 1))
    return {
        "replies": dict(kinds),
        "fields": sorted(fields),
        "released": {key: len(payloads) for key, payloads in released.items()},
        "methods": unknown_methods(address),
        "too_large": too_large(address),
        "second_listener": second_listener(address),
    }


def offer(orders: dict[str, Any], run: str, rounds: int = ROUNDS) -> bytes:
    examples = orders["examples"]
    size = {"examples": examples, "classes": orders["classes"], "queries": examples, "rounds": rounds}
    terms = {"server": "mine", "proxy": orders["proxy"], "codec": "float32", "aggregate": "mean", "clients": 50}
    return wire.encode(wire.Offer(run=run, **terms, **size, seen=""))


def plan(orders: dict[str, Any], run: str, number: int, temperature: float = 1.0) -> bytes:
    nothing = np.zeros((0, orders["classes"]), np.float32)
    ids = np.zeros(0, np.uint32)
    return wire.encode(wire.Plan(run, orders["proxy"], number, True, temperature, "", ids, nothing, ids, ""))


def malformed(orders: dict[str, Any]) -> list[bytes]:
    good = plan(orders, RUNS[0], 1)
    pickled = b"cposix\nsystem\n(S'touch /tmp/owned'\ntR."
    return [
        b"", b"\0" * 64, b"\xff" * 64, good[:-1], good + b"x", good[: len(good) // 2], pickled, b"{}", bytes(1_000_000),
        *(good[:index] + bytes([good[index] ^ 255]) + good[index + 1 :] for index in range(0, len(good), 37)),
    ]  # fmt: skip


def unknown_methods(address: str) -> list[str]:
    answered = []
    with grpc.insecure_channel(address) as raw:
        for name in ("Weights", "GetWeights", "Data", "Ledger", "Close", "answer", "../Answer"):
            invoke = raw.unary_unary(f"/{SERVICE}/{name}", BytesValue.SerializeToString, BytesValue.FromString)
            try:
                invoke(BytesValue(value=b"weights"), timeout=30)
                answered.append(name)
            except grpc.RpcError:
                pass
    return answered


def too_large(address: str) -> str:
    try:
        channel_for(address, timeout=60).call("answer", bytes(MAX_MESSAGE_BYTES + 1))
    except grpc.RpcError as error:
        return error.code().name
    return "taken"


def second_listener(address: str) -> bool:
    """Whether the relay can take the agent's place for others."""
    path = address.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX) as mine:
        try:
            Path(path).unlink()
            mine.bind(path)
        except OSError:
            return False
    return True
