"""What keeps earlier experiences while a learner meets a new one: a term beside the cross entropy, and a memory.

A method sees networks, inputs and labels alone. ``begin`` is called before an experience, ``loss`` for every batch,
``end`` after it; ``memory`` is all that is carried, so that a checkpoint of it and the weights continues a learner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.config import Keeping, StudentTerms
from fedkd.continual.anchor import anchored
from fedkd.continual.fisher import fisher
from fedkd.continual.replay import Buffer
from fedkd.distill.losses import Objective, Targets, cross_entropy, soften
from fedkd.distill.trainer import PUBLIC_BATCH, Distillation, Labelled, logits
from fedkd.rng import derive

Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Now:
    """The experience at hand: its data as the network takes it, and the classes that have come before it."""

    number: int
    data: Labelled
    before: Sequence[int]


class Held(NamedTuple):
    """The size of a memory: private examples, and bytes of all that it has."""

    private_examples: int
    bytes: int


class FineTune:
    """Cross entropy with the experience at hand, and nothing else: the control, which forgets."""

    def __init__(self, keeping: Keeping, proxies: Tensor, temperature: float, seed: int) -> None:
        """``proxies`` [n, ...] are the public examples as the network takes them."""
        self._keeping, self._proxies, self._temperature, self._seed = keeping, proxies, temperature, seed
        self.memory: Memory = {}

    def begin(self, network: nn.Module, now: Now) -> Labelled:
        """Get ready for an experience; returns the examples to train on."""
        self._now = now
        return now.data

    def loss(self, network: nn.Module, some: Tensor) -> Tensor:
        """Scalar, differentiable: of the examples at the indices ``some`` among those that ``begin`` has returned."""
        data = self._now.data
        return cross_entropy(network(data.x[some]), data.y[some]).mean()

    def end(self, network: nn.Module) -> None:
        """Keep what later experiences need."""

    @property
    def held(self) -> Held:
        """What the memory has now, without the experience at hand."""
        examples = len(self.memory["y"]) if "y" in self.memory else 0
        return Held(examples, sum(value.nbytes for value in self.memory.values()))

    def _order(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self._seed, what, self._now.number))


class Lwf(FineTune):
    """Learning without Forgetting (Li & Hoiem 2016, arXiv:1606.09282, equations 2-4): the answers of the network before
    this experience, on the new examples and among the old classes, are kept at temperature T."""

    def begin(self, network: nn.Module, now: Now) -> Labelled:
        """Record the old answers."""
        super().begin(network, now)
        if now.before:
            old = logits(network, now.data.x)[:, list(now.before)]
            self.memory["answers"] = soften(old, self._temperature)
        return now.data

    def loss(self, network: nn.Module, some: Tensor) -> Tensor:
        """CE + weight * T^2 KL(old || new), among the old classes."""
        data, t = self._now.data, self._temperature
        said = network(data.x[some])
        loss = cross_entropy(said, data.y[some]).mean()
        if "answers" not in self.memory:
            return loss
        new = F.log_softmax(said[:, list(self._now.before)] / t, dim=1)
        kept = F.kl_div(new, self.memory["answers"][some], reduction="none").sum(dim=1).mean()
        return loss + self._keeping.strength * t**2 * kept

    def end(self, network: nn.Module) -> None:
        """The answers are of this experience's examples: they go with them."""
        self.memory.clear()


