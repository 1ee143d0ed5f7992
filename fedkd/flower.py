"""Everything the core needs from Flower: exchanges over a Grid, and a Grid within this process.

Flower changes often and some of what is needed here is private to it, so the core touches it in this one module.
A payload crosses Flower as ONE opaque block of bytes: whatever else a message could carry (metrics, configs, extra
arrays) is refused, so that the wire format decides alone what may leave a device. This module never imports torch:
the relay loads it in a new process for every message.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import IntEnum
from queue import Empty, SimpleQueue

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER as NODE_KEY_HEADER
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

from fedkd.errors import WireError

__all__ = [
    "NODE_KEY_HEADER", "Failure", "FailureCode", "LocalGrid", "exchange", "failure_reply", "is_simulation",
    "lifetime_of", "node_ids", "payload_of", "reply_with",
]  # fmt: skip

_log = logging.getLogger(__name__)

# -- One block of bytes in a message -----------------------------------------------------------------------------------

_RECORD, _ARRAY, _STYPE = "payload", "bytes", "fedkd.bytes"


class FailureCode(IntEnum):
    """Why there is no answer. Codes below 100 are Flower's own (5: the node is gone, 8: the app crashed)."""

    APP_RAISED = 2
    AGENT_FAILED = 100
    NOT_SENT = 101
    NO_REPLY = 102
    BAD_REPLY = 103


@dataclass(frozen=True)
class Failure:
    """A node that gave no usable answer. ``reason`` may come from the other side: show it, never parse it."""

    code: int
    reason: str


def payload_of(message: Message) -> bytes:
    """The block of bytes in ``message``; raises WireError unless it is all that the message carries.

    The bytes are kept as they are, without numpy's header: nothing that a hostile peer wrote is parsed here.
    """
    if not message.has_content() or set(message.content) != {_RECORD}:
        raise WireError("a message must carry exactly one record, the payload")
    record = message.content[_RECORD]
    if not isinstance(record, ArrayRecord) or set(record) != {_ARRAY}:
        raise WireError("a payload must be exactly one array of bytes")
    array = record[_ARRAY]
    if (array.stype, array.dtype, array.shape) != (_STYPE, "uint8", (len(array.data),)):
        raise WireError("a payload must be a one-dimensional array of bytes")
    return bytes(array.data)


def reply_with(message: Message, payload: bytes) -> Message:
    """The reply to ``message`` that carries ``payload``."""
    return Message(_content(payload), reply_to=message)


def failure_reply(message: Message, code: FailureCode, reason: str) -> Message:
    """The reply to ``message`` that says it failed. ``reason`` must be a constant: it leaves the device."""
    return Message(Error(int(code), reason), reply_to=message)


def lifetime_of(message: Message) -> float:
    """Seconds the sender is ready to wait in all for the reply to ``message``."""
    return message.metadata.ttl


def _content(payload: bytes) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(payload),), stype=_STYPE, data=bytes(payload))
    return RecordDict({_RECORD: ArrayRecord({_ARRAY: array})})


# -- One exchange with many nodes --------------------------------------------------------------------------------------

_POLL_SECONDS = 0.5
_POLL_SECONDS_PER_NODE = 0.02  # a large federation asks less often
_REASON_LIMIT = 200


def exchange(
    grid: Grid, action: str, payloads: Mapping[int, bytes], timeout: float | None
) -> dict[int, bytes | Failure]:
    """Send each node its payload as ``query.<action>`` and collect one outcome per node, in the order of ``payloads``.

    Waits ``timeout`` seconds at most, whatever the nodes do; what has not come by then is a Failure.
    Messages expire at the same moment, so that no node starts on a round that is over. ``None`` waits until the
    last reply and is for a LocalGrid alone, where no node can vanish.
    """
    if timeout is None and not isinstance(grid, LocalGrid):
        raise ValueError("an exchange with real nodes needs a timeout")
    if timeout is not None and timeout <= 0:
        raise ValueError(f"timeout must be positive, not {timeout}")
    sent = _push(grid, [_instruction(node, action, payload, timeout) for node, payload in payloads.items()])
    outcomes = _collect(grid, sent, timeout)
    reached = set(sent.values())
    return {node: outcomes[node] if node in outcomes else _missing(node in reached) for node in payloads}


