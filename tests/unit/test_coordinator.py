"""What the server makes of clients' agreements and answers, without any transport."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedkd.codecs import pack
from fedkd.config import Federation
from fedkd.coordinator import Coordinator, Terms
from fedkd.errors import WireError
from fedkd.privacy.costs import GRID
from fedkd.wire import Answers, Plan, Released
from tests.builders import agreement, answers


class Teacher:
    """Says what the consensus says."""

    learns_from_labels = False

    def __init__(self) -> None:
        self.rows = np.full((4, 2), 0.5, np.float32)

    def distil(self, consensus: Any, round: int) -> None:
        self.rows = consensus.rows

    def soft_labels(self, temperature: float) -> Any:
        return self.rows

    def entropies(self) -> Any:
        return np.array([0.1, 0.5, 0.5, 0.3])

    def arrays(self) -> dict[str, Any]:
        return {}

    def load(self, arrays: Any) -> None: ...


def coordinator(codec: str = "float32", **aggregate: Any) -> Coordinator:
    config = Federation.model_validate({"rounds": 3, "codec": codec, "aggregate": aggregate})
    terms = Terms("run-1", "0" * 64, 4, 2, "server", 3, np.eye(4, dtype=np.float32))
    return Coordinator(config, terms, Teacher())


def answers_to(plan: Plan, client: str, rows: Any) -> Answers:
    return answers(rows, client=client, round=plan.round, plan=plan.identity)


def test_the_aggregators_noise_is_fresh_unless_every_client_simulates() -> None:
    made = coordinator(kind="sum", denoise=False)
    for client, noise in (("a", "simulation"), ("b", "os"), ("c", "simulation")):
        made.agreed(agreement(client=client, variances=np.array([9], np.uint64), noise=noise), client)

    def drawn(clients: str) -> bytes:
        return bytes(made._central(clients).noise.discrete_gaussian((64,), 10**6).tobytes())

    assert drawn("abc") != drawn("abc")
    first = drawn("ac")
    assert first == drawn("ac")
    made.state.round += 1
    assert drawn("ac") != first


def test_a_mean_takes_clients_with_noise_of_their_own_and_clients_without() -> None:
    made = coordinator(denoise=False)
    made.agreed(agreement(client="a"), "a")
    made.agreed(agreement(client="b", variances=np.array([99], np.uint64)), "b")
    acc = made.start(made.roster)
    for client, rows in (
        ("a", np.tile(np.array([1, 0], np.float32), (4, 1))),
        ("b", np.tile(np.array([GRID, 0], np.int32), (4, 1))),
    ):
        replied = answers_to(made.plan(client), client, rows)
        made.check_answers(replied, client, made.plan(client))
        acc = made.fold(acc, replied)
    made.finish(acc, ["a", "b"])
    assert made.state.consensus is not None and np.allclose(made.state.consensus.rows, [[1, 0]] * 4)


@pytest.mark.parametrize(
    ("aggregate", "right"),
    [({"kind": "sum"}, 1), ({"kind": "votes"}, 1), ({"kind": "votes", "threshold": 0.5}, 2)],
)
def test_an_agreement_must_ask_for_the_noises_that_the_rule_adds(aggregate: dict[str, Any], right: int) -> None:
    made = coordinator(**aggregate)
    for count in range(4):
        asked = agreement(client="a", variances=np.full(count, 9, np.uint64))
        if count == right:
            made.agreed(asked, "a")
        else:
            with pytest.raises(WireError, match=f"asks for {count} noises"):
                made.agreed(asked, "a")


def test_a_round_has_the_noise_of_its_most_demanding_client() -> None:
    made = coordinator(kind="sum", denoise=False)
    for client, variance in (("a", 5), ("b", 9), ("c", 7)):
        made.agreed(agreement(client=client, variances=np.array([variance], np.uint64)), client)
    assert made._central(["a", "b", "c"]).variances == (9,)
    assert made._central(["a", "c"]).variances == (7,)


def test_answers_are_released_rows_of_this_client_to_this_plan() -> None:
    made = coordinator()
    made.agreed(agreement(client="a"), "a")
    plan, rows = made.plan("a"), np.full((4, 2), 0.5, np.float32)
    made.check_answers(answers_to(plan, "a", rows), "a", plan)
    for other in ({"client": "b"}, {"round": 2}, {"plan": "0" * 64}, {"run": "run-2"}):
        with pytest.raises(WireError, match="another plan"):
            made.check_answers(
                answers(Released(rows, "").rows, **{"client": "a", "plan": plan.identity, **other}), "a", plan
            )


@pytest.mark.parametrize("kind", ["entropy", "confidence", "majority", "median", "trimmed"])
def test_answers_with_noise_of_their_own_are_for_the_mean_alone(kind: str) -> None:
    made = coordinator(kind=kind)
    made.agreed(agreement(client="a"), "a")
    with pytest.raises(WireError, match="asks for 1 noises"):
        made.agreed(agreement(client="b", variances=np.array([99], np.uint64)), "b")
    plan = made.plan("a")
    with pytest.raises(WireError, match="not probabilities"):
        made.check_answers(answers_to(plan, "a", np.tile(np.array([GRID, 0], np.int32), (4, 1))), "a", plan)


@pytest.mark.parametrize("kind", ["entropy", "confidence", "majority", "median", "trimmed"])
def test_a_round_by_any_rule_moves_on(kind: str) -> None:
    made = coordinator(kind=kind)
    for client in "abc":
        made.agreed(agreement(client=client), client)
    acc = made.start(made.roster)
    for client in "abc":
        acc = made.fold(acc, answers_to(made.plan(client), client, np.tile(np.array([1, 0], np.float32), (4, 1))))
    made.finish(acc, "abc")
    assert made.state.consensus is not None and (made.state.consensus.rows.argmax(axis=1) == 0).all()


def test_answers_travel_in_the_codec_that_was_agreed() -> None:
    made = coordinator(kind="median")
    made.agreed(agreement(client="a"), "a")
    plan, rows = made.plan("a"), np.full((4, 2), 0.5)
    for codec in ("float16", "int8", "label"):
        with pytest.raises(WireError, match="not float32"):
            made.check_answers(answers_to(plan, "a", pack(rows, codec)), "a", plan)


@pytest.mark.parametrize("codec", ["int8", "label", "float16+zlib"])
def test_packed_answers_are_unpacked_for_the_rule(codec: str) -> None:
    made = coordinator(codec=codec)
    made.agreed(agreement(client="a"), "a")
    plan, rows = made.plan("a"), np.array([[0.75, 0.25]] * 4)
    replied = answers_to(plan, "a", pack(rows, codec))
    made.check_answers(replied, "a", plan)
    made.finish(made.fold(made.start(made.roster), replied), ["a"])
    assert made.state.consensus is not None and np.allclose(made.state.consensus.rows, rows, atol=0.01)
    for bad in (pack(rows[:3], codec), np.zeros(9, np.uint8), rows.astype(np.float32)):
        with pytest.raises(WireError):
            made.check_answers(answers_to(plan, "a", bad), "a", plan)


def test_from_the_second_round_what_the_teacher_is_least_sure_of_is_asked() -> None:
    made = coordinator(queries=2, choose="entropy")
    made.agreed(agreement(client="a"), "a")
    first = made.plan("a").asked
    rows = np.full((2, 2), 0.5, np.float32)
    made.finish(made.fold(made.start(made.roster), answers_to(made.plan("a"), "a", rows)), ["a"])
    assert len(first) == 2 and made.plan("a").asked.tolist() == [1, 2]
    config = Federation.model_validate({"rounds": 3, "codec": "float32", "aggregate": {"queries": 2}})
    arrays, meta = made.checkpoint()
    again = Coordinator.restore(config, made.terms, Teacher(), arrays, meta)
    assert again.plan("a").asked.tolist() == [1, 2]


def test_further_examples_are_asked_beside_the_proxy_sets_own() -> None:
    config = Federation.model_validate({"codec": "float32", "augment": {"kind": "mixup", "copies": 2}})
    terms = Terms("run-1", "0" * 64, 4, 2, "server", 3, np.eye(12, dtype=np.float32))
    made = Coordinator(config, terms, Teacher())
    made.agreed(agreement(client="a"), "a")
    offer = made.offer("a")
    assert (offer.examples, offer.queries, offer.augment) == (4, 12, "mixup:2")
    replied = answers_to(made.plan("a"), "a", np.full((12, 2), 0.5, np.float32))
    made.check_answers(replied, "a", made.plan("a"))
    acc = made.fold(made.start(made.roster), replied)
    assert made._rule.finish(acc, made._central(["a"]), terms.features).rows.shape == (12, 2)
