"""Many clients trained together: what ``learn_round`` and ``fit`` do for one, for all in the same operations.

The bytes of a client's student do not depend on who else takes part: every client has a place of its own in tensors
whose sizes are fixed beforehand, and places of clients that are absent stay empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from fedkd.distill.losses import Outputs, Targets, cross_entropy
from fedkd.distill.trainer import LESSON_BATCH, PUBLIC_BATCH, Distillation, Lesson, Round, Velocity, descend
from fedkd.privacy.cohort import CohortSteps, Shape, Stack, weighted_sums

PIECE = 2048  # examples of a client in one operation, at the most
CELLS = 2**22  # numbers in one tensor of inputs, as far as one client does not have more


_Work = TypeVar("_Work", Round, Lesson)


@dataclass(frozen=True)
class Member:
    """A client of a cohort: what its network is like, and how many examples it has."""

    shape: Shape
    examples: int


class Cohort:
    """The clients of one process whose networks are alike enough. Their places are a function of ``members`` alone:
    those of one mapping may share tensors, those of different ones never do."""

    def __init__(self, members: Iterable[Mapping[str, Member]]) -> None:
        some = list(members)
        self._members = {client: member for one in some for client, member in one.items()}
        self._groups = [group for one in some for group in _groups(one)]

    def takes(self, client: str, work: Round | Lesson) -> bool:
        """Whether it can train this: not another network, nor beside a loss of another kind."""
        member = self._members.get(client)
        if member is None or not isinstance(work.beside, Distillation | None):
            return False
        if Shape.of(getattr(work.network, "body", work.network)) != member.shape:
            return False
        return isinstance(work, Lesson) or (work.data.x.dim() == 2 and len(work.data.y) == member.examples)

    def train(self, rounds: Mapping[str, Round]) -> dict[str, Velocity]:
        """Train the clients' networks in place; each one's momentum, to be given back in its next round."""
        momentum: dict[str, Velocity] = {}
        for group, alike in self._alike(rounds, _common):
            momentum |= _Training(group, alike).run()
        return momentum

    def distil(self, lessons: Mapping[str, Lesson]) -> None:
        """Train the clients' networks in place on soft labels alone."""
        for group, alike in self._alike(lessons, lambda one: (one.beside.common, *_settings(one))):
            _distil([alike.get(client) for client in group.clients], group.shape)

    def _alike(
        self, works: Mapping[str, _Work], common: Callable[[_Work], object]
    ) -> Iterator[tuple[_Group, dict[str, _Work]]]:
        """Those of one group that have in common what must be."""
        for group in self._groups:
            left = {client: works[client] for client in group.clients if client in works}
            while left:
                first = common(next(iter(left.values())))
                alike = {client: work for client, work in left.items() if common(work) == first}
                yield group, alike
                left = {client: work for client, work in left.items() if client not in alike}


@dataclass(frozen=True)
class _Group:
    """Clients in one set of tensors, and the number of examples of the largest."""

    shape: Shape
    clients: tuple[str, ...]
    examples: int

    def rows(self, sample_rate: float) -> int:
        """Examples a client in one operation: enough for nearly every Poisson sample of the largest."""
        expected = self.examples * sample_rate
        return max(1, min(self.examples, math.ceil(expected + 4 * math.sqrt(expected)), PIECE))