class ExperienceReplay(FineTune):
    """Experience replay (Chaudhry et al. 2019, arXiv:1902.10486, algorithm 1): a batch of the memory beside every new
    one. It keeps private examples."""

    def __init__(self, keeping: Keeping, proxies: Tensor, temperature: float, seed: int) -> None:
        super().__init__(keeping, proxies, temperature, seed)
        self._buffer = Buffer(keeping.buffer, seed)

    def begin(self, network: nn.Module, now: Now) -> Labelled:
        """Fix the order of the memory's batches."""
        super().begin(network, now)
        self._draws = self._order("replay")
        return now.data

    def loss(self, network: nn.Module, some: Tensor) -> Tensor:
        """CE(new) + weight * CE(memory)."""
        loss = super().loss(network, some)
        if "y" not in self.memory:
            return loss
        x, y, _ = self._replayed(len(some))
        return loss + self._keeping.strength * cross_entropy(network(x), y).mean()

    def end(self, network: nn.Module) -> None:
        """A uniform sample of all examples so far, with what the network says of the new ones."""
        self.memory = self._buffer.add(self.memory, self._now.data, logits(network, self._now.data.x))

    def _replayed(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        some = torch.randint(len(self.memory["y"]), (size,), generator=self._draws)
        return self.memory["x"][some], self.memory["y"][some], self.memory["logits"][some]


class DarkReplay(ExperienceReplay):
    """DER++ (Buzzega et al. 2020, arXiv:2004.07211, equation 6): logits are kept too, and are to stay what they were.

    They are those of the end of an example's experience; the paper's are those of the step that drew it.
    """

    def loss(self, network: nn.Module, some: Tensor) -> Tensor:
        """CE(new) + alpha * ||f(x') - z'||^2 / k + weight * CE(memory), in two batches of the memory."""
        loss = super().loss(network, some)
        if "y" not in self.memory:
            return loss
        x, _, z = self._replayed(len(some))
        return loss + self._keeping.alpha * F.mse_loss(network(x), z)


class ElasticWeights(FineTune):
    """EWC (Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3), online (Schwarz et al. 2018, arXiv:1805.06370): one
    Fisher, added up, around the newest weights. It is taken on the proxy set: nothing private is in it but what
    the weights say."""

    def loss(self, network: nn.Module, some: Tensor) -> Tensor:
        """CE + weight / 2 * sum_i F_i (w_i - w*_i)^2."""
        loss = super().loss(network, some)
        if not self.memory:
            return loss
        parts = [
            (self.memory[f"fisher.{name}"] * (p - self.memory[f"weights.{name}"]).square()).sum()
            for name, p in network.named_parameters()
        ]
        return loss + 0.5 * self._keeping.strength * torch.stack(parts).sum()

    def end(self, network: nn.Module) -> None:
        """Add this experience's Fisher."""
        found = fisher(network, self._proxies, self._order("fisher"))
        for name, p in network.named_parameters():
            before = self.memory.get(f"fisher.{name}", torch.zeros_like(p))
            self.memory[f"fisher.{name}"] = before + found[name]
            self.memory[f"weights.{name}"] = p.detach().clone()


class ProxyAnchor(FineTune):
    """The default: what the network said of the public proxies before this experience is frozen, with no mass on
    classes that had not come yet, and distilled beside the new examples. No private example is kept."""

    def begin(self, network: nn.Module, now: Now) -> Labelled:
        """Freeze the anchor."""
        super().begin(network, now)
        self._distillation = None
        if now.before:
            t = self._temperature
            rows = anchored(logits(network, self._proxies), now.before, t)
            self.memory["anchor"] = rows
            terms: StudentTerms = {"kl": self._keeping.strength}
            seed = derive(self._seed, "anchor", now.number)
            self._distillation = Distillation(self._proxies, Targets(rows, t), Objective(terms), seed)
        return now.data

    def loss(self, network: nn.Module, some: Tensor) -> Tensor:
        """CE(new) + weight * T^2 KL(anchor || network) on a batch of proxies."""
        loss = super().loss(network, some)
        if self._distillation is None:
            return loss
        return loss + self._distillation.batch(network, PUBLIC_BATCH)

    def end(self, network: nn.Module) -> None:
        """The next anchor comes from the network itself."""
        self.memory.clear()


class Joint(FineTune):
    """All examples so far, together: what could be had if nothing had to be let go. It keeps every private example."""

    def begin(self, network: nn.Module, now: Now) -> Labelled:
        """Old and new ones."""
        new = {"x": now.data.x, "y": now.data.y}
        self.memory = {n: torch.cat([self.memory[n], value]) if self.memory else value for n, value in new.items()}
        return super().begin(network, Now(now.number, Labelled(self.memory["x"], self.memory["y"]), now.before))


METHODS: dict[str, Callable[[Keeping, Tensor, float, int], FineTune]] = {
    "finetune": FineTune,
    "lwf": Lwf,
    "er": ExperienceReplay,
    "derpp": DarkReplay,
    "ewc": ElasticWeights,
    "proxy": ProxyAnchor,
    "joint": Joint,
}
USES_PROXIES = frozenset({"proxy", "ewc"})
"""The methods that need the proxy set."""