def node_ids(grid: Grid, minimum: int, timeout: float) -> list[int]:
    """The connected nodes, sorted, as soon as there are ``minimum``; at the deadline, however many there are."""
    deadline = time.monotonic() + timeout
    while True:
        nodes = sorted(grid.get_node_ids())
        remaining = deadline - time.monotonic()
        if len(nodes) >= minimum or remaining <= 0:
            return nodes
        time.sleep(min(_POLL_SECONDS, remaining))


def is_simulation(grid: Grid) -> bool:
    """Whether the nodes are Flower's simulated ones, on this machine."""
    from flwr.superlink.grid import InMemoryGrid  # brings a database, which the relay can do without

    return isinstance(grid, InMemoryGrid)


def _instruction(node: int, action: str, payload: bytes, timeout: float | None) -> Message:
    return Message(_content(payload), dst_node_id=node, message_type=f"query.{action}", ttl=timeout)


def _push(grid: Grid, messages: list[Message]) -> dict[str, int]:
    """Message id -> node, for the messages that were taken; grids report rejects in different ways."""
    taken = {message_id for message_id in grid.push_messages(messages) if message_id}
    ids = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    return {message_id: node for message_id, node in ids.items() if message_id in taken}


def _collect(grid: Grid, sent: Mapping[str, int], timeout: float | None) -> dict[int, bytes | Failure]:
    waiting, over = dict(sent), threading.Event()
    outcomes: dict[int, bytes | Failure] = {}
    deadline = None if timeout is None else time.monotonic() + timeout
    arrivals = _arrivals_local if isinstance(grid, LocalGrid) else _arrivals_remote
    try:
        for message_id, arrival in arrivals(grid, list(waiting), deadline, over):
            node = waiting.pop(message_id)
            outcomes[node] = _outcome(arrival, node)
    finally:
        over.set()
    return outcomes


_Arrival = tuple[str, Message | Exception | RunNotRunningException]  # the last is a BaseException


