"""The client is the one who decides: its own policy says to what it agrees, how much noise there is, and when answers
leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.agent import Agent
from client.learner import Learner
from client.lineage import BARE
from fedkd import wire
from fedkd.config import FEW_IN_A_SUM, FEWEST_IN_A_SUM, Policy
from fedkd.data import proxy
from fedkd.distill import features
from fedkd.errors import FedkdError
from fedkd.privacy.accounting import Pld
from fedkd.privacy.blocks import by_block
from fedkd.privacy.contract import Contract, Refused, allows, draw_up
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.filters import first_choice
from fedkd.privacy.limits import Past
from fedkd.privacy.units import adjacency, seen_by
from fedkd.tensors import digest
from fedkd.wire import Agreement, Answers, Code, Learned, Refusal
from tests import builders
from tests.guards.conftest import examples

REPLIES = (Agreement, Answers, Learned, Refusal)
QUIET = {"accept_low_utility": True}


def code(reply: bytes) -> Code | None:
    """The code of a refusal; None for any other reply."""
    message = wire.decode(reply, Answers, Learned, Refusal)
    return message.code if isinstance(message, Refusal) else None


def offered(agent: Agent, offer: Any) -> Code | None:
    message = wire.decode(agent.handle("agree", wire.encode(offer)), Agreement, Refusal)
    return message.code if isinstance(message, Refusal) else None


# -- refusals are functions of plan, policy and ledger ----------------------------------------------------------------

ASKED = {"all of six": [], "two": [1, 4], "three": [0, 1, 2], "one": [5], "twice the same": [1, 1],
         "falling": [4, 1], "outside": [1, 6]}  # fmt: skip
PRIVATE = {"nothing": (0, 1.0), "a few records": (7, 1.0), "absurd records": (25, 1e30)}


@pytest.fixture(params=PRIVATE)
def somebody(request: pytest.FixtureRequest, private_examples: Any) -> tuple[np.ndarray, np.ndarray]:
    n, scale = PRIVATE[request.param]
    x, y = private_examples(n, 3)
    return (x * scale).astype(np.float32), y


def test_whatever_the_private_data_offers_are_refused_with_the_same_words(new_device: Any, somebody: Any) -> None:
    device = new_device(data=somebody, policy={"max_answers": 4, "max_rounds": 5, "also": ["sum"]})
    agent, found = device.start(), {}
    for run, offer in {
        "more answers than the policy allows": {"queries": 5},
        "more answers than there are examples": {"queries": 7},
        "no answers": {"queries": 0},
        "an aggregate of no mechanism": {"aggregate": "votes", "queries": 2},
        "the same with a threshold": {"aggregate": "confident_votes", "queries": 2},
        "a sum of too few": {"aggregate": "sum", "queries": 2, "clients": FEWEST_IN_A_SUM - 1},
        "more rounds than the policy allows": {"queries": 2, "rounds": 6},
        "another proxy set": {"queries": 2, "proxy": "1" * 64},
        "other classes": {"queries": 2, "classes": 3},
        "a sum": {"aggregate": "sum", "queries": 2, "clients": FEWEST_IN_A_SUM},
        "a mean": {"queries": 2},
    }.items():
        found[run] = offered(agent, device.offer(run=run.replace(" ", "-"), **offer))
    assert found == {
        "more answers than the policy allows": Code.ANSWERS,
        "more answers than there are examples": Code.ANSWERS,
        "no answers": Code.ANSWERS,
        "an aggregate of no mechanism": Code.MECHANISM,
        "the same with a threshold": Code.MECHANISM,
        "a sum of too few": Code.CLIENTS,
        "more rounds than the policy allows": Code.ROUNDS,
        "another proxy set": Code.PROXY,
        "other classes": Code.LABELS,
        "a sum": None,
        "a mean": None,
    }
    assert not agent.ledger.history()


def test_whatever_the_private_data_plans_that_ask_for_something_else_are_refused(
    new_device: Any, somebody: Any
) -> None:
    device = new_device(data=somebody)
    agent = device.start()
    device.agree(agent, queries=2)
    refused = {
        name: code(device.ask(agent, device.plan(asked=np.array(ids, np.uint32)))) for name, ids in ASKED.items()
    }
    assert refused == {name: None if name == "two" else Code.ANSWERS for name in ASKED}
    assert len(agent.ledger.export()["events"]) == 1
    answers = wire.decode(device.ask(agent, device.plan(asked=np.array([1, 4], np.uint32))), Answers)
    assert answers.rows.rows.shape == (2, 2)


def test_the_first_mechanism_that_fits_is_taken(new_device: Any) -> None:
    device = new_device(policy={"mechanism": "gaussian", "also": ["dp_sgd", "votes"], **QUIET})
    agent = device.start()
    for aggregate, mechanism in (("mean", "gaussian"), ("votes", "votes"), ("confident_votes", "votes")):
        assert offered(agent, device.offer(run=aggregate, aggregate=aggregate)) is None
        assert agent.ledger.contract(aggregate).mechanism == mechanism
    assert offered(agent, device.offer(run="run-9", aggregate="sum")) is Code.MECHANISM


@pytest.mark.parametrize("aggregate", ["entropy", "confidence", "majority", "median", "trimmed"])
def test_answers_with_noise_are_given_for_a_mean_alone(aggregate: str, new_device: Any) -> None:
    device = new_device(policy={"mechanism": "gaussian", **QUIET})
    assert offered(device.start(), device.offer(aggregate=aggregate)) is Code.MECHANISM
    other = draw_up(policy(mechanism="dp_sgd"), builders.offer(aggregate=aggregate), Past())
    assert (other.mechanism, other.aggregate) == ("dp_sgd", aggregate)


@pytest.mark.parametrize(("clients", "warned"), [(FEW_IN_A_SUM - 1, True), (FEW_IN_A_SUM, False)])
def test_a_small_sum_is_warned_of(clients: int, warned: bool, new_device: Any) -> None:
    device = new_device(policy={"mechanism": "sum"})
    agent = device.start()
    assert offered(agent, device.offer(aggregate="sum", clients=clients)) is None
    assert any("mostly noise" in line for line in device.console) is warned


def test_noise_on_every_answer_needs_the_owners_word() -> None:
    settings = {"epsilon": 1.0, "nominal_examples": 5, "proxies": "0" * 64}
    for mechanisms in ({"mechanism": "gaussian"}, {"also": ["gaussian"]}):
        with pytest.raises(ValueError, match="accept_low_utility"):
            Policy.model_validate({**settings, **mechanisms})
        assert Policy.model_validate({**settings, **mechanisms, **QUIET})


# -- when answers leave -----------------------------------------------------------------------------------------------


class Clock:
    """Time that passes when somebody sleeps or trains."""

    def __init__(self, agent: Agent, patch: pytest.MonkeyPatch, training: float) -> None:
        self.now, self.training = 1000.0, training
        patch.setattr(agent, "_clock", lambda: self.now)
        patch.setattr(agent, "_sleep", self.sleep)
        learn = Learner.learn

        def trains(*arguments: Any) -> None:
            self.now += self.training
            learn(*arguments)

        patch.setattr(Learner, "learn", trains)

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds

    def takes(self, work: Callable[[], bytes]) -> tuple[bytes, float]:
        began = self.now
        return work(), self.now - began


@pytest.fixture
def punctual(new_device: Any) -> tuple[Any, Agent]:
    device = new_device(policy={"release_offset": 60.0})
    agent = device.start()
    device.agree(agent)
    return device, agent


@pytest.mark.parametrize("training", [0.0, 1.5, 59.0, 60.0])
def test_an_answer_leaves_exactly_at_the_offset_however_long_it_took(
    training: float, punctual: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, agent = punctual
    clock = Clock(agent, monkeypatch, training)
    reply, seconds = clock.takes(lambda: device.ask(agent, device.plan(1)))
    assert code(reply) is None and seconds == 60.0
    again, seconds = clock.takes(lambda: device.ask(agent, device.plan(1)))
    assert (again, seconds) == (reply, 60.0)


def test_a_late_answer_is_kept_back_and_leaves_at_the_offset_of_the_next_request(
    punctual: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, agent = punctual
    clock = Clock(agent, monkeypatch, training=61.0)
    late, _ = clock.takes(lambda: device.ask(agent, device.plan(1)))
    assert late == wire.encode(Refusal("alice", Code.LATE))
    (charge,) = agent.ledger.export()["events"]
    assert charge["state"] == "released"
    reply, seconds = clock.takes(lambda: device.ask(agent, device.plan(1)))
    assert seconds == 60.0 and digest(reply) == charge["digest"]
    assert len(agent.ledger.export()["events"]) == 1
    sent = (device.base / "state" / "sent.jsonl").read_text().splitlines()
    assert [charge["digest"] in line for line in sent] == [False, False, True]


def test_refusals_of_plans_leave_at_the_offset_too_and_other_replies_at_once(
    punctual: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, agent = punctual
    clock = Clock(agent, monkeypatch, training=1.0)
    for plan, seconds in (
        (device.plan(9), 60.0),
        (device.plan(1, run="run-9"), 60.0),
        (device.plan(1, soft=0.5, answer=False), 0.0),
    ):
        assert clock.takes(lambda plan=plan: device.ask(agent, plan))[1] == seconds
    assert clock.takes(lambda: agent.handle("agree", wire.encode(device.offer())))[1] == 0.0
    assert clock.takes(lambda: agent.handle("answer", b"noise on the line"))[1] == 0.0


def test_a_failure_after_the_charge_leaves_at_the_offset(punctual: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device, agent = punctual
    clock = Clock(agent, monkeypatch, training=2.0)
    monkeypatch.setattr(Learner, "answer", lambda *arguments: 1 / 0)
    reply, seconds = clock.takes(lambda: device.ask(agent, device.plan(1)))
    assert (code(reply), seconds) == (Code.FAILED, 60.0)


def test_what_cannot_be_written_down_does_not_leave(new_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)

    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(agent.journal, "note", full)
        assert code(device.ask(agent, device.plan(1))) is Code.FAILED
    assert code(device.ask(agent, device.plan(1))) is None
    assert len(agent.ledger.export()["events"]) == 1


def test_a_line_that_a_crash_cut_short_takes_no_other_line_with_it(new_device: Any) -> None:
    from client import journal

    device = new_device()
    agent = device.start()
    path = device.base / "state" / "sent.jsonl"
    path.write_text('{"asked": "describe", "kind": "he')
    device.agree(agent)
    assert [line["kind"] for line in journal.read(device.base / "state")] == ["agreement"]


# -- limits -----------------------------------------------------------------------------------------------------------


def policy(**changes: Any) -> Policy:
    settings = {"epsilon": 3.0, "steps": 2, "nominal_examples": 20, "proxies": "0" * 64, **QUIET}
    return Policy.model_validate({**settings, **changes})


def past(*contracts: Contract) -> Past:
    events = tuple(event for one in contracts for event in one.schedule(one.rounds))
    return Past(events, len(contracts), tuple(contracts[0].schedule(contracts[0].rounds)) if contracts else ())


def spent(unit: Any, events: Any) -> float:
    return Pld().spent(seen_by(unit, events), 1e-5).epsilon


def refused(work: Callable[[], object]) -> Code:
    with pytest.raises(Refused) as caught:
        work()
    return caught.value.code


MECHANISMS = {"dp_sgd": "mean", "gaussian": "mean", "sum": "sum", "votes": "confident_votes"}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_whole_run_fits_the_limit_and_wastes_little_of_it(mechanism: str) -> None:
    made = draw_up(policy(mechanism=mechanism), builders.offer(aggregate=MECHANISMS[mechanism]), Past())
    unit = "example" if mechanism == "dp_sgd" else "client"
    assert made.limits.unit == unit and {event.unit for event in made.events} == {unit}
    assert 2.9 < spent(unit, made.schedule(made.rounds)) <= 3.0


@pytest.mark.parametrize("mechanism", ["gaussian", "sum", "votes"])
def test_what_would_need_more_noise_than_is_drawn_exactly_is_refused(mechanism: str) -> None:
    tiny = policy(mechanism=mechanism, epsilon=1e-5)
    offer = builders.offer(examples=10_000, aggregate=MECHANISMS[mechanism])
    assert refused(lambda: draw_up(tiny, offer, Past())) is Code.EXHAUSTED


@pytest.mark.parametrize("ratio", [0.5, 3.0])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_there_is_never_less_than_the_least_noise(mechanism: str, ratio: float) -> None:
    loud = policy(mechanism=mechanism, epsilon=50.0, min_noise=7.0, noise_ratio=ratio)
    made = draw_up(loud, builders.offer(aggregate=MECHANISMS[mechanism]), Past())
    assert min(event.noise_multiplier for event in made.events) == pytest.approx(7.0, abs=1e-9)
    assert all(event.noise_multiplier >= 7.0 for event in made.events) and allows(loud, made)


def test_a_limit_for_the_client_leaves_no_room_for_what_bounds_nothing_of_the_kind() -> None:
    strict = policy(also=["sum"], client_epsilon=1.0)
    assert refused(lambda: draw_up(strict, builders.offer(), Past())) is Code.EXHAUSTED
    made = draw_up(strict, builders.offer(aggregate="sum"), Past())
    assert 0.9 < spent("client", made.schedule(made.rounds)) <= 1.0


def test_after_dp_sgd_nothing_protects_the_whole_client_any_more() -> None:
    both = policy(also=["sum"])
    first = draw_up(both, builders.offer(), Past())
    assert spent("client", first.schedule(3)) == np.inf
    assert refused(lambda: draw_up(both, builders.offer(run="run-2", aggregate="sum"), past(first))) is Code.EXHAUSTED


def test_what_protects_the_client_counts_for_an_example_with_its_replacement_sensitivity() -> None:
    both = policy(also=["sum"], epsilon=2.0)
    first = draw_up(both, builders.offer(aggregate="sum"), Past())
    (event,) = first.events
    (seen,) = seen_by("example", first.events)
    assert (seen.unit, seen.adjacency) == ("example", "add_remove")
    assert seen.noise_multiplier == pytest.approx(event.noise_multiplier / np.sqrt(2))
    # a limit of 2 for the client is more for one of its examples, which leaves nothing for DP-SGD
    assert spent("client", first.schedule(3)) <= 2.0 < spent("example", first.schedule(3))
    assert refused(lambda: draw_up(both, builders.offer(run="run-2"), past(first))) is Code.EXHAUSTED
    more = policy(also=["sum"], epsilon=4.0)
    second = draw_up(more, builders.offer(run="run-2"), past(first))
    events = [*first.schedule(3), *second.schedule(3)]
    assert 3.9 < spent("example", events) <= 4.0 and spent("client", events) == np.inf
    assert adjacency("example", events) == "add_remove"


def test_replaced_and_added_clients_are_composed_as_replaced_ones() -> None:
    both = policy(mechanism="sum", also=["votes"], epsilon=4.0)
    first = draw_up(policy(mechanism="sum", epsilon=1.0), builders.offer(aggregate="sum"), Past())
    second = draw_up(both, builders.offer(run="run-2", aggregate="votes"), past(first))
    events = [*first.schedule(3), *second.schedule(3)]
    assert adjacency("client", events) == "replace"
    assert 3.9 < spent("client", events) <= 4.0
    moved = [event for event in seen_by("client", events) if event.mechanism == "sum"]
    assert moved[0].noise_multiplier == pytest.approx(first.events[0].noise_multiplier / np.sqrt(2))


def test_each_block_has_the_limit_for_itself_and_all_together_the_lifetimes() -> None:
    whole = policy(epsilon=2.0, lifetime_epsilon=2.5)
    first = draw_up(whole, builders.offer(), Past(), "2026")
    second = draw_up(whole, builders.offer(run="run-2"), past(first), "2027")
    events = [*first.schedule(3), *second.schedule(3)]
    each = {block: spent("example", some) for block, some in by_block(events).items()}
    assert 1.9 < each["2026"] <= 2.0 and each["all"] == 0.0
    assert each["2027"] < each["2026"], "the lifetime's limit has left the second block less"
    assert 2.4 < spent("example", events) <= 2.5
    free = draw_up(policy(epsilon=2.0), builders.offer(run="run-2"), past(first), "2027")
    assert free.events[0].noise_multiplier == first.events[0].noise_multiplier
    again = builders.offer(run="run-2")
    assert refused(lambda: draw_up(policy(epsilon=2.0), again, past(first), "2026")) is Code.EXHAUSTED
    assert refused(lambda: draw_up(whole, builders.offer(run="run-3"), past(first, second), "2026")) is Code.EXHAUSTED
    assert refused(lambda: draw_up(whole, builders.offer(run="run-3"), past(first, second), "2028")) is Code.EXHAUSTED


def test_only_dp_sgd_is_charged_to_a_block() -> None:
    for mechanism, aggregate in MECHANISMS.items():
        made = draw_up(policy(mechanism=mechanism), builders.offer(aggregate=aggregate), Past(), "2026")
        blocks = {event.blocks for event in made.events}
        assert blocks == ({("2026",)} if mechanism == "dp_sgd" else {("all",)})


def test_an_event_that_is_not_dp_sgds_touches_all_blocks() -> None:
    """Whatever it says of itself: its state has seen them."""
    mine = PrivacyEvent("dp_sgd", 5.0, 1.0, 2, blocks=("2026",))
    other = PrivacyEvent("sum", 5.0, 1.0, 1, "client", blocks=("2027",))
    assert by_block([mine, other]) == {"all": [other], "2026": [mine, other]}


def test_an_agent_charges_the_block_that_its_configuration_names_today(new_device: Any) -> None:
    device = new_device(client={"block": "2026"})
    agent = device.start()
    device.agree(agent)
    device.ask(agent, device.plan(1))
    agent.close()
    agent = moved(device, "2027")
    assert code(device.ask(agent, device.plan(2))) is None
    assert [event["blocks"] for event in agent.ledger.export()["events"]] == [["2026"], ["2027"]]


def moved(device: Any, block: str) -> Agent:
    """The device's agent after its data has come to another block."""
    device.configure(block=block)
    device.hold(*examples(20, seed=sum(block.encode())))
    return device.start()