def _groups(members: Mapping[str, Member]) -> Iterator[_Group]:
    """Clients of like size together, so that little is filled up; as many as CELLS allows."""
    for shape in sorted({member.shape for member in members.values()}, key=repr):
        of_shape = sorted((member.examples, name) for name, member in members.items() if member.shape == shape)
        while of_shape:
            largest = of_shape[-1][0]
            places = max(1, CELLS // (max(min(largest, PIECE), PUBLIC_BATCH) * max(shape.widths)))
            yield _Group(shape, tuple(sorted(name for _, name in of_shape[-places:])), largest)
            del of_shape[-places:]


class _Training:
    """One round of those clients of a group that take part and have everything in common but data and randomness."""

    def __init__(self, group: _Group, rounds: Mapping[str, Round]) -> None:
        self._places: list[Round | None] = [rounds.get(client) for client in group.clients]
        self._rounds, self._clients = rounds, group.clients
        one = next(iter(rounds.values()))
        self._contract, self._optimiser = one.contract, one.optimiser
        self._distils = one.beside is not None
        self._stack = Stack.of(group.shape, [None if r is None else r.network for r in self._places])
        self._velocity = [torch.zeros_like(p) for p in self._stack.parameters]
        self._moved = torch.zeros(len(self._places), dtype=torch.bool)
        for place, round in enumerate(self._places):
            if round is not None:
                for total, name in zip(self._velocity, _names(round), strict=True):
                    total[place] = round.velocity.get(name, 0)
        self._samples = _Samples(self._places, group, self._contract.training.sample_rate)
        self._take: Callable[[], list[Tensor]] = self._plain
        if self._contract.mechanism == "dp_sgd":
            self._private = CohortSteps(
                clip=self._contract.training.clip,
                noise_multiplier=self._contract.events[0].noise_multiplier,
                nominal_batch=self._contract.training.nominal_batch,
            )
            self._take = self._noised

    def run(self) -> dict[str, Velocity]:
        """Exactly the contract's steps."""
        for _ in range(self._contract.training.steps):
            self._samples.draw()
            gradients = self._take()
            if self._distils:
                for total, more in zip(gradients, self._public(), strict=True):
                    total += more
            self._move(gradients)
        return {client: self._give_back(place) for place, client in enumerate(self._clients) if client in self._rounds}

    # -- gradients, [clients, ...] by parameter ----------------------------------------------------------------------

    def _noised(self) -> list[Tensor]:
        sources = [None if round is None else round.noise for round in self._places]
        return self._private.gradients(self._stack, self._samples.pieces(), cross_entropy, sources)

    def _plain(self) -> list[Tensor]:
        """As ``PlainSteps``: each sample's mean gradient, no longer than the clip."""
        sums = [torch.zeros_like(p) for p in self._stack.parameters]
        for x, y, there in self._samples.pieces():
            seen = self._stack.forward(x)
            shares = there / self._samples.sizes.clamp(min=1)[:, None]
            more = weighted_sums(seen, self._stack.deltas(seen, y, cross_entropy), shares)
            for total, one in zip(sums, more, strict=True):
                total += one
        return _shortened(sums, self._contract.training.clip)

    def _public(self) -> list[Tensor]:
        """Gradients of the soft labels' terms. Computed apart from private examples: neither clipped one by one with
        them, nor noised."""
        parameters = [p.detach().requires_grad_() for p in self._stack.parameters]
        beside = [None if round is None else cast(Distillation, round.beside) for round in self._places]
        loss = _soft_loss(Stack(self._stack.shape, parameters), beside, PUBLIC_BATCH)
        return _shortened(list(torch.autograd.grad(loss, parameters)), self._contract.training.clip)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _move(self, gradients: Sequence[Tensor]) -> None:
        """SGD with momentum. Without privacy a client that has nothing to learn from at all stays where it is."""
        moves = torch.ones(len(self._places), dtype=torch.bool)
        if self._contract.mechanism != "dp_sgd" and not self._distils:
            moves = self._samples.sizes > 0
        self._moved |= moves
        for p, velocity, gradient in zip(self._stack.parameters, self._velocity, gradients, strict=True):
            mask = moves.view(-1, *[1] * (p.dim() - 1))
            velocity.copy_(torch.where(mask, self._optimiser.momentum * velocity + gradient, velocity))
            p.sub_(torch.where(mask, self._optimiser.learning_rate * velocity, 0.0))

    def _give_back(self, place: int) -> Velocity:
        round = cast(Round, self._places[place])
        _write_back(self._stack, place, round.network)
        if not self._optimiser.momentum or not (self._moved[place] or round.velocity):
            return {}
        return {name: total[place].clone() for name, total in zip(_names(round), self._velocity, strict=True)}


def _distil(places: Sequence[Lesson | None], shape: Shape) -> None:
    """``fit`` for lessons that have everything in common but their networks, labels and order."""
    one = next(lesson for lesson in places if lesson is not None)
    stack = Stack.of(shape, [None if lesson is None else lesson.network for lesson in places])
    for p in stack.parameters:
        p.requires_grad_()
    beside = [None if lesson is None else lesson.beside for lesson in places]
    descend(
        stack.parameters,
        lambda: _soft_loss(stack, beside, LESSON_BATCH),
        steps=one.steps,
        learning_rate=one.learning_rate,
        weight_decay=one.weight_decay,
    )
    for place, lesson in enumerate(places):
        if lesson is not None:
            _write_back(stack, place, lesson.network)


def _soft_loss(stack: Stack, beside: Sequence[Distillation | None], size: int) -> Tensor:
    """The sum of the clients' mean objectives, each of a mini-batch of its own (scalar, differentiable)."""
    drawn = [None if one is None else one.draw(size) for one in beside]
    x, perturbed, targets = next(one for one in drawn if one is not None)

    def together(choose: Callable[[tuple[Tensor, Tensor | None, Targets]], Tensor | None], like: Tensor) -> Tensor:
        empty = torch.zeros_like(like)
        return torch.stack([empty if one is None else cast(Tensor, choose(one)) for one in drawn])

    def logits(inputs: Tensor) -> Tensor:
        return stack.forward(inputs)[-1].flatten(0, 1)

    outputs = Outputs(
        logits(together(lambda one: one[0], x)),
        None if perturbed is None else logits(together(lambda one: one[1], x)),
    )
    rows = together(lambda one: one[2].rows, targets.rows).flatten(0, 1)
    earlier = targets.earlier
    if earlier is not None:
        earlier = together(lambda one: one[2].earlier, earlier).flatten(0, 1)
    objective = next(one for one in beside if one is not None).objective
    return objective(outputs, Targets(rows, targets.temperature, earlier)).sum() / len(x)


def _write_back(stack: Stack, place: int, network: nn.Module) -> None:
    with torch.no_grad():
        for own, together in zip(network.parameters(), stack.parameters, strict=True):
            own.copy_(together[place])
    network.eval()


class _Samples:
    """The clients' Poisson samples of one step, filled up to tensors of a fixed size: x [clients, rows, in]."""

    def __init__(self, places: Sequence[Round | None], group: _Group, sample_rate: float) -> None:
        self._places, self._rate, self._rows = places, sample_rate, group.rows(sample_rate)
        self._x = torch.zeros(len(places), self._rows, group.shape.widths[0])
        self._y = torch.zeros(len(places), self._rows, dtype=torch.long)
        self._taken: list[Tensor] = []
        self._filled = -1
        self.sizes = torch.zeros(len(places))

    def draw(self) -> None:
        """Each client's next sample, from its own key."""
        self._taken = [
            torch.zeros(0, dtype=torch.long)
            if round is None
            else torch.from_numpy(round.noise.poisson(len(round.data.y), self._rate))
            for round in self._places
        ]
        self.sizes = torch.tensor([float(len(taken)) for taken in self._taken])

    def pieces(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """x, y, and which rows are there [clients, rows]; of samples that are too large several, which are to be
        summed. Samples without an example are one piece in which none is there."""
        numbers = torch.arange(self._rows)
        for piece in range(max(1, -(-int(self.sizes.max()) // self._rows))):
            start = piece * self._rows
            self._fill(piece)
            yield self._x, self._y, start + numbers < self.sizes[:, None]

    def _fill(self, piece: int) -> None:
        if self._rate >= 1 and self._filled == piece:
            return  # every example is in every sample
        self._filled, start = piece, piece * self._rows
        for place, (round, taken) in enumerate(zip(self._places, self._taken, strict=True)):
            some = taken[start : start + self._rows]
            if round is not None and len(some):
                self._x[place, : len(some)] = round.data.x[some]
                self._y[place, : len(some)] = round.data.y[some]


def _common(round: Round) -> object:
    """What rounds must have in common to be trained in the same operations."""
    contract, noise = round.contract, [event.noise_multiplier for event in round.contract.events]
    beside = round.beside.common if isinstance(round.beside, Distillation) else None
    return contract.mechanism == "dp_sgd", noise, contract.training, round.optimiser, beside


def _settings(lesson: Lesson) -> tuple[int, float, float]:
    return lesson.steps, lesson.learning_rate, lesson.weight_decay


def _names(round: Round) -> list[str]:
    return [name for name, _ in round.network.named_parameters()]


def _shortened(gradients: list[Tensor], norm: float) -> list[Tensor]:
    """``gradients.shortened`` of every client's gradient."""
    lengths = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    factors = (norm / (lengths + 1e-12)).clamp(max=1.0)
    return [g * factors.view(-1, *[1] * (g.dim() - 1)) for g in gradients]
