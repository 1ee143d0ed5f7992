"""Training loops: a client's round under its contract, and plain fitting to soft labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from fedkd.distill.losses import Objective, Outputs, Targets, cross_entropy
from fedkd.distill.outputs import observe
from fedkd.distill.students import LEARNING_RATE, LEARNING_RATES
from fedkd.errors import FedkdError
from fedkd.privacy.gradients import PerExampleLoss, shortened
from fedkd.privacy.noise import NoiseSource
from fedkd.rng import derive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedkd.config import Student, Training
    from fedkd.privacy.contract import Contract

PUBLIC_BATCH = 512  # proxy examples a step of the public gradient
LESSON_BATCH = 256  # and a step of a lesson


@dataclass(frozen=True)
class Labelled:
    """Inputs [n, ...] and labels [n]."""

    x: Tensor
    y: Tensor


Velocity = dict[str, Tensor]  # momentum by parameter name; empty before the first round


@dataclass(frozen=True)
class Optimiser:
    """Gradient descent with momentum, which may be carried from round to round: it is made of noised gradients."""

    learning_rate: float
    momentum: float

    def build(self, network: nn.Module, velocity: Velocity) -> torch.optim.Optimizer:
        """Over the network's trainable parameters, with the momentum that they had."""
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        built = torch.optim.SGD(named.values(), lr=self.learning_rate, momentum=self.momentum)
        for name, p in named.items():
            if name in velocity:
                built.state[p]["momentum_buffer"] = velocity[name].clone()
        return built

    @staticmethod
    def velocity(network: nn.Module, built: torch.optim.Optimizer) -> Velocity:
        """The momentum as it is now."""
        found = {name: built.state[p].get("momentum_buffer") for name, p in network.named_parameters()}
        return {name: buffer for name, buffer in found.items() if buffer is not None}


def optimiser_of(student: Student, training: Training) -> Optimiser:
    """The student's own settings, else the client's training block, else what suits its kind."""
    rate = student.learning_rate or training.learning_rate or LEARNING_RATES.get(student.kind, LEARNING_RATE)
    momentum = training.momentum if student.momentum is None else student.momentum
    return Optimiser(rate, momentum)


class Steps(Protocol):
    """Takes one step on private examples and, beside them, on a public loss."""

    def step(self, x: Tensor, y: Tensor, loss: PerExampleLoss, public: Callable[[], Tensor] | None = None) -> None:
        """One optimiser step on x [n, ...] and y [n], which may be empty."""

    def close(self) -> None:
        """Leave the network as it was found, but for its weights."""