def test_every_block_may_have_a_limit_of_its_own(new_device: Any) -> None:
    limits = {"first": 6.0, "second": 1.0}
    device = new_device(policy={"epsilon": 3.0, "block_epsilons": limits}, client={"block": "first"})
    for number, block in enumerate(("first", "second", "third"), 1):
        agent = moved(device, block)
        assert isinstance(device.agree(agent, run=f"run-{number}", rounds=1), Agreement)
        assert code(device.ask(agent, device.plan(run=f"run-{number}", seen=agent.ledger.head("server")))) is None
        events = by_block(agent.ledger.history())[block]
        limit = limits.get(block, 3.0)
        assert 0.98 * limit < Pld().spent(events, 1e-5).epsilon <= limit
        agent.close()
    # what an earlier block has spent is above the limit of a later one, and neither gets anything more
    for number, block in enumerate(("first", "second"), 4):
        agent = moved(device, block)
        refused = device.agree(agent, run=f"run-{number}", rounds=1, seen=agent.ledger.head("server"))
        assert isinstance(refused, Refusal) and refused.code is Code.EXHAUSTED
        agent.close()


def test_a_contract_of_one_block_does_not_pay_for_a_block_with_a_lower_limit(new_device: Any) -> None:
    device = new_device(policy={"epsilon": 3.0, "block_epsilons": {"second": 1.0}}, client={"block": "first"})
    agent = device.start()
    device.agree(agent)
    assert code(device.ask(agent, device.plan(1))) is None
    agent.close()
    agent = moved(device, "second")
    assert code(device.ask(agent, device.plan(2, seen=agent.ledger.head("server")))) is Code.CONTRACT


