"""The agents of one process, and what the harness may ask of them outside the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client.agent import Agent
from client.learner import Learner
from fedkd.config import Data
from fedkd.continual.exam import examine
from fedkd.data import sources
from fedkd.data.sources import Examples
from fedkd.distill.cohort import Member
from fedkd.distill.model import Model
from fedkd.distill.trainer import ALONE, Labelled, Trainer, accuracy
from fedkd.errors import FedkdError
from fedkd.privacy.calibration import USEFUL
from fedkd.privacy.cohort import Shape
from fedkd.privacy.contract import Contract
from fedkd.privacy.limits import Limits
from fedkd.privacy.noise import NoiseSource, simulation_key
from fedkd.privacy.units import seen_by
from simulations.poison import HONEST, Liars
from simulations.silos import Job, Silo


@dataclass(frozen=True)
class Paper:
    """An exam: files of the test examples as the experiences show them, the experiences' classes, whether they are
    told."""

    looks: Sequence[Path]
    lists: Sequence[Sequence[int]]
    told: bool


class Host:
    """Opens agents when they are first called. ``accuracy``, ``local``, ``train``, ``forget``, ``export`` and
    ``ledger`` are the harness's: a deployment has nothing like them."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        test: Path,
        liars: Liars = HONEST,
        trainer: Callable[[str], Trainer] = lambda client: ALONE,
    ) -> None:
        """``trainer`` gives what trains a client."""
        # one thread, so that sums are made in one order whatever the machine and the number of workers
        torch.set_num_threads(1)
        self._folders, self._test, self._liars, self._trainer = folders, test, liars, trainer
        self._agents: dict[str, Agent] = {}
        self._inputs: dict[str, Labelled] = {}
        self._silos: dict[str, Silo] = {}
        self._looks: dict[str, list[Labelled]] = {}
        self._own: dict[str, Callable[[Agent, Any], Any]] = {
            "open": lambda agent, _: None,
            "accuracy": lambda agent, _: self._accuracy(agent.learner.model),
            "local": lambda agent, seed: self._local(agent, seed),
            "train": lambda agent, job: self._silo(agent, job).train(job),
            "forget": lambda agent, _: self._silos.pop(agent.name, None) and None,
            "export": lambda agent, path: agent.learner.model.save(Path(path)),
            "ledger": lambda agent, _: agent.ledger.export(),
            "exam": lambda agent, paper: self._exam(agent.learner.model, paper),
            "can_answer": lambda agent, _: _can_answer(agent),
        }

    def call(self, client: str, method: str, argument: Any) -> Any:
        """A method of the wire, or one of the harness."""
        if method == "reopen":
            return self._reopen(client)
        agent = self._agent(client)
        own = self._own.get(method)
        if own:
            return own(agent, argument)
        reply = agent.handle(method, argument)
        return self._liars.spoil(client, reply, agent.ledger.contract) if method == "answer" else reply

    def members(self) -> dict[str, Member]:
        """Those of all clients whose students a cohort can train."""
        learners = {client: self._agent(client).learner for client in self._folders}
        shapes = {client: Shape.of(learner.model.network.body) for client, learner in learners.items()}
        return {
            client: Member(shape, len(learners[client].data.y)) for client, shape in shapes.items() if shape is not None
        }

    def close(self) -> None:
        """Close the agents."""
        for agent in self._agents.values():
            agent.close()

    def _agent(self, client: str) -> Agent:
        if client not in self._agents:
            try:
                self._agents[client] = Agent(self._folders[client] / "client.yaml", trainer=self._trainer(client))
            except FedkdError as error:
                raise error.at(client) from None
        return self._agents[client]

    def _silo(self, agent: Agent, job: Job) -> Silo:
        if agent.name not in self._silos:
            self._silos[agent.name] = Silo(agent.learner, agent.name, job.student)
        return self._silos[agent.name]

    def _reopen(self, client: str) -> None:
        """Read the client's configuration again: it has come to another part of its data."""
        before = self._agents.pop(client, None)
        if before is not None:
            before.close()
        self._agent(client)

    def _exam(self, model: Model, paper: Paper) -> dict[str, Any]:
        takes = model.network.takes
        if takes not in self._looks:
            looks = [load_npz(path) for path in paper.looks]
            self._looks[takes] = [Labelled(model.inputs(look.x), torch.from_numpy(look.y)) for look in looks]
        return examine(model.network, self._looks[takes], paper.lists, told=paper.told).record()

    def _accuracy(self, model: Model) -> float:
        takes = model.network.takes
        if takes not in self._inputs:
            examples = self._examples()
            self._inputs[takes] = Labelled(model.inputs(examples.x), torch.from_numpy(examples.y))
        return accuracy(model.network, self._inputs[takes])

    def _examples(self) -> Examples:
        return load_npz(self._test)

    def _local(self, agent: Agent, seed: int) -> float | None:
        """A second student that learns from the client's own data alone, under the same contract."""
        contract = agent.ledger.open_contract()
        if contract is None:
            return None
        try:
            return self._accuracy(_trained_alone(agent.learner.alone(), contract, seed, agent.name))
        except Exception:
            return None  # a client whose training fails has told so when it mattered


def load_npz(path: Path) -> Examples:
    """Examples that ``write_examples`` has written. Raises DataError."""
    return sources.load(Data(source="npz", path=path.name), path.parent)[0]


def _can_answer(agent: Agent) -> bool:
    """Whether its policy has enough left for the block that it is in."""
    policy, block, past = agent.policy, agent.config.block, agent.ledger.past()
    if policy.mechanism == "none":
        return True
    limits = Limits("example", policy.limit(block), policy.delta, None, policy.lifetime_epsilon)
    accountant = past.accountant((), policy.delta, another=False)
    return all(
        accountant.spent(seen_by(unit, some), policy.delta).epsilon <= (1 - USEFUL) * limit
        for unit, limit, some in limits.columns(past.events, block)
    )


def _trained_alone(learner: Learner, contract: Contract, seed: int, client: str) -> Model:
    for round in range(1, contract.rounds + 1):
        noise = NoiseSource(simulation_key(seed, client, "local-only", round))
        learner.learn(contract, round, None, 1.0, noise)
    return learner.model
