"""What leaves a device is a charged release or a fixed word, and says nothing else about private data."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import client.agent
from client.learner import Learner
from fedkd import codecs, wire
from fedkd.aggregate.mean import Mean
from fedkd.aggregate.rule import Central
from fedkd.config import Aggregate, Policy, Student
from fedkd.errors import BudgetExceeded, DataError, FedkdError, LedgerError, WireError
from fedkd.privacy.contract import Refused
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.mechanisms import DpSgd, Unprotected
from fedkd.privacy.noise import NoiseSource
from fedkd.tensors import pack, unpack
from fedkd.wire import Agreement, Answers, Code, Hello, Learned, Offer, Plan, Refusal, Released
from tests.builders import HASH, agreement, contract
from tests.builders import answers as answers_of

ROWS = np.full((6, 2), 0.5, np.float32)
REPLIES = (Answers, Learned, Refusal)


def names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


# -- the schema -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [
        (Hello, ["client"]),
        (
            Offer,
            [
                *("run", "server", "proxy", "examples", "classes", "queries", "rounds", "codec", "aggregate"),
                *("clients", "seen", "augment"),
            ],
        ),
        (Agreement, ["run", "client", "contract", "variances", "shards", "noise", "head"]),
        (Plan, ["run", "proxy", "round", "answer", "temperature", "labels", "ids", "rows", "asked", "seen"]),
        (Answers, ["run", "client", "round", "plan", "rows", "head"]),
        (Learned, ["run", "client", "round"]),
        (Refusal, ["client", "code"]),
    ],
)
def test_a_message_has_these_fields_and_no_others(kind: type, frozen: list[str]) -> None:
    """No weights, gradients, losses, example counts, label lists or texts; nothing of a client's privacy either."""
    assert names(kind) == frozen


def test_these_are_all_messages_and_all_words_of_refusal() -> None:
    assert set(wire.Message.__args__) == {Hello, Offer, Agreement, Plan, Answers, Learned, Refusal}
    assert {code.value for code in Code} == {
        "malformed",
        "proxy_not_allowed",
        "proxy_not_held",
        "label_list_differs",
        "too_many_rounds",
        "too_many_answers",
        "mechanism_not_allowed",
        "too_few_clients",
        "budget_exhausted",
        "no_contract",
        "contract_differs",
        "plan_differs",
        "round_out_of_order",
        "stale_soft_labels",
        "rolled_back",
        "late",
        "failed",
    }


def test_the_bytes_of_answers_hold_the_schema_and_the_rows_alone() -> None:
    arrays, header = unpack(wire.encode(answers_of(ROWS)))
    assert header == {
        "schema": 3,
        "kind": "answers",
        "run": "run-1",
        "client": "alice",
        "round": 1,
        "plan": HASH,
        "head": "",
    }
    assert list(arrays) == ["rows"]


@pytest.mark.parametrize("rows", [ROWS, ROWS.tolist(), None])
def test_only_a_release_can_be_sent(rows: Any) -> None:
    with pytest.raises(WireError, match="only a release"):
        wire.encode(replace(answers_of(ROWS), rows=rows))


@pytest.mark.parametrize("mechanism", [DpSgd, Unprotected])
def test_a_mechanism_releases_probabilities_whatever_the_student_says(mechanism: type) -> None:
    made = mechanism(contract(PrivacyEvent("dp_sgd", 1.0, 1.0, 1)))
    for rows in ([[0.2, 0.8]], [[-1.0, 3.0]], [[0.0, 0.0]], [[1e30, 1e30]]):
        released = made.release(made.bound(np.array([rows])), NoiseSource(bytes(32)))
        wire.check_rows(released.rows, 1, 2)
    for value in (math.nan, math.inf):
        with pytest.raises(FedkdError, match="not finite"):
            made.bound(np.array([[[0.5, value]]]))