class PlainSteps:
    """Every mechanism but DP-SGD: the mean gradient of the sample, bare.

    It is no longer than the clip, as under DP-SGD, so that both learn well at the same rates.
    """

    def __init__(self, network: nn.Module, optimiser: torch.optim.Optimizer, clip: float) -> None:
        self._network, self._optimiser, self._clip = network, optimiser, clip
        self._params = [p for p in network.parameters() if p.requires_grad]

    def step(self, x: Tensor, y: Tensor, loss: PerExampleLoss, public: Callable[[], Tensor] | None = None) -> None:
        """One step; a sample without examples has only the public part."""
        self._optimiser.zero_grad()
        if len(x):
            self._add(loss(self._network(x), y).mean())
        if public is not None:
            self._add(public())
        self._optimiser.step()

    def close(self) -> None:
        """Nothing to undo."""

    def _add(self, value: Tensor) -> None:
        found = torch.autograd.grad(value, self._params, allow_unused=True)
        for p, gradient in zip(self._params, shortened(found, self._clip), strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad + gradient


def public_order(seed: int) -> torch.Generator:
    """The order in which proxy examples come; anybody can compute it."""
    return torch.Generator().manual_seed(derive(seed, "public batches") % 2**63)


class Public(Protocol):
    """A loss without private data, whose gradient is added beside theirs."""

    def batch(self, network: nn.Module, size: int) -> Tensor:
        """Its mean over a mini-batch of ``size`` (scalar, differentiable)."""


class Distillation:
    """What the proxy examples x [n, ...] should be answered with, and the terms by which a network learns it.

    ``seed`` orders the mini-batches and draws the perturbations, whose size is given in standard deviations of x; it is
    public, and has nothing to do with the noise. ``project`` takes the network's hidden activations to the targets'.
    """

    def __init__(
        self,
        x: Tensor,
        targets: Targets,
        objective: Objective,
        seed: int,
        perturbation: float = 0.0,
        project: nn.Module | None = None,
    ) -> None:
        self._x, self._targets, self.objective, self._project = x, targets, objective, project
        self._order = public_order(seed)
        self._random = torch.Generator().manual_seed(derive(seed, "perturbations"))
        self._size = perturbation * float(x.std()) if "perturbed" in objective.needs else 0.0

    @property
    def common(self) -> object:
        """What two of them must have in common to be learned in the same operations."""
        targets = self._targets
        return self.objective.weights, targets.temperature, self._x.shape, targets.earlier is None, self._project

    def draw(self, size: int) -> tuple[Tensor, Tensor | None, Targets]:
        """A random mini-batch: inputs, the same ones perturbed where a term asks for them, and targets."""
        some = torch.randperm(len(self._x), generator=self._order)[:size]
        x = self._x[some]
        perturbed = "perturbed" in self.objective.needs
        noisy = x + self._size * torch.randn(x.shape, generator=self._random) if perturbed else None
        return x, noisy, self._targets.take(some)

    def batch(self, network: nn.Module, size: int) -> Tensor:
        """Mean objective of a random mini-batch (scalar, differentiable)."""
        x, noisy, targets = self.draw(size)
        outputs = observe(network, x, self.objective.needs, None if noisy is None else lambda _: noisy)
        return self.objective(self._projected(outputs), targets).mean()

    def _projected(self, outputs: Outputs) -> Outputs:
        if self._project is None or outputs.hidden is None:
            return outputs
        return replace(outputs, hidden=self._project(outputs.hidden))


@dataclass(frozen=True, eq=False)
class Round:
    """What ``learn_round`` is given."""

    network: nn.Module
    data: Labelled
    contract: Contract
    optimiser: Optimiser
    noise: NoiseSource
    beside: Public | None
    velocity: Velocity


@dataclass(frozen=True, eq=False)
class Lesson:
    """Soft labels that a network learns by themselves, beside no private data; ``seed`` draws its dropout masks."""

    network: nn.Module
    beside: Distillation
    steps: int
    learning_rate: float
    weight_decay: float
    seed: int


class Trainer(Protocol):
    """What trains a client's network in place: by itself, or together with others."""

    def learn(self, round: Round) -> Velocity:
        """``learn_round``."""

    def distil(self, lesson: Lesson) -> None:
        """Soft labels alone. Raises FedkdError when the network's weights are not finite after it."""


class Alone(Trainer):
    """Every client by itself."""

    def learn(self, round: Round) -> Velocity:
        """Train at once."""
        return learn_round(
            round.network, round.data, round.contract, round.optimiser, round.noise, round.beside, round.velocity
        )

    def distil(self, lesson: Lesson) -> None:
        """Train at once."""
        fit(
            lesson.network,
            lambda network: lesson.beside.batch(network, LESSON_BATCH),
            steps=lesson.steps,
            learning_rate=lesson.learning_rate,
            weight_decay=lesson.weight_decay,
            seed=lesson.seed,
        )


ALONE = Alone()


def learn_round(
    network: nn.Module,
    data: Labelled,
    contract: Contract,
    optimiser: Optimiser,
    noise: NoiseSource,
    beside: Public | None,
    velocity: Velocity,
) -> Velocity:
    """Train ``network`` in place for one round of its contract: exactly ``contract.training``, no early stopping.
    Returns the optimiser's momentum, to be given back in the next round.

    The number of steps, the sampling rate and the divisor are the contract's; an empty Poisson sample is a step too.
    """
    training = contract.training
    public = None if beside is None else lambda: beside.batch(network, PUBLIC_BATCH)
    network.train()
    torch_optimiser = optimiser.build(network, velocity)
    steps = _steps(network, contract, torch_optimiser, noise)
    try:
        with forked_rng(noise.seed()):
            for _ in range(training.steps):
                sample = torch.from_numpy(noise.poisson(len(data.y), training.sample_rate))
                steps.step(data.x[sample], data.y[sample], cross_entropy, public)
    finally:
        steps.close()  # hooks that a failed round left behind would make every later one fail
        network.eval()
    return optimiser.velocity(network, torch_optimiser)


def _steps(network: nn.Module, contract: Contract, optimiser: torch.optim.Optimizer, noise: NoiseSource) -> Steps:
    training = contract.training
    if contract.mechanism != "dp_sgd":
        return PlainSteps(network, optimiser, training.clip)
    from fedkd.privacy.dp_sgd import PrivateSteps  # imported late: Opacus takes seconds, and the server needs none

    return PrivateSteps(
        network,
        optimiser,
        clip=training.clip,
        noise_multiplier=contract.events[0].noise_multiplier,
        nominal_batch=training.nominal_batch,
        noise=noise,
    )


def fit(
    network: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> None:
    """AdamW on public data alone, as ``descend``. Raises FedkdError when it diverges."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    network.train()
    with forked_rng(seed):
        descend(parameters, lambda: loss(network), steps=steps, learning_rate=learning_rate, weight_decay=weight_decay)
    network.eval()
    check_finite(network)


def descend(
    parameters: Sequence[Tensor],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """``steps`` steps of AdamW on a one-cycle schedule."""
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=max(steps, 4))
    for _ in range(steps):
        optimiser.zero_grad()
        torch.autograd.backward(loss())
        optimiser.step()
        schedule.step()


def check_finite(network: nn.Module) -> None:
    """Raises FedkdError for weights that are not."""
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise FedkdError("distillation diverged: the weights are not finite", fix="lower the learning rate")


@torch.no_grad()
def logits(network: nn.Module, x: Tensor, chunk: int = 1024) -> Tensor:
    """Predictions [n, k], computed in chunks."""
    network.eval()
    return torch.cat([network(part) for part in torch.split(x, chunk)])


def accuracy(network: nn.Module, data: Labelled) -> float:
    """Share of examples whose label is the first choice; 0 for no examples."""
    if not len(data.y):
        return 0.0
    return float((logits(network, data.x).argmax(dim=1) == data.y).double().mean())


@contextmanager
def forked_rng(seed: int) -> Iterator[None]:
    """Torch's global generator seeded inside (for dropout and the like), and left as it was outside."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's: torch.manual_seed looks for other devices, for 3 ms
        yield
