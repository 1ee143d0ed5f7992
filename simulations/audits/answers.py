"""Membership inference on the answers alone: who was in a client's data, with the mechanism and without any.

The adversary has candidates, of which each took part by a fair coin. It knows how a client learns, hence in which
direction each candidate would push the logarithms of the answers; how much of each direction is in them is the
candidate's score, by ridge regression. Runs of its own tell it what score to expect, as in LiRA (Carlini et al. 2022,
arXiv:2112.03570), and how many guesses to make. Over several runs, every coin still has touched one run only, so that
the theorem for one run holds for all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from client.agent import Agent
from fedkd.config import Privacy
from fedkd.data.sources import Examples
from fedkd.distill.model import ProxyView
from fedkd.privacy.audit import Evidence, Scores, choose_guesser, one_run_delta
from fedkd.privacy.contract import Contract
from fedkd.rng import generator
from simulations.audits import client as made_up
from simulations.audits.gradients import each_gradient, parameters_of, shifted
from simulations.audits.setting import Setting, claimed, epsilon_at, progress
from simulations.prepare import build_proxy
from simulations.split import cut

FLOOR = 1e-4  # of probabilities: float16 has few digits below it
STEP = 1e-2  # along a candidate's gradient
RIDGE = 1e-2  # of the mean squared length of a direction
Coins = NDArray[np.bool_]


def answer_evidence(setting: Setting) -> Iterator[Evidence]:
    """The same attack on the scenario's mechanism, and on clients without privacy."""
    with TemporaryDirectory() as folder:
        attack = Attack(setting, Path(folder))
        unprotected = setting.scenario.privacy.model_copy(update={"mechanism": "none"})
        for privacy in (setting.scenario.privacy, unprotected):
            yield attack.evidence(privacy)


class Attack:
    """Clients of the scenario's data, half of whose records are candidates."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting, self._folder = setting, folder
        setting.tell("membership inference on answers: preparing the scenario's data")
        self._proxy = folder / "proxy.safetensors"
        build_proxy(setting.scenario, setting.base).save(self._proxy)
        self._view = ProxyView.load(self._proxy, setting.base)
        pool = cut(setting.scenario, setting.base).private
        order = generator(setting.scenario.seed, "audit", "candidates").permutation(len(pool))
        count = min(setting.sizes.targets, len(pool) // 2)
        self._candidates, self._others = pool.take(order[:count]), pool.take(order[count:])
        self._directions: Scores | None = None

    def evidence(self, privacy: Privacy) -> Evidence:
        """Half of the runs choose, the other half is counted."""
        scores, coins, contract = self._runs(privacy)
        half = len(scores) // 2
        centre, scale = scores[:half].mean(axis=0), scores[:half].std(axis=0) + 1e-12
        scores = (scores - centre) / scale
        pilot, counted = (part.reshape(-1, 1) for part in (scores[:half], scores[half:]))
        delta = one_run_delta(privacy.delta, coins[half:].size)
        chosen = choose_guesser(pilot, coins[:half].ravel(), delta)
        guesses = chosen.guess(counted, coins[half:].ravel())
        return Evidence(
            f"membership inference on the answers of {privacy.mechanism}",
            epsilon_at(delta),
            claimed(contract, delta),
            "sees only the answers of every round (black box), and has candidates for the records",
            lambda alpha: guesses.epsilon(alpha, delta),
            vars(guesses) | _power(counted[:, 0], coins[half:].ravel()),
        )

    def _runs(self, privacy: Privacy) -> tuple[Scores, NDArray[np.bool_], Contract]:
        """Scores and coins [runs, candidates]."""
        total = 2 * self._setting.sizes.runs
        step = progress(self._setting.tell, f"membership inference on the answers of {privacy.mechanism}", total)
        scores, coins = [], []
        for index in range(total):
            score, included, contract = self._run(privacy, index)
            scores.append(score)
            coins.append(included)
            step(index + 1)
        return np.array(scores), np.array(coins), contract

    def _run(self, privacy: Privacy, index: int) -> tuple[Scores, Coins, Contract]:
        scenario = self._setting.scenario
        random = generator(scenario.seed, "audit", "members", index)
        included = random.random(len(self._candidates)) < 0.5
        others = random.choice(len(self._others), len(self._candidates) // 2, replace=False)
        data = _joined(self._candidates.take(np.flatnonzero(included)), self._others.take(others))
        policy = made_up.policy_of(privacy, self._view.proxy, len(self._candidates), scenario.seed)
        client = made_up.client_of(self._setting, "client-0", self._proxy)
        with made_up.opened(self._folder / f"{privacy.mechanism}-{index}", policy, client, data) as agent:
            if self._directions is None:
                self._directions = self._influences(agent)
            played = made_up.Run(agent, scenario, self._view, f"run-{index}")
            seen = [rows.astype(np.float64) for rows in played.rounds()]
        return _shares(self._directions, _logs(np.mean(seen, axis=0))), included, played.contract

    def _influences(self, agent: Agent) -> Scores:
        """How each candidate would move the log-answers of a student that knows nothing yet: [candidates, answers]."""
        network, model = agent.learner.model.network, agent.learner.model
        at, proxies = parameters_of(network), self._view.inputs(network.takes)
        x, y = model.inputs(self._candidates.x), torch.from_numpy(self._candidates.y)

        def answers(by: torch.Tensor) -> Scores:
            logits = torch.func.functional_call(network, shifted(at, by), (proxies,))
            return _logs(torch.softmax(logits, dim=1).double().numpy())

        with torch.no_grad():
            gradients = [row for rows in each_gradient(network, at, x, y) for row in rows]
            unmoved = answers(torch.zeros_like(gradients[0]))
            return np.array([(answers(-STEP * gradient) - unmoved) / STEP for gradient in gradients])


def _joined(one: Examples, two: Examples) -> Examples:
    x, y = (np.concatenate([getattr(one, side), getattr(two, side)]) for side in ("x", "y"))
    return Examples(x, y, one.classes)


def _logs(rows: Scores) -> Scores:
    """Logarithms of probabilities, centred row by row, as one vector."""
    found = np.log(np.maximum(rows, FLOOR))
    flat: Scores = (found - found.mean(axis=1, keepdims=True)).ravel()
    return flat


def _shares(directions: Scores, answers: Scores) -> Scores:
    """How much of each direction [n, d] the answers [d] hold."""
    gram = directions @ directions.T
    found: Scores = np.linalg.solve(gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), directions @ answers)
    return found


def _power(scores: Scores, included: Coins) -> dict[str, Any]:
    """Area under the curve of true against false positives, and true positives at 1 % of false ones."""
    inside, outside = scores[included], scores[~included]
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    area = (ranks.sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside))
    threshold = np.sort(outside)[-1 - math.floor(0.01 * len(outside))]
    return {"auc": round(float(area), 4), "tpr_at_1_percent_fpr": round(float((inside > threshold).mean()), 4)}
