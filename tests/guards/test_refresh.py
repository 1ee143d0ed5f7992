"""A new version of the proxy set in a client's life: who holds the old one is left whole, and comes later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.agent import Agent
from fedkd import wire
from fedkd.data import proxy
from fedkd.data.proxy import ProxySet
from fedkd.distill import features
from fedkd.errors import FedkdError
from fedkd.wire import Agreement, Answers, Code, Learned, Plan, Refusal
from tests.guards.conftest import CLASSES, REPLIES, Device, examples

NEW = 8  # examples of the second version


def second(first: ProxySet, **changes: Any) -> ProxySet:
    """Other public examples, with the features of the first version."""
    x, _ = examples(NEW, seed=200)
    spec, arrays = first.features_spec, first.features_arrays
    return proxy.build(x, None, CLASSES, **{"features_spec": spec, "features_arrays": arrays, **changes}, provenance={})


def moved(device: Device, version: ProxySet) -> Agent:
    """The owner puts the new file in place and starts the agent again."""
    version.save(device.base / "second.safetensors")
    device.configure(proxy="second.safetensors")
    return device.start()


def of(version: ProxySet, plan: Plan) -> Plan:
    changes = {"run": "run-2", "proxy": version.hash}
    return Plan(**{**vars(plan), **changes})


def reply(device: Device, agent: Agent, plan: Plan) -> Answers | Learned | Refusal:
    return wire.decode(device.ask(agent, plan), *REPLIES)


def spent(agent: Agent) -> int:
    return len(agent.ledger.export()["events"])


@pytest.fixture
def two(new_device: Any) -> tuple[Device, ProxySet]:
    """A device that holds the first version, and whose owner allows both."""
    device = new_device()
    version = second(device.proxy)
    device.decide(proxies=(device.proxy.hash, version.hash))
    return device, version


def test_a_client_that_holds_the_old_version_says_so_and_goes_on_with_it(two: tuple[Device, ProxySet]) -> None:
    device, version = two
    agent = device.start()
    device.agree(agent)
    assert isinstance(reply(device, agent, device.plan()), Answers)
    before, charged = agent.learner.save(), spent(agent)
    refused = device.agree(agent, run="run-2", proxy=version.hash, examples=NEW, queries=NEW)
    assert isinstance(refused, Refusal) and refused.code is Code.NOT_HELD
    for answer in (True, False):  # soft labels of other examples would teach nonsense
        found = reply(device, agent, of(version, device.plan(soft=0.5, answer=answer)))
        assert isinstance(found, Refusal) and found.code is Code.NOT_HELD
    assert agent.learner.save() == before and spent(agent) == charged
    assert isinstance(reply(device, agent, device.plan(2)), Answers)


def test_of_the_same_size_too(new_device: Any) -> None:
    """Ids of one version would mean other examples of another."""
    device = new_device()
    x, _ = examples(len(device.proxy), seed=300)
    parts = (None, CLASSES, device.proxy.features_spec, device.proxy.features_arrays, {})
    version = proxy.build(x, *parts)
    device.decide(proxies=(device.proxy.hash, version.hash))
    refused = device.agree(device.start(), proxy=version.hash)
    assert isinstance(refused, Refusal) and refused.code is Code.NOT_HELD


def test_a_version_that_the_policy_does_not_name_is_not_allowed_whether_held_or_not(new_device: Any) -> None:
    device = new_device()
    refused = device.agree(device.start(), proxy=second(device.proxy).hash, examples=NEW, queries=NEW)
    assert isinstance(refused, Refusal) and refused.code is not Code.NOT_HELD


def test_the_client_comes_with_the_new_version_later_with_its_student_and_all_that_it_has_spent(
    two: tuple[Device, ProxySet],
) -> None:
    device, version = two
    agent = device.start()
    device.agree(agent)
    device.ask(agent, device.plan())
    weights, charged, head = agent.learner.model.arrays(), spent(agent), agent.ledger.head("server")
    agent.close()
    agent = moved(device, version)
    for name, array in agent.learner.model.arrays().items():
        np.testing.assert_array_equal(array, weights[name])
    assert spent(agent) == charged and agent.ledger.head("server") == head
    found = device.agree(agent, run="run-2", proxy=version.hash, examples=NEW, queries=NEW, seen=head)
    assert isinstance(found, Agreement)
    answers = reply(device, agent, Plan(**{**vars(of(version, device.plan())), "seen": head}))
    assert isinstance(answers, Answers) and len(answers.rows.rows) == NEW and spent(agent) > charged
    old = reply(device, agent, device.plan(2))
    assert isinstance(old, Refusal) and old.code is Code.NOT_HELD


def test_a_version_with_other_features_is_refused_once_a_student_has_learned(
    two: tuple[Device, ProxySet], tmp_path: Path
) -> None:
    """Its weights would mean something else, and nobody would notice."""
    device, _ = two
    x, _ = examples(NEW, seed=200)
    fitted = features.fit_features("none", 3 * x, components=1)
    other = second(device.proxy, features_spec=fitted.spec, features_arrays=features.arrays(fitted))
    device.decide(proxies=(device.proxy.hash, other.hash))
    moved(device, other).close()  # nothing has been learned yet
    device.configure(proxy="proxy.safetensors")
    agent = device.start()
    device.agree(agent)
    device.ask(agent, device.plan())
    agent.close()
    with pytest.raises(FedkdError, match="other public features") as caught:
        moved(device, other)
    assert "--features" in caught.value.fix
