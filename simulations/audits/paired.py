"""Paired releases: a mechanism runs many times on two neighbouring data sets, and a test tells the releases apart.

``GAMES`` has one row a mechanism. DP-SGD draws the noise of every release under a key of its own, as a reservation
does. Where many releases are made side by side under one key, noise is taken to be independent within a key: whether it
is, is another audit's question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkd.aggregate import sum as modular
from fedkd.aggregate.votes import UNANSWERED, confident_gnmax, gnmax
from fedkd.config import Mechanism, Policy, StudentTerms
from fedkd.distill.losses import Objective, Targets
from fedkd.distill.trainer import Distillation, Labelled, Optimiser, learn_round, public_order
from fedkd.privacy.audit import Evidence, Scores, paired_bounds
from fedkd.privacy.contract import Contract, draw_up
from fedkd.privacy.limits import Past
from fedkd.privacy.mechanisms import MECHANISMS
from fedkd.privacy.noise import NoiseSource, simulation_key
from fedkd.rng import generator
from fedkd.wire import Offer
from simulations.audits.setting import Setting, claimed, progress

CLASSES, QUERIES = 2, 16
FEATURES, MANY, PROXIES = 128, 64, 16
KNOWN, SECRET, NOTHING = 0, 1, slice(2, 120)  # features of the others, of the one record, and of nobody
LOUD = 1e3  # length of the features, so that every gradient is clipped
STEEP: StudentTerms = {"kl": 10.0}  # their public gradient, if it were not kept apart, would dwarf a private one
FEW_TRIALS = 0.3  # so many times the trials where a mistake shows in any one of them
BATCH = 500  # releases side by side
CHEAP = 40  # so many times the trials for mechanisms that train nothing
NOBODY = "0" * 64

Release = Callable[[bool, NoiseSource], Scores]
"""What an adversary computes from releases on D' (True) or on D: statistics [releases, s]."""


@dataclass(frozen=True)
class Game:
    """D and D', and releases on them under a contract that spends the whole budget at once."""

    contract: Contract
    release: Release
    neighbours: str
    sees: str
    batch: int = BATCH
    effort: float = CHEAP


def contract_of(setting: Setting, mechanism: Mechanism, aggregate: str) -> Contract:
    """What a policy of the scenario's epsilon, delta, clip and sampling draws up for one round of one step."""
    kept = setting.scenario.privacy.model_dump(include={"epsilon", "delta", "clip", "sample_rate", "noise_ratio"})
    policy = Policy(
        **kept, mechanism=mechanism, steps=1, nominal_examples=1, proxies=(NOBODY,), accept_low_utility=True
    )
    offer = Offer("audit", "auditor", NOBODY, QUERIES, CLASSES, QUERIES, 1, "float32", aggregate, 50, "")
    return draw_up(policy, offer, Past())


# -- one example: DP-SGD -----------------------------------------------------------------------------------------------


def one_or_two(setting: Setting, make: Callable[[int], nn.Module]) -> Game:
    """One step on one example or on two: what depends on their number shows here."""
    step = _Step(contract_of(setting, "dp_sgd", "mean"), make(FEATURES))
    both = torch.stack([step.along(KNOWN), step.along(SECRET)])

    def release(secret: bool, noise: NoiseSource) -> Scores:
        weight, bias = step.update(both if secret else both[:1], noise)
        signal = weight[0, SECRET] - weight[1, SECRET]
        # where the second example would show, and how much noise there is where nothing but noise can be
        return np.array([[signal, signal + bias[0] - bias[1], np.square(weight[:, NOTHING]).sum()]])

    neighbours = "one or two records with gradients far above the clip"
    return Game(step.contract, release, neighbours, "the weights after one step that spends everything", 1, FEW_TRIALS)


