import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import wire
from fedkd.errors import WireError
from fedkd.tensors import pack, unpack
from fedkd.wire import Agreement, Answers, Code, Hello, Learned, Offer, Plan, Refusal, Released
from tests.builders import HASH, HEAD

ASKED = np.arange(2, dtype=np.uint32)


def rows(n: int = 4, k: int = 3, codec: str = "float16") -> np.ndarray:
    x = np.random.default_rng(0).random((n, k))
    return wire.quantise(x / x.sum(1, keepdims=True), codec)


def plan(**changes: object) -> Plan:
    whole = rows()
    given_ = Plan("run", HASH, 2, True, 1.0, wire.labels_digest(whole), np.arange(4, dtype=np.uint32), whole, ASKED, "")
    return replace(given_, **changes)


MESSAGES = [
    Hello("client-0"),
    Offer("run", "server", HASH, 400, 10, 400, 5, "float16", "mean", 10, HEAD),
    Agreement("run", "client-0", HASH, np.array([9], np.uint64), 1, "os", HEAD),
    plan(),
    Answers("run", "client-0", 2, HASH, Released(rows(), ""), HEAD),
    Learned("run", "client-0", 2),
    Refusal("client-0", Code.FAILED),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.kind)
def test_a_message_survives_the_wire_and_has_one_encoding(message: wire.Message) -> None:
    data = wire.encode(message)
    back = wire.decode(data, type(message))
    assert wire.encode(back) == data


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.kind)
def test_a_message_with_one_more_field_is_refused(message: wire.Message) -> None:
    arrays, header = unpack(wire.encode(message))
    with pytest.raises(WireError, match="schema"):
        wire.decode(pack(arrays, {**header, "loss": 0.5}), type(message))
    with pytest.raises(WireError, match="schema"):
        wire.decode(pack({**arrays, "weights": np.zeros(3)}, header), type(message))


def test_a_message_of_another_kind_or_schema_is_refused() -> None:
    arrays, header = unpack(wire.encode(Hello("a")))
    with pytest.raises(WireError, match="another kind"):
        wire.decode(wire.encode(Hello("a")), Plan)
    with pytest.raises(WireError, match="schema version"):
        wire.decode(pack(arrays, {**header, "schema": 99}), Hello)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_bytes_raise_anything_but_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode(data, Plan, Answers, Refusal)


@given(st.integers(0, 10**6), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_gives_a_message_or_a_wire_error(position: int, value: int) -> None:
    data = bytearray(wire.encode(plan()))
    data[position % len(data)] = value
    with contextlib.suppress(WireError):
        wire.decode(bytes(data), Plan)


@pytest.mark.parametrize(
    "change",
    [{"round": -1}, {"round": True}, {"round": 1.0}, {"temperature": 0.0}, {"run": "../etc"}, {"labels": "zz"},
     {"answer": 1}],
)  # fmt: skip
def test_values_outside_the_schema_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(WireError):
        wire.decode(wire.encode(plan(**change)), Plan)


def test_not_finite_rows_are_refused() -> None:
    bad = rows()
    bad[0, 0] = np.nan
    with pytest.raises(WireError, match="finite"):
        wire.decode(wire.encode(plan(rows=bad)), Plan)


def test_answers_must_be_probabilities_of_the_right_shape() -> None:
    wire.check_rows(rows(), 4, 3)
    for bad in (rows(5), rows(4, 2), rows() * 2, -rows(), rows() * np.float16(0.5)):
        with pytest.raises(WireError):
            wire.check_rows(bad, 4, 3)


def test_only_changed_rows_need_to_travel() -> None:
    old, new = rows(), rows().copy()
    new[2] = new[2][::-1]
    ids = wire.changed(old, new)
    assert ids.tolist() == [2]
    sent = plan(ids=ids, rows=new[ids], labels=wire.labels_digest(new))
    assert np.array_equal(wire.merge(old, sent, 4, 3), new)


def test_changes_to_another_matrix_are_noticed() -> None:
    old, new = rows(), rows().copy()
    new[2] = new[2][::-1]
    sent = plan(ids=np.array([2], np.uint32), rows=new[2:3], labels=wire.labels_digest(new))
    with pytest.raises(WireError, match="another matrix"):
        wire.merge(None, sent, 4, 3)
    with pytest.raises(WireError):
        wire.merge(old, replace(sent, ids=np.array([9], np.uint32)), 4, 3)


def test_a_plan_is_the_same_whichever_rows_say_it() -> None:
    assert plan().identity == plan(ids=np.zeros(0, np.uint32), rows=rows()[:0]).identity
    assert plan().identity != plan(round=3).identity != plan(answer=False).identity