def test_what_touches_all_blocks_keeps_the_lowest_limit() -> None:
    made = policy(epsilon=3.0, block_epsilons={"second": 1.0, "third": 9.0})
    assert [made.limit(block) for block in ("all", "first", "second", "third")] == [1.0, 3.0, 1.0, 9.0]


# -- lineages ---------------------------------------------------------------------------------------------------------


class Starts:
    """What weights each private round began with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, bytes]] = []
        learn = Learner.learn

        def noted(learner: Learner, contract: Contract, *arguments: Any) -> None:
            self.seen.append((contract.mechanism, learner.save()))
            learn(learner, contract, *arguments)

        patch.setattr(Learner, "learn", noted)


@pytest.mark.parametrize("bare", ["sum", "votes", "gaussian"])
def test_a_student_that_was_trained_without_noise_is_no_start_for_dp_sgd(
    bare: str, new_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = new_device(policy={"mechanism": bare, "epsilon": 2.0, **QUIET})
    agent, starts = device.start(), Starts(monkeypatch)
    fresh = agent.lineage.fresh
    device.agree(agent, aggregate=MECHANISMS[bare].replace("confident_", ""))
    assert code(device.ask(agent, device.plan(1))) is None
    assert agent.ledger.state("lineage") == BARE and agent.learner.save() != fresh
    assert code(device.ask(agent, device.plan(2, soft=0.5, answer=False))) is None
    agent.close()
    device.decide(epsilon=20.0)
    agent = device.start()
    assert isinstance(device.agree(agent, run="run-2"), Agreement)
    for round in (1, 2):
        trained = agent.learner.save()
        assert code(device.ask(agent, device.plan(round, run="run-2"))) is None
    assert [mechanism for mechanism, _ in starts.seen] == [bare, "dp_sgd", "dp_sgd"]
    assert starts.seen[1][1] == fresh, "nothing that private data shaped"
    assert starts.seen[2][1] == trained != fresh, "a private lineage goes on"
    assert sum("a new student" in line for line in device.console) == 1


def test_students_of_other_shards_are_no_start_for_votes(new_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example that two students have learned from would move two votes, and is charged for one."""
    device = new_device(policy={"mechanism": "votes", "shards": 4, "epsilon": 20.0, **QUIET})
    starts = Starts(monkeypatch)
    for run, shards in (("run-1", 4), ("run-2", 3), ("run-3", 6), ("run-4", 6)):
        device.decide(mechanism="votes", shards=shards, epsilon=20.0)
        agent = device.start()
        assert isinstance(device.agree(agent, run=run, aggregate="votes"), Agreement)
        assert code(device.ask(agent, device.plan(run=run))) is None
        assert (starts.seen[-1][1] == agent.lineage.fresh) is (run != "run-4"), run
        agent.close()


