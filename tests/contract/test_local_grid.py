"""The in-process Grid keeps the contract that the loop relies on, and so does the exchange over any Grid."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run, RunNotRunningException

from client.app import app as relay
from client.channel import register_local, unregister_local
from fedkd.errors import WireError
from fedkd.flower import Failure, FailureCode, LocalGrid, exchange, node_ids, payload_of, reply_with

Answer = Callable[[Message, Context], Message]


def app_that(answer: Answer) -> ClientApp:
    app = ClientApp()
    app.query("answer")(answer)
    return app


def grid_that(answer: Answer, nodes: Iterable[int] = (3, 1, 2), workers: int = 2) -> LocalGrid:
    return LocalGrid(app_that(answer), {node: {"name": f"node {node}"} for node in nodes}, workers)


def echo(message: Message, context: Context) -> Message:
    return reply_with(message, str(context.node_config["name"]).encode() + b": " + payload_of(message))


def content(**arrays: Array) -> RecordDict:
    return RecordDict({"payload": ArrayRecord(arrays)})


def blob(payload: bytes) -> Array:
    return Array("uint8", (len(payload),), "fedkd.bytes", payload)


class ShuffledGrid(LocalGrid):
    """Hands replies over in reverse, as a network may."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return list(reversed(super().pull_messages(message_ids)))


class RemoteGrid(Grid):
    """A grid that the exchange must take for one of real nodes, where replies are fetched one by one."""

    def __init__(self, app: ClientApp, nodes: Mapping[int, Mapping[str, str]], workers: int = 1) -> None:
        self._local = LocalGrid(app, nodes, workers)

    def __enter__(self) -> RemoteGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self._local.close()

    run = property(lambda self: self._local.run)

    def set_run(self, run: Run) -> None:
        self._local.set_run(run)

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        return self._local.create_message(*arguments, **options)

    def get_node_ids(self) -> list[int]:
        return self._local.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return self._local.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return self._local.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise AssertionError("waits for all replies together")


Kind = type[LocalGrid] | type[RemoteGrid]
KINDS: list[Kind] = [LocalGrid, ShuffledGrid, RemoteGrid]


@pytest.fixture
def agent() -> Iterator[Callable[[Callable[[str, bytes], bytes]], None]]:
    yield lambda handler: register_local("under test", handler)
    unregister_local("under test")


# -- Payloads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256)) * 50_000], ids=["empty", "one", "12 MB"])
def test_a_payload_comes_back_as_it_was_sent(payload: bytes) -> None:
    with grid_that(lambda message, _: reply_with(message, payload_of(message))) as grid:
        assert exchange(grid, "answer", {1: payload}, None) == {1: payload}


@pytest.mark.parametrize(
    "smuggled",
    [
        RecordDict(),
        RecordDict({"payload": ConfigRecord({"bytes": b"x"})}),
        RecordDict({"weights": ArrayRecord({"bytes": blob(b"x")})}),
        RecordDict({"payload": ArrayRecord({"bytes": blob(b"x")}), "metrics": MetricRecord({"loss": 1.0})}),
        content(),
        content(bytes=blob(b"x"), more=blob(b"y")),
        content(weights=blob(b"x")),
        content(bytes=Array("float32", (1,), "fedkd.bytes", b"abcd")),
        content(bytes=Array("uint8", (2, 2), "fedkd.bytes", b"abcd")),
        content(bytes=Array("uint8", (3,), "fedkd.bytes", b"abcd")),
        content(bytes=Array("uint8", (4,), "numpy.ndarray", b"abcd")),
    ],
)
def test_a_reply_that_is_not_one_block_of_bytes_is_refused(smuggled: RecordDict) -> None:
    with grid_that(lambda message, _: Message(smuggled, reply_to=message)) as grid:
        outcome = exchange(grid, "answer", {1: b""}, None)[1]
    assert isinstance(outcome, Failure)
    assert outcome.code == FailureCode.BAD_REPLY


def test_a_message_without_content_has_no_payload() -> None:
    def refuse(message: Message, _: Context) -> Message:
        reply = Message(Error(7, "no"), reply_to=message)
        with pytest.raises(WireError):
            payload_of(reply)
        return reply

    with grid_that(refuse) as grid:
        assert exchange(grid, "answer", {1: b""}, None) == {1: Failure(7, "no")}


