"""Canaries in one run: records of which each takes part by a fair coin, in the data of a real agent, and a white-box
adversary who guesses the coins from the weights of every round (Steinke, Nasr & Jagielski 2023, arXiv:2305.08846)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkd.config import ClientConfig, Student
from fedkd.data.sources import Examples
from fedkd.distill.model import ProxyView
from fedkd.privacy.audit import Evidence, Scores, choose_guesser, one_run_delta
from fedkd.privacy.contract import Contract
from fedkd.rng import generator
from simulations.audits import client as made_up
from simulations.audits.gradients import Parameters, each_gradient, parameters_of
from simulations.audits.setting import Setting, claimed, epsilon_at

BRIGHT = 10.0  # a canary over a proxy example, in length, times the clip: its gradient is clipped, round after round
SMALL = 1e-4  # of the clip: what a canary moves its weights by in a step, so that none is learned by heart


def canary_evidence(setting: Setting) -> Iterator[Evidence]:
    """A run of its own chooses what to look at and how often to abstain; another one is counted."""
    with TemporaryDirectory() as folder:
        run = _Run(setting, Path(folder))
        pilot, coins, _ = run.play("pilot")
        scores, included, contract = run.play("counted")
    delta = one_run_delta(setting.delta, len(included))
    guesses = choose_guesser(pilot, coins, delta).guess(scores, included)
    yield Evidence(
        "canaries in one run",
        epsilon_at(delta),
        claimed(contract, delta),
        "knows every record but the canaries' coins, sees the weights of every round (white box), another client's too",
        lambda alpha: guesses.epsilon(alpha, delta),
        vars(guesses) | {"student": run.student.kind},
    )


class _Run:
    """Plays runs with canaries, of a student that sees pixels one by one."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting, self._folder = setting, folder
        side = max(8, math.ceil(math.sqrt(setting.sizes.canaries)))
        self._public = made_up.made_up_proxies(side)
        self._public.save(folder / "proxy.safetensors")
        self._canaries = _lit(setting.sizes.canaries, side, BRIGHT * side * setting.scenario.privacy.clip)
        first = setting.scenario.students[0]
        # in convolutions all canaries share their weights, and none could be told from the others
        self.student = Student(kind="linear") if first.kind == "cnn" else first

    def play(self, name: str) -> tuple[Scores, NDArray[np.bool_], Contract]:
        """Scores [m, 2] of the canaries, and their coins [m]. A canary's first score is how far the weights have gone
        along its own clipped gradient, summed over rounds; the second is less by that in another client's weights."""
        self._setting.tell(f"canaries, {name} run")
        included = generator(self._setting.scenario.seed, "audit", "coins", name).random(len(self._canaries)) < 0.5
        mine, contract = self._scores(name, "client-0", self._canaries.take(np.flatnonzero(included)))
        other, _ = self._scores(name, "client-1", self._canaries.take(np.zeros(0, np.int64)))
        return np.stack([mine, mine - other], axis=1), included, contract

    def _scores(self, run: str, name: str, data: Examples) -> tuple[Scores, Contract]:
        """Scores [m] of one client's weights."""
        scenario = self._setting.scenario
        nominal = max(1, len(self._canaries) // 2)
        policy = made_up.policy_of(scenario.privacy, self._public, nominal, scenario.seed)
        with made_up.opened(self._folder / run / name, policy, self._client(name, nominal), data) as agent:
            played = made_up.Run(agent, scenario, ProxyView(self._public, self._setting.base), run)
            network, x = agent.learner.model.network, agent.learner.model.inputs(self._canaries.x)
            scores, before, at = np.zeros(len(x)), made_up.weights(agent), parameters_of(network)
            for _ in played.rounds():
                after = made_up.weights(agent)
                scores += _along(network, at, x, policy.clip, before - after)
                before, at = after, parameters_of(network)
        return scores, played.contract

    def _client(self, name: str, nominal: int) -> ClientConfig:
        privacy = self._setting.scenario.privacy
        client = made_up.client_of(self._setting, name, self._folder / "proxy.safetensors")
        client = client.model_copy(update={"student": self.student})
        return made_up.without_momentum(client, SMALL * nominal * privacy.sample_rate / privacy.clip)


def _lit(n: int, side: int, brightness: float) -> Examples:
    """One lit pixel each, so that in the first layer no two share a weight: no other canary is in the way."""
    x = np.zeros((n, side * side), np.float32)
    x[np.arange(n), np.arange(n)] = brightness
    return Examples(x.reshape(n, 1, side, side), np.zeros(n, np.int64), made_up.CLASSES)


def _along(network: nn.Module, at: Parameters, x: Tensor, clip: float, descent: Scores) -> Scores:
    """Inner product [m] of a descent of the weights with each canary's own clipped gradient at ``at``."""
    direction = torch.from_numpy(descent).float()
    found = []
    for rows in each_gradient(network, at, x, torch.zeros(len(x), dtype=torch.int64)):
        norms = rows.norm(dim=1).clamp(min=1e-12)
        found.append(rows @ direction * (clip / norms).clamp(max=1.0))
    return torch.cat(found).double().numpy()
