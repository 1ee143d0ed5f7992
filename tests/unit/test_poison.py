"""Clients that lie, in a simulation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd import codecs, wire
from fedkd.config import Scenario, load
from fedkd.errors import ConfigError
from fedkd.privacy.contract import Contract
from fedkd.privacy.integers import one_hot
from fedkd.wire import Answers, Learned, check_rows, check_votes, quantise
from simulations.poison import LIES, Liars
from simulations.runner import Options, Simulation
from tests import builders

SMALL = ["clients=5", "rounds=1", "baselines=false", "training.distil_steps=0", "features.kind=pca",
         "privacy.mechanism=none", "privacy.steps=2", "teacher.steps=20"]  # fmt: skip


def liars(kind: str, share: float = 0.4, **changes: Any) -> Liars:
    scenario = load(Scenario, None, ["clients=5", f"poison.kind={kind}", f"poison.share={share}"])
    return Liars.of(scenario.model_copy(update=changes))


def honest() -> np.ndarray:
    return quantise(np.random.default_rng(0).dirichlet(np.ones(4), size=50), "float16")


@pytest.mark.parametrize("kind", LIES)
def test_a_lie_has_the_form_of_an_answer(kind: str) -> None:
    random = np.random.default_rng(1)
    check_rows(LIES[kind](honest(), random), 50, 4)
    votes = one_hot(honest()).astype(np.uint8)
    check_votes(LIES[kind](votes, random), 50, 4, 1)


def test_flipped_labels_name_the_next_class_and_keep_the_doubt() -> None:
    lie = LIES["label_flip"](honest(), np.random.default_rng(1))
    assert (lie[:, 1:] == honest()[:, :-1]).all() and (lie[:, 0] == honest()[:, -1]).all()


def test_colluders_agree_and_are_sure() -> None:
    lies = [LIES["colluding"](honest(), np.random.default_rng(seed)) for seed in (1, 2)]
    assert (lies[0] == lies[1]).all() and (lies[0].max(axis=1) == 1).all()
    assert (lies[0].argmax(axis=1) == (honest().argmax(axis=1) + 1) % 4).all()


def test_random_liars_do_not_agree() -> None:
    first, second = (LIES["random"](honest(), np.random.default_rng(seed)).argmax(axis=1) for seed in (1, 2))
    assert (first == second).mean() < 0.6 and len(set(first.tolist())) == 4


def test_the_share_is_of_whole_clients_and_the_seed_chooses_them() -> None:
    assert len(liars("random").clients) == 2 and len(liars("random", 0.29).clients) == 1
    assert len({liars("random", seed=seed).clients for seed in range(10)}) > 1
    with pytest.raises(ConfigError, match="is nobody"):
        liars("random", 0.05)


def test_only_the_answers_of_liars_change_and_a_retry_is_the_same_lie() -> None:
    some = liars("random")
    (liar, *_), rows = sorted(some.clients), honest()
    reply = wire.encode(builders.answers(rows, client=liar))
    spoiled = some.spoil(liar, reply, agreed)
    assert some.spoil(liar, reply, agreed) == spoiled != reply
    message = wire.decode(spoiled, Answers)
    assert (message.client, message.plan) == (liar, builders.HASH) and (message.rows.rows != rows).any()
    other = next(f"client-{i}" for i in range(5) if f"client-{i}" not in some.clients)
    assert some.spoil(other, reply, agreed) == reply
    learned = wire.encode(Learned("run-1", liar, 1))
    assert some.spoil(liar, learned, agreed) == learned


def test_a_packed_answer_becomes_a_packed_lie() -> None:
    (liar, *_), rows = sorted(liars("colluding").clients), honest()
    contract = builders.contract(codec="label+zlib", queries=50, classes=4)
    reply = wire.encode(builders.answers(codecs.pack(rows, contract.codec), client=liar))
    lie = wire.decode(liars("colluding").spoil(liar, reply, lambda run: contract), Answers)
    found = codecs.unpack(lie.rows.rows, contract.codec, 50, 4)
    assert (found.argmax(axis=1) == (rows.argmax(axis=1) + 1) % 4).all()


def agreed(run: str) -> Contract:
    return builders.contract()


def simulated(*settings: str, workers: int = 1) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        options = Options(out=Path(folder) / "run", base=Path(folder), workers=workers, tell=lambda text: None)
        summary = Simulation(load(Scenario, None, [*SMALL, *settings]), options).run()
    assert summary is not None
    return summary


def test_colluders_harm_a_mean_and_hardly_a_median() -> None:
    lie = ["poison.kind=colluding", "poison.share=0.4"]
    clean = simulated()
    assert "poisoned" not in clean
    harmed, robust = simulated(*lie), simulated(*lie, "aggregate.kind=median")
    assert len(harmed["poisoned"]) == 2
    assert harmed["teacher_accuracy"] < clean["teacher_accuracy"] - 0.1
    assert robust["teacher_accuracy"] > harmed["teacher_accuracy"] + 0.05