# -- The exchange ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_node_gets_its_own_payload_and_its_reply_is_its_own(kind: Kind) -> None:
    nodes = [5, 9, 2, 7]
    with kind(app_that(echo), {node: {"name": f"node {node}"} for node in nodes}, workers=3) as grid:
        outcomes = exchange(grid, "answer", {node: f"for {node}".encode() for node in nodes}, 30)
    assert outcomes == {node: f"node {node}: for {node}".encode() for node in nodes}
    assert list(outcomes) == nodes


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_that_never_replies_costs_the_others_nothing(kind: Kind) -> None:
    over = threading.Event()

    def answer(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            over.wait(60)
        return echo(message, context)

    with kind(app_that(answer), {node: {"name": f"node {node}"} for node in (1, 2, 3)}, workers=3) as grid:
        outcomes = exchange(grid, "answer", {1: b"", 2: b"", 3: b""}, timeout=3)
        over.set()
    assert outcomes[1] == b"node 1: "
    assert outcomes[2] == Failure(FailureCode.NO_REPLY, "no reply before the deadline")
    assert outcomes[3] == b"node 3: "


def test_a_reply_whose_upload_stalls_holds_up_no_other() -> None:
    over = threading.Event()

    class StallingGrid(RemoteGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = super().pull_messages(message_ids)
            if any(reply.metadata.src_node_id == 2 for reply in replies):
                over.wait(60)
            return replies

    with StallingGrid(app_that(echo), {node: {"name": f"node {node}"} for node in (1, 2, 3)}, workers=3) as grid:
        outcomes = exchange(grid, "answer", {1: b"", 2: b"", 3: b""}, timeout=3)
        over.set()
    assert [type(outcome) for outcome in outcomes.values()] == [bytes, Failure, bytes]


def test_a_reply_that_cannot_be_put_together_costs_its_sender_the_round() -> None:
    class BrokenGrid(RemoteGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = super().pull_messages(message_ids)
            if any(reply.metadata.src_node_id == 2 for reply in replies):
                raise ValueError("objects do not match their hash")
            return replies

    with BrokenGrid(app_that(echo), {node: {"name": f"node {node}"} for node in (1, 2)}, workers=2) as grid:
        outcomes = exchange(grid, "answer", {1: b"", 2: b""}, timeout=30)
    assert outcomes[1] == b"node 1: "
    assert outcomes[2] == Failure(FailureCode.BAD_REPLY, "the reply could not be fetched")


def test_a_stopped_run_ends_the_exchange() -> None:
    class StoppedGrid(RemoteGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            raise RunNotRunningException

    with StoppedGrid(app_that(echo), {1: {"name": "node 1"}}) as grid, pytest.raises(RunNotRunningException):
        exchange(grid, "answer", {1: b""}, timeout=30)


def test_an_unknown_node_is_a_failure_and_not_a_wait() -> None:
    with grid_that(echo) as grid:
        outcomes = exchange(grid, "answer", {1: b"", 99: b""}, None)
    assert outcomes[1] == b"node 1: "
    assert outcomes[99] == Failure(FailureCode.NOT_SENT, "the message was not accepted for delivery")


def test_a_reply_in_the_name_of_another_node_is_refused() -> None:
    def forge(message: Message, context: Context) -> Message:
        reply = echo(message, context)
        reply.metadata.__dict__["_src_node_id"] = 2
        return reply

    with grid_that(forge) as grid:
        outcome = exchange(grid, "answer", {1: b""}, None)[1]
    assert outcome == Failure(FailureCode.BAD_REPLY, "the reply comes from another node")


def test_a_reason_from_the_other_side_is_short_and_printable() -> None:
    with grid_that(lambda message, _: Message(Error(2, "\x1b[31m\n" + "x" * 9999), reply_to=message)) as grid:
        outcome = exchange(grid, "answer", {1: b""}, None)[1]
    assert isinstance(outcome, Failure)
    assert outcome.reason.isprintable()
    assert len(outcome.reason) <= 200


def test_an_exchange_with_real_nodes_needs_a_timeout() -> None:
    with RemoteGrid(app_that(echo), {1: {"name": "node 1"}}) as grid, pytest.raises(ValueError, match="timeout"):
        exchange(grid, "answer", {1: b""}, None)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_a_timeout_is_positive(timeout: float) -> None:
    with grid_that(echo) as grid, pytest.raises(ValueError, match="positive"):
        exchange(grid, "answer", {1: b""}, timeout)


# -- The local grid ----------------------------------------------------------------------------------------------------


def test_what_the_app_raises_becomes_an_error_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_message: Message, context: Context) -> Message:
        raise RuntimeError(f"secret of node {context.node_id}")

    with grid_that(fail) as grid:
        outcomes = exchange(grid, "answer", {1: b"", 2: b""}, None)
    expected = Failure(FailureCode.APP_RAISED, "the client app raised an exception")
    assert outcomes == {1: expected, 2: expected}
    assert "secret of node 1" in caplog.text  # on this machine's console


def test_nodes_come_in_a_stable_order() -> None:
    with grid_that(echo, nodes=[30, 4, 17]) as grid:
        assert grid.get_node_ids() == [4, 17, 30]
        assert node_ids(grid, minimum=3, timeout=60) == [4, 17, 30]


def test_waiting_for_nodes_ends_at_the_deadline_with_those_there_are() -> None:
    with grid_that(echo, nodes=[1]) as grid:
        assert node_ids(grid, minimum=2, timeout=0.05) == [1]


def test_messages_to_one_node_never_overlap() -> None:
    inside, overlaps = threading.Semaphore(1), []

    def answer(message: Message, context: Context) -> Message:
        overlaps.append(not inside.acquire(blocking=False))
        time.sleep(0.01)
        inside.release()
        return echo(message, context)

    with grid_that(answer, nodes=[1], workers=4) as grid:
        messages = [Message(content(bytes=blob(b"")), dst_node_id=1, message_type="query.answer") for _ in range(6)]
        assert len(grid.send_and_receive(messages)) == 6
    assert not any(overlaps)


def test_what_nobody_waits_for_any_more_never_runs() -> None:
    started, over, ran = threading.Event(), threading.Event(), []

    def answer(message: Message, context: Context) -> Message:
        ran.append(context.node_id)
        started.set()
        over.wait(60)
        return echo(message, context)

    with grid_that(answer, nodes=[1, 2], workers=1) as grid:
        outcomes = exchange(grid, "answer", {1: b"", 2: b""}, timeout=1)
        assert started.wait(60)
        over.set()
    assert all(isinstance(outcome, Failure) for outcome in outcomes.values())
    assert ran == [1]


# -- The relay ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["describe", "agree", "answer"])
def test_the_relay_passes_bytes_through(agent: Callable[..., None], action: str) -> None:
    agent(lambda method, payload: method.encode() + b" " + payload)
    with LocalGrid(relay, {1: {"agent": "local:under test"}}) as grid:
        assert exchange(grid, action, {1: b"bytes"}, None) == {1: action.encode() + b" bytes"}


def test_the_relay_says_one_thing_whatever_went_wrong(agent: Callable[..., None]) -> None:
    def fail(_method: str, _payload: bytes) -> bytes:
        raise RuntimeError("secret")

    agent(fail)
    nodes = {
        1: {"agent": "local:under test"},
        2: {"agent": "local:nobody"},
        3: {"agent": "unix:/nonexistent/agent.sock"},
        4: {"agent": "https://elsewhere"},
        5: {"data": "no agent"},
    }
    with LocalGrid(relay, nodes) as grid:
        outcomes = exchange(grid, "answer", dict.fromkeys(nodes, b""), None)
    expected = Failure(FailureCode.AGENT_FAILED, "the agent did not answer")
    assert outcomes == dict.fromkeys(nodes, expected)


def test_the_relay_answers_nothing_but_its_three_queries() -> None:
    with LocalGrid(relay, {1: {"agent": "local:nobody"}}) as grid:
        outcome = exchange(grid, "weights", {1: b""}, None)[1]
    assert outcome == Failure(FailureCode.APP_RAISED, "the client app raised an exception")


def test_the_relay_never_imports_torch() -> None:
    heavy = "{'torch', 'opacus', 'sklearn', 'scipy', 'matplotlib', 'dp_accounting'}"
    code = f"import sys, client.app; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