@pytest.mark.parametrize("mechanism", ["sum", "votes"])
def test_votes_of_a_round_whose_total_has_left_are_not_given_again(mechanism: str, new_device: Any) -> None:
    """The aggregator would put other noise on them: a second release for one charge."""
    device = new_device(policy={"mechanism": mechanism, "epsilon": 2.0, **QUIET})
    agent = device.start()
    device.agree(agent, aggregate=mechanism)
    first = device.ask(agent, device.plan(1))
    assert code(first) is None and device.ask(agent, device.plan(1)) == first, "a round that is not over"
    assert code(device.ask(agent, device.plan(2))) is None
    assert code(device.ask(agent, device.plan(1))) is Code.ORDER


def test_data_that_has_been_charged_is_not_charged_as_another_block(new_device: Any, private_examples: Any) -> None:
    device = new_device(client={"block": "2026"})
    agent = device.start()
    device.agree(agent)
    assert code(device.ask(agent, device.plan(1))) is None
    agent.close()
    device.configure(block="2027")
    with pytest.raises(FedkdError, match="charged as block '2026'"):
        device.start()
    device.hold(*private_examples(20, 2))
    device.start().close()


def test_a_policy_that_lets_the_server_choose_no_protection_is_refused() -> None:
    with pytest.raises(ValueError, match="no protection at all"):
        policy(also=["none"])


