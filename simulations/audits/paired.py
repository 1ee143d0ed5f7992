"""Paired releases: a mechanism runs many times on two neighbouring data sets, and a test tells the releases apart.

``GAMES`` has one row a mechanism. Every release draws its noise under a key of its own, as a reservation does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.distill.losses import Objective, SoftLabels
from fedkd.distill.trainer import Distillation, Labelled, Optimiser, learn_round
from fedkd.privacy.audit import Evidence, Scores, paired_bounds
from fedkd.privacy.noise import NoiseSource, simulation_key
from simulations.audits.setting import Setting, progress

DIM, CLASSES, PROXIES = 32, 2, 16
KNOWN, SECRET, PUBLIC = 0, 1, slice(2, 4)  # features of the example in both sets, of the other one, and of the proxies
LOUD = 1e3  # length of the features, so that every gradient is clipped


@dataclass(frozen=True)
class Game:
    """D and D', and what an adversary computes from one release: statistics [s] for D' (``secret``) or D."""

    release: Callable[[bool, NoiseSource], Scores]
    neighbours: str
    gaussian: bool  # whether what is claimed is Gaussian differential privacy


def _step(setting: Setting, network: nn.Module) -> Game:
    """One DP-SGD step, which spends the whole budget, beside soft labels that a hostile server has chosen."""
    contract = setting.one_step(CLASSES)
    x = torch.zeros(2, DIM)
    x[0, KNOWN] = x[1, SECRET] = LOUD
    both, one = (Labelled(x[:n], torch.zeros(n, dtype=torch.int64)) for n in (2, 1))
    start = {name: value.clone() for name, value in network.state_dict().items()}
    (weight,) = (p for p in network.parameters() if p.dim() == 2)

    def release(secret: bool, noise: NoiseSource) -> Scores:
        network.load_state_dict(start)
        data = both if secret else one
        learn_round(network, data, contract, Optimiser(1.0, 0.0), noise, _labels(), {})
        update = weight.detach().double().numpy()
        # where the other example would show, and how much noise there is where nothing but noise can be
        return np.array([update[0, SECRET] - update[1, SECRET], np.square(update[:, PUBLIC.stop :]).sum()])

    neighbours = (
        "two examples or one of them, with gradients far above the clip, beside soft labels of a hostile server"
    )
    return Game(release, neighbours, contract.event.sample_rate == 1)


def _labels() -> Distillation:
    """Proxies and labels with a public gradient that, if it were not kept apart, would dwarf the private one."""
    inputs = torch.zeros(PROXIES, DIM)
    inputs[:, PUBLIC] = LOUD
    wrong = torch.tensor([[0.0, 1.0]]).repeat(PROXIES, 1)
    return Distillation(inputs, SoftLabels(wrong, 1.0), Objective({"kl": 1.0}), seed=0)


class _Outside(nn.Module):
    """A network that is no part of torch.nn or fedkd: such are clipped with hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = _zeroed()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def _zeroed() -> nn.Linear:
    layer = nn.Linear(DIM, CLASSES)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


GAMES: dict[str, Callable[[Setting], Game]] = {
    "dp_sgd, ghost clipping": lambda setting: _step(setting, _zeroed()),
    "dp_sgd, clipping with hooks": lambda setting: _step(setting, _Outside()),
}


def paired_evidence(setting: Setting) -> Iterator[Evidence]:
    """Two bounds a game: for any mechanism and, where Gaussian differential privacy is claimed, for that."""
    for name, make in GAMES.items():
        game = make(setting)
        negative, positive = _play(setting, name, game)
        (plain, bound), (gaussian, gaussian_bound) = paired_bounds(negative, positive, setting.delta)
        told = f"knows everything but one record and sees the release (white box); {game.neighbours}"
        kinds = [("any mechanism", plain, bound)]
        if game.gaussian:
            kinds.append(("Gaussian differential privacy", gaussian, gaussian_bound))
        for kind, errors, lower in kinds:
            yield Evidence(
                f"paired releases of {name}, for {kind}", setting.quantity, setting.claim, told, lower, vars(errors)
            )


def _play(setting: Setting, name: str, game: Game) -> tuple[Scores, Scores]:
    """Statistics [trials, s] on D and on D', by turns."""
    total = setting.sizes.trials
    step = progress(setting.tell, f"paired releases of {name}", total)
    seen: tuple[list[Scores], list[Scores]] = ([], [])
    for trial in range(total):
        for secret in (False, True):
            key = simulation_key(setting.scenario.seed, f"audit {name}", f"{secret}", trial)
            seen[secret].append(game.release(secret, NoiseSource(key)))
        step(trial + 1)
    return np.array(seen[0]), np.array(seen[1])