def _arrivals_local(grid: Grid, ids: list[str], deadline: float | None, _over: object) -> Iterator[_Arrival]:
    assert isinstance(grid, LocalGrid)
    waiting = set(ids)
    while waiting:
        grid.wait(waiting, _remaining(deadline))
        replies = grid.pull_messages(sorted(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in replies}
        yield from ((reply.metadata.reply_to_message_id, reply) for reply in replies)
        if _remaining(deadline) == 0:
            break
    grid.abandon(waiting)


def _arrivals_remote(grid: Grid, ids: list[str], deadline: float | None, over: threading.Event) -> Iterator[_Arrival]:
    """Fetch each reply on a thread of its own, and leave behind at the deadline those that hang.

    A grid lists a reply as soon as its upload begins and then waits, for minutes, until the upload ends. Fetched
    together, one node that dies or stalls half-way would take everybody's replies with it.
    """
    queue: SimpleQueue[_Arrival] = SimpleQueue()
    pause = max(_POLL_SECONDS, _POLL_SECONDS_PER_NODE * len(ids))
    for index, message_id in enumerate(ids):
        first = pause * (index + 1) / len(ids)  # spread out: the transport has a hundred connections
        threading.Thread(target=_fetch, args=(grid, message_id, (first, pause), over, queue), daemon=True).start()
    for _ in ids:
        try:
            message_id, arrival = queue.get(timeout=_remaining(deadline))
        except Empty:
            return
        if isinstance(arrival, RunNotRunningException):
            raise arrival
        yield message_id, arrival


def _fetch(
    grid: Grid, message_id: str, pauses: tuple[float, float], over: threading.Event, queue: SimpleQueue[_Arrival]
) -> None:
    """Ask for one reply after the first pause, then after each further pause, until it is there or ``over``."""
    pause, later = pauses
    while not over.wait(pause):
        pause = later
        try:
            replies = list(grid.pull_messages([message_id]))
        except (Exception, RunNotRunningException) as error:
            # A reply that cannot be put together must cost its sender the round, not everybody the run.
            return queue.put((message_id, error))
        for reply in replies:
            if reply.metadata.reply_to_message_id == message_id:
                return queue.put((message_id, reply))


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _outcome(reply: Message | BaseException, node: int) -> bytes | Failure:
    if isinstance(reply, BaseException):
        _log.warning("the reply of node %d could not be fetched", node, exc_info=reply)
        return Failure(FailureCode.BAD_REPLY.value, "the reply could not be fetched")
    if reply.has_error():
        return Failure(reply.error.code, _printable(reply.error.reason or ""))
    if reply.metadata.src_node_id != node:
        return Failure(FailureCode.BAD_REPLY.value, "the reply comes from another node")
    try:
        return payload_of(reply)
    except WireError as error:
        return Failure(FailureCode.BAD_REPLY.value, error.what)


def _missing(sent: bool) -> Failure:
    if sent:
        return Failure(FailureCode.NO_REPLY.value, "no reply before the deadline")
    return Failure(FailureCode.NOT_SENT.value, "the message was not accepted for delivery")


def _printable(text: str) -> str:
    """Text from the other side, made safe for a console: short, and without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:_REASON_LIMIT])


# -- A grid within this process ----------------------------------------------------------------------------------------

_RUN_ID = 1
NodeConfig = Mapping[str, bool | int | float | str]


class LocalGrid(Grid):
    """Runs a ClientApp for every message on a pool of threads: a simulation without SuperLink or Ray.

    Messages to one node never overlap. What the app raises becomes an error reply with a constant reason, as a real
    node's would after the relay; the traceback goes to this process's log.
    """

    def __init__(
        self, app: ClientApp, nodes: Mapping[int, NodeConfig], workers: int = 1, pool: ThreadPoolExecutor | None = None
    ) -> None:
        """``pool`` is used, and shut down at the end, instead of one of ``workers`` threads."""
        _claim_task_identity()
        self._app = app
        self._contexts = {node: _local_context(node, config) for node, config in nodes.items()}
        self._turns = {node: threading.Lock() for node in nodes}
        self._pool = pool or ThreadPoolExecutor(max_workers=workers, thread_name_prefix="node")
        self._replies: dict[str, Future[Message]] = {}
        self._pushed = 0
        self._run = Run.create_empty(_RUN_ID)

    def __enter__(self) -> LocalGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let running apps finish and drop the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def run(self) -> Run:
        return self._run

    def set_run(self, run: Run) -> None:
        self._run = run

    def get_node_ids(self) -> list[int]:
        return sorted(self._contexts)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Start the app for each message. The id of a message to an unknown node is the empty string."""
        return [self._start(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have come, each one once."""
        ready = [key for key in message_ids if key in self._replies and self._replies[key].done()]
        return [self._replies.pop(key).result() for key in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        ids = [key for key in self.push_messages(messages) if key]
        wait([self._replies[key] for key in ids], timeout)
        replies = self.pull_messages(ids)
        self.abandon(ids)
        return replies

    def wait(self, message_ids: Iterable[str], timeout: float | None) -> None:
        """Return when one more of the replies has come, or after ``timeout`` seconds."""
        futures = [self._replies[key] for key in message_ids if key in self._replies]
        wait(futures, timeout, return_when=FIRST_COMPLETED)

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Forget messages nobody waits for any more; those not yet begun will never run."""
        for key in message_ids:
            reply = self._replies.pop(key, None)
            if reply is not None:
                reply.cancel()

    def _start(self, message: Message) -> str:
        if message.metadata.dst_node_id not in self._contexts:
            return ""
        self._pushed += 1
        key = f"local-{self._pushed}"
        message.metadata.__dict__["_message_id"] = key
        self._replies[key] = self._pool.submit(self._answer, message)
        return key

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        with self._turns[node]:
            try:
                return self._app(message, self._contexts[node])
            except Exception:
                _log.exception("the client app of node %d raised", node)
                return failure_reply(message, FailureCode.APP_RAISED, "the client app raised an exception")


def _local_context(node: int, config: NodeConfig) -> Context:
    return Context(
        run_id=_RUN_ID, node_id=node, node_config=dict(config), state=RecordDict(), run_config={"config": ""}
    )


def _claim_task_identity() -> None:
    """Flower stamps messages with the identity of the process's task, which exists only inside a run: make one up."""
    try:
        TaskIdentity.run_id  # noqa: B018 - the property raises while there is no identity
    except RuntimeError:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, 1