def test_a_delta_that_admits_publishing_an_example_is_refused() -> None:
    with pytest.raises(ValueError, match="nominal_examples"):
        policy(nominal_examples=1000, delta=1e-3)
    assert policy(nominal_examples=1000, delta=9e-4).delta == 9e-4


def test_other_shards_end_a_contract() -> None:
    made = draw_up(policy(mechanism="votes", shards=4), builders.offer(aggregate="votes"), Past())
    assert allows(policy(mechanism="votes", shards=4), made)
    assert not allows(policy(mechanism="votes", shards=3), made)


def test_the_order_of_the_filter_is_the_first_contracts() -> None:
    first, later = PrivacyEvent("dp_sgd", 8.0, 0.01, 10), PrivacyEvent("dp_sgd", 0.8, 0.5, 500)
    found = Past((first, later), 2, (first,)).accountant([later], 1e-5, another=True)
    assert found == first_choice([first], 1e-5) != first_choice([first, later], 1e-5)


@pytest.mark.parametrize(
    ("unit", "adjacency"), [("client", "replace"), ("client", "add_remove"), ("example", "replace")]
)
def test_sampling_amplifies_for_examples_that_come_or_go_alone(unit: Any, adjacency: Any) -> None:
    with pytest.raises(ValueError):
        PrivacyEvent("sum", 1.0, 0.5, 1, unit, adjacency)


