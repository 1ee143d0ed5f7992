"""Sharing weights instead of answers, for comparisons: what fedkd never sends, and what no message has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from client.learner import Learner
from fedkd.config import Student
from fedkd.distill.trainer import learn_round
from fedkd.errors import FedkdError
from fedkd.privacy.contract import Contract
from fedkd.privacy.noise import NoiseSource, simulation_key
from fedkd.rng import derive
from fedkd.tensors import Arrays


@dataclass(frozen=True)
class Job:
    """One round of one silo: the weights that it starts from, and the training that its contract charges.

    ``mu`` is the weight of FedProx' distance to these weights; 0: none.
    """

    name: str
    seed: int
    round: int
    student: Student
    contract: Contract
    weights: Arrays
    mu: float = 0.0


@dataclass(frozen=True)
class Update:
    """What a silo sends: weights after its local steps, and the number of examples that they have learned from."""

    weights: Arrays
    examples: int


class Silo:
    """A client as weight-sharing methods have it: its own data, and a network whose weights come from outside.

    Momentum starts at zero in every round, for the weights are not those that it was made with.
    """

    def __init__(self, learner: Learner, client: str, student: Student) -> None:
        alone = learner.alone(student)
        self._client, self._model, self._optimiser = client, alone.model, alone.optimiser
        self._data = alone.everything

    def train(self, job: Job) -> Update:
        """Local steps from the job's weights, with the very loop that a student of fedkd trains with."""
        self._model.load(job.weights)
        noise = NoiseSource(simulation_key(job.seed, self._client, job.name, job.round))
        near = Proximal(self._model.network, job.mu) if job.mu else None
        learn_round(self._model.network, self._data, job.contract, self._optimiser, noise, near, {})
        return Update(self._model.arrays(), len(self._data.y))


class Proximal:
    """mu/2 times the squared L2 distance to the first weights (Li et al. 2020, arXiv:1812.06127, equation 2).

    Its gradient is no longer than the clip, like that of the data.
    """

    def __init__(self, network: nn.Module, mu: float) -> None:
        self._mu = mu
        self._start = [p.detach().clone() for p in network.parameters() if p.requires_grad]

    def batch(self, network: nn.Module, size: int) -> Tensor:
        """The term itself: it has no mini-batch."""
        now = (p for p in network.parameters() if p.requires_grad)
        squares = [(p - start).square().sum() for p, start in zip(now, self._start, strict=True)]
        return self._mu / 2 * torch.stack(squares).sum()


def averaged(updates: Mapping[str, Update], *, by_size: bool) -> Arrays:
    """The mean of all weights in float64, clients in order of their names: by their numbers of examples (McMahan et al.
    2017, arXiv:1602.05629, algorithm 1), or all alike, where these numbers are private. Raises FedkdError for weights
    that are not finite."""
    clients = sorted(updates)
    shares = _shares([updates[client].examples if by_size else 1 for client in clients])
    mean = {}
    for name, first in updates[clients[0]].weights.items():
        total = sum(
            share * updates[client].weights[name].astype(np.float64)
            for share, client in zip(shares, clients, strict=True)
        )
        if not np.isfinite(total).all():
            raise FedkdError("the weights are not finite: training diverged", fix="lower its learning_rate")
        mean[name] = np.asarray(total).astype(first.dtype)
    return mean


def _shares(counts: Sequence[int]) -> list[float]:
    """Parts of one; all alike where nobody has anything."""
    return [count / sum(counts) if sum(counts) else 1 / len(counts) for count in counts]


def initial_seed(seed: int, name: str) -> int:
    """Of the weights that all silos start from."""
    return derive(seed, "baseline", name)