@pytest.mark.parametrize("name", ["loss", "examples", "labels_seen", "error", "epsilon", "noise_multiplier", "clip"])
@pytest.mark.parametrize("message", ["answers", "refusal", "learned", "agreement", "offer", "plan"])
def test_a_message_with_one_field_more_is_refused(name: str, message: str, new_device: Any) -> None:
    device = new_device()
    messages: dict[str, Any] = {
        "answers": answers_of(ROWS),
        "refusal": Refusal("alice", Code.FAILED),
        "learned": Learned("run-1", "alice", 1),
        "agreement": agreement(),
        "offer": device.offer(),
        "plan": device.plan(soft=0.5),
    }
    arrays, header = unpack(wire.encode(messages[message]))
    for more in (pack(arrays, {**header, name: 1.0}), pack({**arrays, name: np.ones(1, np.float32)}, header)):
        with pytest.raises(WireError):
            wire.decode(more, type(messages[message]))


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_plans_have_no_say_in_privacy(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    private = set(Policy.model_fields) - {"proxies"}
    assert not private & {*names(Offer), *names(Plan)}
    for method, message in (("agree", device.offer()), ("answer", device.plan(soft=0.5))):
        arrays, header = unpack(wire.encode(message))
        for name in ("epsilon", "noise_multiplier", "clip", "steps", "sample_rate", "mechanism"):
            reply = agent.handle(method, pack(arrays, {**header, name: 100}))
            assert wire.decode(reply, Refusal).code is Code.MALFORMED
    assert agent.ledger.open_contract() is None and not agent.ledger.history()


def requests(device: Any) -> dict[str, tuple[str, Any]]:
    """One request for every word that a client can say no with before it has charged anything."""
    other = "1" * 64
    return {
        "answers": ("answer", device.plan(1, soft=0.5)),
        "another plan": ("answer", device.plan(1, soft=0.6)),
        "no contract": ("answer", device.plan(1, run="run-9")),
        "no such round": ("answer", device.plan(7)),
        "another proxy set": ("answer", device.plan(2, proxy=other)),
        "stale labels": ("answer", device.plan(2, labels=other)),
        "no probabilities": ("answer", device.plan(2, soft=7.0)),
        "only learn": ("answer", device.plan(2, soft=0.4, answer=False)),
        "offer of another proxy set": ("agree", device.offer(run="run-2", proxy=other)),
        "offer of too many rounds": ("agree", device.offer(run="run-2", rounds=2000)),
        "offer of other labels": ("agree", device.offer(run="run-2", classes=3)),
        "another offer": ("agree", device.offer(rounds=2)),
        "no method": ("erase", device.offer()),
        "another kind": ("answer", device.offer()),
    }


def replies(device: Any) -> dict[str, bytes]:
    agent = device.start()
    device.agree(agent)
    found = {name: agent.handle(method, wire.encode(message)) for name, (method, message) in requests(device).items()}
    agent.close()
    return found


@pytest.fixture(scope="module")
def usual_replies(new_device: Any) -> dict[str, bytes]:
    return replies(new_device(policy={"max_rounds": 1000}))


@settings(max_examples=8, deadline=None)
@given(n=st.integers(0, 30), seed=st.integers(0, 99), scale=st.sampled_from([0.0, 1.0, 1e30]))
def test_refusals_and_lengths_are_the_same_for_all_private_data(
    n: int, seed: int, scale: float, new_device: Any, private_examples: Any, usual_replies: dict[str, bytes]
) -> None:
    x, y = private_examples(n, seed)
    found = replies(new_device(data=((x * scale).astype(np.float32), y)))
    answered = {name for name, reply in found.items() if isinstance(wire.decode(reply, *REPLIES), Answers)}
    assert answered == {"answers"}
    assert {name: found[name] for name in found if name not in answered} == {
        name: usual_replies[name] for name in usual_replies if name not in answered
    }
    assert {name: len(reply) for name, reply in found.items()} == {
        name: len(reply) for name, reply in usual_replies.items()
    }


def test_each_request_is_refused_with_its_own_word(usual_replies: dict[str, bytes]) -> None:
    found = {name: wire.decode(reply, *REPLIES) for name, reply in usual_replies.items()}
    assert isinstance(found.pop("answers"), Answers) and isinstance(found.pop("only learn"), Learned)
    assert {name: reply.code for name, reply in found.items()} == {
        "another plan": Code.PLAN,
        "no contract": Code.NO_CONTRACT,
        "no such round": Code.ROUNDS,
        "another proxy set": Code.PROXY,
        "stale labels": Code.STALE,
        "no probabilities": Code.MALFORMED,
        "offer of another proxy set": Code.PROXY,
        "offer of too many rounds": Code.ROUNDS,
        "offer of other labels": Code.LABELS,
        "another offer": Code.CONTRACT,
        "no method": Code.MALFORMED,
        "another kind": Code.MALFORMED,
    }


SECRET = "record 17 is a 9"
EXCEPTIONS = [
    ValueError(SECRET),
    RuntimeError(SECRET),
    MemoryError(SECRET),
    FloatingPointError(SECRET),
    StopIteration(SECRET),
    DataError(SECRET, where=SECRET),
    WireError(SECRET),
    LedgerError(SECRET),
    BudgetExceeded(SECRET),
    *(Refused(code) for code in Code),
]


@pytest.mark.parametrize("error", EXCEPTIONS, ids=repr)
@pytest.mark.parametrize("step", ["learn", "answer"])
def test_after_the_charge_every_failure_has_the_same_bytes(
    error: Exception, step: str, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, agent = started

    def fails(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(Learner, step, fails)
    reply = device.ask(agent, device.plan())
    assert reply == wire.encode(Refusal("alice", Code.FAILED))


@pytest.fixture(scope="module")
def started(new_device: Any) -> Any:
    """A device and its agent under contract, for tests that only fail the first round."""
    device = new_device()
    agent = client.agent.Agent(device.base / "client.yaml", device.console.append)
    device.agree(agent)
    yield device, agent
    agent.close()


def test_the_console_has_the_first_traceback_and_then_a_line(
    new_device: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)

    def fails(*arguments: Any) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(Learner, "learn", fails)
    replies = {device.ask(agent, device.plan()) for _ in range(3)}
    assert len(replies) == 1 and SECRET.encode() not in replies.pop()
    first, *later = device.console
    assert "Traceback" in first and SECRET in first
    assert later == [f"client alice failed: ValueError: {SECRET}"] * 2
    assert capsys.readouterr() == ("", "")


def test_a_stricter_policy_holds_at_once_also_under_an_old_contract(new_device: Any) -> None:
    for old, new in (
        ({"mechanism": "none"}, {}),
        ({}, {"epsilon": 1.0}),
        ({}, {"clip": 0.5}),
        ({}, {"delta": 1e-6}),
        ({"noise": "simulation", "seed": 1}, {}),
        ({}, {"nominal_examples": 10}),
        ({}, {"sample_rate": 0.5}),
        ({}, {"max_rounds": 2}),
        ({}, {"max_answers": 2}),
        ({}, {"min_noise": 500.0}),
        ({}, {"client_epsilon": 1.0}),
        ({}, {"lifetime_epsilon": 1.0}),
    ):
        device = new_device(policy=old)
        agent = device.start()
        assert isinstance(device.agree(agent), Agreement)
        agent.close()
        device.decide(**new)
        agent = device.start()
        assert wire.decode(device.ask(agent, device.plan()), Refusal).code is Code.CONTRACT
        assert not agent.ledger.history()
        agent.close()


def test_a_higher_limit_does_not_end_a_contract(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    agent.close()
    device.decide(epsilon=9.0)
    assert wire.decode(device.ask(device.start(), device.plan()), Answers).round == 1


# -- private records in the proxy set ---------------------------------------------------------------------------------


def test_private_records_of_the_proxy_set_are_dropped_one_by_one(new_device: Any, private_examples: Any) -> None:
    device = new_device()
    public = device.proxy.examples
    x, y = private_examples(10, 5)
    mixed = np.concatenate([x[:4], public[:2], x[4:], public[2:3]])
    device.hold(mixed, np.concatenate([y[:4], [0, 1], y[4:], [0]]))
    agent = device.start()
    assert np.array_equal(agent.learner.data.y.numpy(), y)
    assert torch.equal(agent.learner.data.x, agent.learner.model.inputs(x))
    assert any("3 records are also in the proxy set" in line for line in device.console)


def test_nothing_shows_that_records_have_been_dropped(new_device: Any, private_examples: Any) -> None:
    policy = {"noise": "simulation", "seed": 3}
    x, y = private_examples(10, 5)
    clean = new_device(data=(x, y), policy=policy)
    mixed = new_device(policy=policy)
    public = mixed.proxy.examples
    mixed.hold(np.concatenate([public, x]), np.concatenate([np.zeros(len(public), np.int64), y]))
    assert replies(mixed) == replies(clean)


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("sample_rate", [0.3, 1.0])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_client_without_private_data_of_its_own_still_answers(
    left: int, sample_rate: float, kind: str, new_device: Any, private_examples: Any
) -> None:
    device = new_device(policy={"sample_rate": sample_rate}, client={"student": Student(kind=kind)})
    x, y = private_examples(left, 5)
    public = device.proxy.examples
    device.hold(np.concatenate([public, x]), np.concatenate([np.zeros(len(public), np.int64), y]))
    agent = device.start()
    before = agent.learner.save()
    device.agree(agent)
    answers = wire.decode(device.ask(agent, device.plan()), Answers)
    wire.check_rows(answers.rows.rows, len(public), 2)
    assert agent.learner.save() != before  # it has taken steps of noise
    assert len(agent.ledger.export()["events"]) == 1


def test_one_record_that_makes_the_student_overflow_cannot_be_seen(new_device: Any, private_examples: Any) -> None:
    """A server that has driven the weights far out must not learn by a failure whether a certain record is there."""
    x, y = private_examples(10, 5)
    x[0] = 1e30
    device = new_device(data=(x, y))
    agent = device.start()
    device.agree(agent)
    weights = agent.learner.model.arrays()
    agent.learner.model.load({name: np.full_like(array, 1e37) for name, array in weights.items()})
    agent.learner.model.network.body.weight.data[1] *= -1
    agent.lineage.fresh = agent.learner.save()  # where its first round starts
    reply = wire.decode(device.ask(agent, device.plan()), Answers, Refusal)
    assert isinstance(reply, Answers), reply


def test_an_absurd_record_is_clamped_and_clipped_like_any_other(new_device: Any, private_examples: Any) -> None:
    x, y = private_examples(10, 5)
    x[0], x[1] = 1e30, -3e38
    data = new_device(data=(x, y)).start().learner.data
    assert float(data.x[:2].abs().max()) <= 1e4 and bool(data.x.isfinite().all())


# -- whatever arrives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [np.full((6, 2), 1e30, np.float32), np.array([[2, -1]] * 6, np.float32)])
def test_soft_labels_must_be_probabilities(rows: np.ndarray, new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    before = agent.learner.save()
    plan = replace(device.plan(soft=0.5), rows=rows, labels=wire.labels_digest(rows))
    assert wire.decode(device.ask(agent, plan), Refusal).code is Code.MALFORMED
    assert agent.learner.save() == before and not agent.ledger.history()


@pytest.mark.parametrize("codec", ["float16", "int8", "label", "top2+zlib"])
def test_a_codec_packs_what_has_been_released_and_costs_nothing(codec: str, new_device: Any) -> None:
    sent, charged = {}, {}
    for name in ("float32", codec):
        device = new_device(policy={"noise": "simulation", "seed": 0})
        agent = device.start()
        device.agree(agent, codec=name)
        sent[name] = wire.decode(device.ask(agent, device.plan()), Answers).rows.rows
        charged[name] = [event["noise_multiplier"] for event in agent.ledger.export()["events"]]
    assert (sent[codec] == codecs.pack(sent["float32"], codec)).all()
    assert charged[codec] == charged["float32"]


def test_labels_that_are_sent_whole_replace_those_of_another_codec(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    rows = np.full((6, 2), 0.5, np.float16)
    for soft in (np.float32(rows), rows):
        plan = replace(device.plan(soft=0.5, answer=False), rows=soft, labels=wire.labels_digest(soft))
        assert wire.decode(device.ask(agent, plan), Learned).round == plan.round


@settings(max_examples=150, deadline=None)
@given(payload=st.binary(max_size=300), method=st.sampled_from(["agree", "answer", "nothing", ""]))
def test_noise_on_the_line_is_refused(payload: bytes, method: str, started: Any) -> None:
    _, agent = started
    assert wire.decode(agent.handle(method, payload), Refusal).code in (Code.MALFORMED, Code.FAILED)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=9), st.just([]), st.just({})
)
ARRAYS = st.sampled_from(
    [
        np.zeros(shape, dtype)
        for shape in ((0,), (6,), (6, 2), (0, 2), (2, 6), (1, 1, 1))
        for dtype in ("f2", "f4", "f8", "u4", "i8")
    ]
    + [np.full((6, 2), math.nan, np.float32), np.arange(6, dtype=np.uint32) + 3, np.full(6, 2**32 - 1, np.uint32)]
)


@st.composite
def mutated(draw: st.DrawFn, message: bytes) -> bytes:
    """A valid message in which something has been changed, left out, added, cut off or flipped."""
    arrays, header = unpack(message)
    how = draw(st.sampled_from(["scalar", "array", "without", "more", "cut", "flip"]))
    if how == "scalar":
        header[draw(st.sampled_from(sorted(header)))] = draw(SCALARS)
    elif how == "array":
        arrays[draw(st.sampled_from([*sorted(arrays), "rows"]))] = draw(ARRAYS)
    elif how == "without":
        header.pop(draw(st.sampled_from(sorted(header))))
    elif how == "more":
        header[draw(st.text(max_size=5))] = draw(SCALARS)
    if how in ("cut", "flip"):
        at = draw(st.integers(0, len(message) - 1))
        return message[:at] + (
            b"" if how == "cut" else bytes([message[at] ^ (1 << draw(st.integers(0, 7)))]) + message[at + 1 :]
        )
    packed = json.dumps(header).encode()  # NaN too, which canonical JSON has not
    body = pack(arrays, {"hole": "hole"})
    length = int.from_bytes(body[:8], "little")
    outer = json.loads(body[8 : 8 + length])
    outer["__metadata__"]["fedkd"] = packed.decode()
    head = json.dumps(outer).encode()
    return len(head).to_bytes(8, "little") + head + body[8 + length :]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_message_gets_a_valid_reply_and_never_an_exception(data: st.DataObject, started: Any) -> None:
    device, agent = started
    method = data.draw(st.sampled_from(["agree", "answer"]))
    original = device.offer() if method == "agree" else device.plan(1, soft=0.5, answer=False)
    payload = data.draw(mutated(wire.encode(original)))
    reply = agent.handle(method, payload)
    wire.decode(reply, *((Agreement, Refusal) if method == "agree" else (Learned, Refusal)))
    assert len(reply) < 1000


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_reply_is_either_understood_or_a_wire_error(data: st.DataObject) -> None:
    message = answers_of(ROWS)
    try:
        decoded = wire.decode(data.draw(mutated(wire.encode(message))), Answers)
    except WireError:
        return
    assert isinstance(decoded.rows, Released) and np.isfinite(decoded.rows.rows).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reply_that_is_not_finite_is_a_wire_error(value: float) -> None:
    answers = wire.encode(answers_of(np.full((6, 2), value, np.float32)))
    with pytest.raises(WireError, match="finite"):
        wire.decode(answers, Answers)


# -- on the server ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(7)), seed=st.integers(0, 99))
def test_answers_in_any_order_give_the_same_bytes(order: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.dirichlet([0.05] * 3, size=(7, 5)).astype(np.float32)
    central, features = Central((), NoiseSource(bytes(32)), 7), np.zeros((5, 1), np.float32)

    def total(indices: Any) -> bytes:
        mean = Mean(Aggregate())
        acc = mean.start(5, 3, ())
        for index in indices:
            acc = mean.fold(acc, "", rows[index])
        return acc.total.tobytes() + mean.finish(acc, central, features).rows.tobytes()

    assert total(order) == total(range(7))