def test_after_no_protection_at_all_dp_sgd_is_refused_and_would_start_anew(new_device: Any) -> None:
    device = new_device(policy={"mechanism": "none"})
    agent = device.start()
    device.agree(agent)
    assert code(device.ask(agent, device.plan(1))) is None
    agent.close()
    device.decide(epsilon=100.0)
    agent = device.start()
    assert device.agree(agent, run="run-2") == Refusal("alice", Code.EXHAUSTED)
    with agent.lineage.entered(builders.contract(PrivacyEvent("dp_sgd", 5.0, 1.0, 2))):
        assert agent.learner.save() == agent.lineage.fresh


def test_further_examples_cost_nothing_under_dp_sgd_and_are_counted_elsewhere() -> None:
    few, more = builders.offer(), builders.offer(queries=12, augment="mixup:2")
    free = [draw_up(policy(mechanism="dp_sgd"), one, Past()) for one in (few, more)]
    assert free[0].events == free[1].events and free[1].queries == 12
    costly = [draw_up(policy(mechanism="gaussian"), one, Past()).variances[0] for one in (few, more)]
    assert costly[1] == pytest.approx(3 * costly[0], rel=0.01)  # three times the answers: sqrt(3) times the noise


def test_a_contract_without_further_examples_has_the_hash_it_always_had() -> None:
    record = builders.contract().record()
    assert "augment" not in record and Contract.from_record(record) == builders.contract()
    more = builders.contract(augment="mixup:2")
    assert Contract.from_record(more.record()) == more and more.hash != builders.contract().hash