def beside_labels(setting: Setting, make: Callable[[int], nn.Module]) -> Game:
    """A record before others, each of which a hostile server's soft labels pull the other way: were examples paired
    with proxies, all the others would meet another proxy."""
    step = _Step(contract_of(setting, "dp_sgd", "mean"), make(FEATURES))
    turns = torch.stack([step.along(KNOWN), torch.zeros(FEATURES)]).repeat(PROXIES // 2, 1)
    step.proxies = turns[torch.argsort(torch.randperm(PROXIES, generator=public_order(0)))]
    with_secret = torch.cat([step.along(SECRET)[None], turns[:-1]])

    def release(secret: bool, noise: NoiseSource) -> Scores:
        weight, _ = step.update(with_secret if secret else turns[:-1], noise)
        signal: Scores = (weight[0] - weight[1])[None, [KNOWN, SECRET]]
        return signal

    neighbours = "one record more or less among others, beside soft labels of a hostile server"
    return Game(step.contract, release, neighbours, "the weights after one step that spends everything", 1, FEW_TRIALS)


def many_records(setting: Setting, make: Callable[[int], nn.Module]) -> Game:
    """Steps on records of which each takes part by a coin, and each in weights of its own: many releases at once, which
    measure sensitivity over noise finely."""
    step = _Step(contract_of(setting, "dp_sgd", "mean"), make(FEATURES))
    records = torch.stack([step.along(feature) for feature in range(MANY)])
    coins = generator(setting.scenario.seed, "audit", "records")

    def release(secret: bool, noise: NoiseSource) -> Scores:
        included = coins.random(MANY) < 0.5
        weight, _ = step.update(records[torch.from_numpy(included)], noise)
        signal: Scores = (weight[0] - weight[1])[:MANY][included == secret, None]
        return signal

    neighbours = "one record with a gradient far above the clip more or less, among others that take part by coins"
    sees = "the weights after one step that spends everything"
    return Game(step.contract, release, neighbours, sees, MANY // 2, CHEAP / 2)


class _Step:
    """Takes one step of DP-SGD from always the same weights, on examples with label 0, beside ``proxies`` whose soft
    labels say 1."""

    def __init__(self, contract: Contract, network: nn.Module) -> None:
        self.contract, self._network = contract, network
        self._start = {name: value.clone() for name, value in network.state_dict().items()}
        (self._weight,) = (p for p in network.parameters() if p.dim() > 1)
        (self._bias,) = (p for p in network.parameters() if p.dim() == 1)
        self.proxies = self.along(FEATURES - 1).repeat(PROXIES, 1)

    def along(self, feature: int) -> Tensor:
        """An example with this feature alone."""
        return LOUD * torch.eye(FEATURES)[feature]

    def update(self, x: Tensor, noise: NoiseSource) -> tuple[Scores, Scores]:
        """What the step adds to weight [classes, features] and bias [classes]."""
        self._network.load_state_dict(self._start)
        wrong = torch.tensor([[0.0, 1.0]]).repeat(PROXIES, 1)
        labels = Distillation(self.proxies, Targets(wrong, 1.0), Objective(STEEP), seed=0)
        data = Labelled(x, torch.zeros(len(x), dtype=torch.int64))
        learn_round(self._network, data, self.contract, Optimiser(1.0, 0.0), noise, labels, {})
        weight, bias = (p.detach().double().numpy().copy() for p in (self._weight, self._bias))
        return weight.reshape(CLASSES, FEATURES), bias


class _Outside(nn.Module):
    """A network that is no part of torch.nn or fedkd: such are clipped with hooks."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = _zeroed(features)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def _zeroed(features: int) -> nn.Module:
    return _at_zero(nn.Linear(features, CLASSES))


def _convolved(features: int) -> nn.Module:
    """The same as a convolution: such are clipped in a single pass."""
    layer = _at_zero(nn.Conv1d(1, CLASSES, features))
    return nn.Sequential(nn.Unflatten(1, (1, features)), layer, nn.Flatten())


def _at_zero(network: nn.Module) -> nn.Module:
    for p in network.parameters():
        nn.init.zeros_(p)
    return network


# -- one client: noise on answers, sums and votes ----------------------------------------------------------------------


def gaussian(setting: Setting) -> Game:
    """All answers of one client say the one class, or the other."""
    contract = contract_of(setting, "gaussian", "mean")

    def release(secret: bool, noise: NoiseSource) -> Scores:
        rows = _answered(contract, noise, int(secret)).astype(np.float64)
        return _by_release(rows[:, 1] - rows[:, 0])

    return Game(contract, release, "all answers of one client replaced", "its noised answers")


def summed(setting: Setting) -> Game:
    """One client's votes are in the sum, or not."""
    contract = contract_of(setting, "sum", "sum")
    (variance,) = contract.variances

    def release(secret: bool, noise: NoiseSource) -> Scores:
        total = modular.start(BATCH * QUERIES, CLASSES, ["client"])
        if secret:
            total = modular.fold(total, "client", modular.share(_answered(contract, noise, 0).astype(np.int64)))
        return _by_release(modular.finish(total, noise, variance)[:, 0])

    return Game(contract, release, "one client more or less", "the noised sum of votes")


def voted(setting: Setting, aggregate: str) -> Game:
    """One client votes for the one class or for the other, of two that are equal but for its votes."""
    contract = contract_of(setting, "votes", aggregate)

    def release(secret: bool, noise: NoiseSource) -> Scores:
        tally = _answered(contract, noise, int(secret)).astype(np.int64)
        if aggregate == "votes":
            labels = gnmax(tally, noise, *contract.variances)
        else:
            _, labels = confident_gnmax(tally, noise, 1, *contract.variances)
        return _by_release(labels == 1, labels == UNANSWERED)

    return Game(contract, release, "all votes of one client replaced, and nobody else's decide", "the winning labels")


def _answered(contract: Contract, noise: NoiseSource, label: int) -> NDArray[Any]:
    """What a client whose student always says ``label`` sends, for BATCH releases."""
    mechanism = MECHANISMS[contract.mechanism](contract)
    sure = np.zeros((1, BATCH * QUERIES, CLASSES), np.float32)
    sure[..., label] = 1.0
    return mechanism.release(mechanism.bound(sure), noise).rows


def _by_release(*values: NDArray[Any]) -> Scores:
    """Sums over the queries of each release."""
    return np.stack([value.reshape(BATCH, QUERIES).sum(axis=1) for value in values], axis=1).astype(np.float64)


GAMES: dict[str, Callable[[Setting], Game]] = {
    "dp_sgd with ghost clipping, one or two records": lambda setting: one_or_two(setting, _zeroed),
    "dp_sgd with ghost clipping, beside soft labels": lambda setting: beside_labels(setting, _zeroed),
    "dp_sgd with ghost clipping, many records": lambda setting: many_records(setting, _zeroed),
    "dp_sgd with hooks, one or two records": lambda setting: one_or_two(setting, _Outside),
    "dp_sgd with hooks, beside soft labels": lambda setting: beside_labels(setting, _Outside),
    "dp_sgd with hooks, many records": lambda setting: many_records(setting, _Outside),
    "dp_sgd in a single pass, one or two records": lambda setting: one_or_two(setting, _convolved),
    "dp_sgd in a single pass, beside soft labels": lambda setting: beside_labels(setting, _convolved),
    "dp_sgd in a single pass, many records": lambda setting: many_records(setting, _convolved),
    "gaussian": gaussian,
    "sum": summed,
    "votes": lambda setting: voted(setting, "votes"),
    "votes with a threshold": lambda setting: voted(setting, "confident_votes"),
}


# -- playing -----------------------------------------------------------------------------------------------------------


def paired_evidence(setting: Setting) -> Iterator[Evidence]:
    """Two bounds a game: for any mechanism and, where Gaussian differential privacy is claimed, for that."""
    for name, make in GAMES.items():
        game = make(setting)
        bounds = paired_bounds(*_play(setting, name, game), setting.delta)
        kinds = dict(zip(("any mechanism", "Gaussian differential privacy"), bounds, strict=True))
        if any(event.sample_rate < 1 for event in game.contract.events):
            del kinds["Gaussian differential privacy"]
        claim, event = claimed(game.contract, setting.delta), game.contract.events[0]
        told = f"knows everything but which of the two it is and sees {game.sees}; {event.unit}: {game.neighbours}"
        for kind, (errors, bound) in kinds.items():
            audit = f"paired releases of {name}, for {kind}"
            yield Evidence(audit, setting.quantity, claim, told, bound, vars(errors))


def _play(setting: Setting, name: str, game: Game) -> tuple[Scores, Scores]:
    """Statistics [releases, s] on D and on D', by turns."""
    total = math.ceil(setting.sizes.trials * game.effort / game.batch)
    step = progress(setting.tell, f"paired releases of {name}", total)
    seen: tuple[list[Scores], list[Scores]] = ([], [])
    for trial in range(total):
        for secret in (False, True):
            key = simulation_key(setting.scenario.seed, f"audit {name}", f"{secret}", trial)
            seen[secret].append(game.release(secret, NoiseSource(key)))
        step(trial + 1)
    return np.concatenate(seen[0]), np.concatenate(seen[1])
