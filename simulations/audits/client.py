"""One real agent whose data an auditor has made up, and a server that hands it back what it has answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from client.agent import Agent
from fedkd import config, wire
from fedkd.config import ClientConfig, Data, Policy, Privacy
from fedkd.data import proxy
from fedkd.data.proxy import ProxySet
from fedkd.data.sources import Examples
from fedkd.distill import features
from fedkd.errors import FedkdError
from fedkd.privacy.audit import Scores
from fedkd.privacy.contract import Contract
from fedkd.wire import Agreement, Answers, Offer, Plan, Refusal, Rows, labels_digest
from simulations.audits.setting import Setting

PROXIES, CLASSES = 16, 2


def made_up_proxies(side: int) -> ProxySet:
    """Random images [1, side, side] of two classes, which students see pixel by pixel."""
    x = np.random.default_rng(0).normal(size=(PROXIES, 1, side, side)).astype(np.float32)
    fitted = features.fit_features("none", x, components=1)
    return proxy.build(x, None, CLASSES, fitted.spec, features.arrays(fitted), {"source": "made up for an audit"})


def policy_of(privacy: Privacy, public: ProxySet, nominal: int, seed: int | None) -> Policy:
    """A policy of the scenario's privacy; with a seed its noise is reproducible, without one the operating system's."""
    return Policy(
        **privacy.model_dump(exclude={"nominal_examples"}),
        nominal_examples=nominal,
        proxies=(public.hash,),
        noise="os" if seed is None else "simulation",
        seed=seed,
    )


def client_of(setting: Setting, name: str, public: Path) -> ClientConfig:
    """A client of the scenario with its first student and the proxy set of that file."""
    return ClientConfig(
        name=name,
        data=Data(source="npz", path="data.npz"),
        proxy=str(public.resolve()),
        student=setting.scenario.students[0],
        code=str(setting.base.resolve()),
        training=setting.scenario.training,
        seed=setting.scenario.seed,
    )


def without_momentum(client: ClientConfig, learning_rate: float) -> ClientConfig:
    """The same client at this rate; what a round changes is then what its steps have added up to."""
    student = client.student.model_copy(update={"learning_rate": learning_rate, "momentum": 0.0})
    return client.model_copy(update={"student": student})


@contextmanager
def opened(folder: Path, policy: Policy, client: ClientConfig, data: Examples) -> Iterator[Agent]:
    """The agent of a new folder that holds this data."""
    folder.mkdir(parents=True)
    np.savez(folder / "data.npz", x=data.x, y=data.y, classes=np.int64(data.classes))
    (folder / client.policy).write_text(config.dump(policy))
    (folder / "client.yaml").write_text(config.dump(client))
    agent = Agent(folder / "client.yaml")
    try:
        yield agent
    finally:
        agent.close()


def agree(agent: Agent, public: ProxySet, run: str, rounds: int, codec: str) -> Contract:
    """The contract that the agent's own policy draws up for the run."""
    offer = Offer(run, public.hash, len(public), public.classes, rounds, codec)
    reply = wire.decode(agent.handle("agree", wire.encode(offer)), Agreement, Refusal)
    contract = agent.ledger.contract(run)
    if isinstance(reply, Refusal) or contract is None:
        raise FedkdError("the client refuses the run that was to be audited", where=str(reply))
    return contract


def rounds(agent: Agent, contract: Contract, temperature: float) -> Iterator[Rows]:
    """The released answers of each round; they go back as the soft labels of the next."""
    labels = np.zeros((0, contract.classes), wire.DTYPES[contract.codec])
    for number in range(1, contract.rounds + 1):
        plan = Plan(
            run=contract.run,
            proxy=contract.proxy,
            round=number,
            answer=True,
            temperature=temperature,
            labels=labels_digest(labels) if len(labels) else "",
            ids=np.arange(len(labels), dtype=np.uint32),
            rows=labels,
        )
        reply = wire.decode(agent.handle("answer", wire.encode(plan)), Answers, Refusal)
        if isinstance(reply, Refusal):
            raise FedkdError("the client refuses a round that was to be audited", where=str(reply))
        labels = reply.rows.rows
        yield labels


def weights(agent: Agent) -> Scores:
    """All parameters of the student as one vector."""
    parameters = agent.learner.model.network.parameters()
    return torch.nn.utils.parameters_to_vector(parameters).detach().double().numpy()
