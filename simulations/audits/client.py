"""One real agent whose data an auditor has made up, and a server that hands it back what it has answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from client.agent import Agent
from fedkd import config, wire
from fedkd.config import ClientConfig, Data, Policy, Privacy, Scenario
from fedkd.consensus import Consensus
from fedkd.coordinator import Coordinator, Terms
from fedkd.data import proxy
from fedkd.data.proxy import ProxySet
from fedkd.data.sources import Examples
from fedkd.distill import features
from fedkd.distill.model import ProxyView
from fedkd.errors import FedkdError
from fedkd.privacy.audit import Scores
from fedkd.privacy.contract import Contract
from fedkd.tensors import Arrays
from fedkd.wire import Agreement, Answers, Refusal, Rows
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


class Echo:
    """A teacher that says what it was told: the consensus of the clients is the next round's soft labels."""

    learns_from_labels = False
    _rows: Rows

    def distil(self, consensus: Consensus | None, round: int) -> None:
        """Remember it."""
        assert consensus is not None
        self._rows = consensus.rows

    def soft_labels(self, temperature: float) -> Rows:
        """The consensus, as it is."""
        return self._rows

    def entropies(self) -> Rows:
        """Nothing is chosen by them."""
        return np.zeros(len(self._rows))

    def arrays(self) -> Arrays:
        """There are no weights."""
        return {}

    def load(self, arrays: Arrays) -> None:
        """There are no weights."""


class Run:
    """A run of one agent alone: what a real coordinator asks of it."""

    def __init__(self, agent: Agent, scenario: Scenario, view: ProxyView, run: str) -> None:
        """Raises FedkdError if the agent does not agree to it."""
        public, self._agent = view.proxy, agent
        terms = Terms(
            run=run,
            proxy=public.hash,
            examples=len(public),
            classes=public.classes,
            server="auditor",
            clients=scenario.clients,
            features=view.inputs("features").numpy(),
        )
        self._coordinator = Coordinator(scenario, terms, Echo())
        reply = wire.decode(agent.handle("agree", wire.encode(self._coordinator.offer(agent.name))), Agreement, Refusal)
        contract = agent.ledger.contract(run)
        if isinstance(reply, Refusal) or contract is None:
            raise FedkdError("the client refuses the run that was to be audited", where=str(reply))
        self._coordinator.agreed(reply, agent.name)
        self.contract: Contract = contract

    def rounds(self) -> Iterator[Rows]:
        """The released answers of each round."""
        for _ in range(self.contract.rounds):
            yield self._round(self._agent.name)

    def _round(self, name: str) -> Rows:
        plan = self._coordinator.plan(name)
        reply = wire.decode(self._agent.handle("answer", wire.encode(plan)), Answers, Refusal)
        if isinstance(reply, Refusal):
            raise FedkdError("the client refuses a round that was to be audited", where=str(reply))
        self._coordinator.holds(name)
        self._coordinator.finish(self._coordinator.fold(self._coordinator.start({name}), reply), {name})
        return reply.rows.rows


def weights(agent: Agent) -> Scores:
    """All parameters of the student as one vector."""
    parameters = agent.learner.model.network.parameters()
    return torch.nn.utils.parameters_to_vector(parameters).detach().double().numpy()