def test_no_more_is_answered_than_the_policy_allows_however_it_is_made(new_device: Any) -> None:
    device = new_device(policy={"max_answers": 8})
    agent = device.start()
    assert offered(agent, device.offer(augment="mixup:1", queries=12)) is Code.ANSWERS
    assert offered(agent, device.offer(augment="mixup:1", queries=8)) is None
    for asked, code_ in (([0, 1, 2, 3, 4, 5, 6, 12], Code.ANSWERS), ([0, 1, 2, 3, 4, 5, 6, 11], None)):
        assert code(device.ask(agent, device.plan(asked=np.array(asked, np.uint32)))) is code_


def test_more_than_there_is_cannot_be_asked(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    assert offered(agent, device.offer(augment="mixup:1", queries=13)) is Code.ANSWERS
    assert offered(agent, device.offer(augment="mixup:1", queries=12)) is None


def test_what_cannot_be_made_of_the_proxy_set_is_refused_before_it_costs(new_device: Any, tmp_path: Path) -> None:
    images = new_device()
    x, y = images.proxy.examples.reshape(6, 4), np.arange(6) % 2
    fitted = features.fit_features("none", x, components=1)
    public = proxy.build(x, None, 2, fitted.spec, features.arrays(fitted), {"source": "made up"})
    device = type(images)(tmp_path / "tables", public)
    device.write(x + 1, y, {}, {})
    agent = device.start()
    assert offered(agent, device.offer(augment="shift:1", queries=12)) is Code.ANSWERS
    assert offered(agent, device.offer(augment="mixup:1", queries=12)) is None
