"""DP-SGD keeps its promise: what one private example can change is bounded by the clip, and hidden by keyed noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn

from fedkd.config import ClientConfig, Policy, Student
from fedkd.distill import cohort, students, trainer
from fedkd.distill.cohort import Cohort, Member
from fedkd.distill.losses import Objective, Targets, cross_entropy
from fedkd.distill.trainer import Distillation, Labelled, Optimiser, Round, learn_round
from fedkd.errors import FedkdError, PrivacyError
from fedkd.privacy import dp_sgd
from fedkd.privacy.cohort import CohortSteps, Shape
from fedkd.privacy.contract import Contract, Training, draw_up
from fedkd.privacy.dp_sgd import PrivateSteps, clipper_for
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.limits import Past
from fedkd.privacy.mechanisms import DpSgd
from fedkd.privacy.noise import NoiseSource, fresh_key, simulation_key
from tests import builders

CLIP, NOISE, NOMINAL = 0.7, 1.3, 7.0
FEATURES, CLASSES = 5, 3
KEY = bytes(range(32))
CLIPPERS = ("hooks", "ghost", "single_pass")
EVERY_WAY = (*CLIPPERS, "cohort")  # the last: among other clients, trained together
NETWORKS: dict[str, tuple[Student, tuple[int, ...]]] = {
    "linear": (Student(kind="linear"), (FEATURES,)),
    "mlp": (Student(kind="mlp", hidden=(6,)), (FEATURES,)),
    "cnn": (Student(kind="cnn"), (1, 8, 8)),
    "cnn_of_sequences": (Student(kind="cnn", channels=(4, 6)), (2, 9)),
    "gru": (Student(kind="rnn", hidden=(4, 3)), (2, 4)),
    "lstm_of_rows": (Student(kind="rnn", cell="lstm", hidden=(4,)), (1, 4, 3)),
    "transformer": (Student(kind="transformer", width=4, heads=2, layers=1, patch=2), (1, 4, 3)),
    "transformer_of_sequences": (Student(kind="transformer", width=4, heads=1, layers=1, patch=2), (2, 5)),
}
"""Configuration, and shape of one example."""
KINDS = tuple(NETWORKS)
# A recurrent layer uses its weights at every step, which hooks alone can measure.
CLIPPED = [
    (kind, clipper)
    for kind in KINDS
    for clipper in CLIPPERS
    if clipper == "hooks" or not kind.startswith(("gru", "lstm"))
] + [("linear", "cohort"), ("mlp", "cohort")]


GENTLE = Optimiser(learning_rate=0.1, momentum=0.0)
FIRST = Optimiser(learning_rate=1.0, momentum=0.5)  # the momentum after a first step is its gradient
WAYS = ("alone", "cohort")
SETTINGS: dict[str, Any] = {"clip": CLIP, "noise_multiplier": NOISE, "nominal_batch": NOMINAL}


class Silence(NoiseSource):
    """No noise, so that the clipped sum can be seen; notes what noise was asked for."""

    def __init__(self) -> None:
        super().__init__(KEY)
        self.asked: list[tuple[tuple[int, ...], float]] = []
        self.sampled: list[tuple[int, float]] = []

    def normal(self, shape: tuple[int, ...], std: float) -> Any:
        self.asked.append((shape, std))
        return np.zeros(shape)

    def poisson(self, n: int, rate: float) -> Any:
        self.sampled.append((n, rate))
        return super().poisson(n, rate)


class Watched(torch.optim.SGD):
    """Remembers the gradients of every step that it takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__([p for p in network.parameters() if p.requires_grad], lr=1.0)
        self.seen: list[list[Tensor]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.seen.append([p.grad.clone() for p in self.param_groups[0]["params"]])
        super().step()


class Heard(nn.Module):
    """A linear network that tells what it is given."""

    def __init__(self, hear: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.hear = nn.Linear(FEATURES, CLASSES), hear

    def forward(self, x: Tensor) -> Tensor:
        self.hear(x)
        return self.inner(x)  # type: ignore[no-any-return]


def network_of(kind: str) -> nn.Module:
    config, shape = NETWORKS[kind]
    return students.build(config, FEATURES, shape, CLASSES, 1, Path())


def examples_for(kind: str, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, *NETWORKS[kind][1], generator=random), torch.randint(CLASSES, (n,), generator=random)


class PublicLoss:
    """Cross entropy with public labels: as a function for one client's steps, as terms for a cohort."""

    def __init__(self, network: nn.Module, kind: str, weight: float) -> None:
        self._network, self._weight = network, weight
        self._x, self._y = examples_for(kind, 9, seed=9)

    def __call__(self) -> Tensor:
        return self._weight * cross_entropy(self._network(self._x), self._y).mean()

    def terms(self) -> Distillation:
        rows = torch.nn.functional.one_hot(self._y, CLASSES).float()
        return Distillation(self._x, Targets(rows, 1.0), Objective({"hard_ce": self._weight}), seed=0)


def public_loss(network: nn.Module, kind: str, weight: float = 50) -> PublicLoss:
    return PublicLoss(network, kind, weight)


def gradients(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    clipper: str,
    noise: NoiseSource,
    public: Callable[[], Tensor] | None = None,
) -> list[Tensor]:
    """What one step hands to the optimiser."""
    if clipper == "cohort":
        assert public is None or isinstance(public, PublicLoss)
        return gradients_in_a_cohort(network, x, y, noise, None if public is None else public.terms())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = Watched(network)
    steps = PrivateSteps(
        network,
        optimiser,
        clip=CLIP,
        noise_multiplier=NOISE,
        nominal_batch=NOMINAL,
        noise=noise,
        clipper=clipper,
    )
    steps.step(x, y, cross_entropy, public)
    steps.close()
    network.load_state_dict(before)
    (seen,) = optimiser.seen
    return seen


def gradients_in_a_cohort(
    network: nn.Module, x: Tensor, y: Tensor, noise: NoiseSource, public: Distillation | None
) -> list[Tensor]:
    """The same of a client between two others, who have data and noise of their own."""
    step = contract(steps=1)
    places = {"before": Labelled(x[:0], y[:0]), "mine": Labelled(x, y), "after": labelled_like(x, 4)}
    sources = {"before": NoiseSource(bytes(32)), "mine": noise, "after": Silence()}
    networks = {name: copy.deepcopy(network) for name in places}
    shape = Shape.of(getattr(network, "body", network))
    assert shape is not None
    together = Cohort([{name: Member(shape, len(data.y)) for name, data in places.items()}])
    rounds = {
        name: Round(networks[name], places[name], step, FIRST, sources[name], copy.deepcopy(public), {})
        for name in places
    }
    return list(together.train(rounds)["mine"].values())


def labelled_like(x: Tensor, n: int) -> Labelled:
    random = torch.Generator().manual_seed(7)
    return Labelled(torch.randn(n, *x.shape[1:], generator=random), torch.randint(CLASSES, (n,), generator=random))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).double()


def clipped_sum(
    network: nn.Module, x: Tensor, y: Tensor, clipper: str, public: Callable[[], Tensor] | None = None
) -> Tensor:
    """The un-noised update times the divisor: that whose sensitivity the noise is sized for."""
    return NOMINAL * flat(gradients(network, x, y, clipper, Silence(), public))


def additions(kind: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Single examples that an adversary would add."""
    x, y = examples_for(kind, 3)
    yield x[:1], y[:1]  # a duplicate
    yield torch.zeros_like(x[:1]), y[:1]
    for scale in (10.0, 1e4, 1e15, 1e30):
        yield x[1:2] * scale, (y[1:2] + 1) % CLASSES
    for poison in (math.nan, math.inf, -math.inf):
        yield torch.full_like(x[:1], poison), y[:1]


# -- sensitivity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_public", [False, True], ids=["private_alone", "beside_public"])
@pytest.mark.parametrize(("kind", "clipper"), CLIPPED)
def test_one_example_changes_the_sum_by_at_most_the_clip(
    kind: str, clipper: str, with_public: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(kind)
    public = public_loss(network, kind) if with_public else None
    x, y = examples_for(kind, 6)
    for microbatch in (3, 2048):  # 5, 6 and 7 examples lie on both sides of a boundary of 3
        monkeypatch.setattr(dp_sgd, "MICROBATCH", microbatch)
        monkeypatch.setattr(cohort, "PIECE", microbatch)
        base = clipped_sum(network, x, y, clipper, public)
        neighbours = [(torch.cat([x, more_x]), torch.cat([y, more_y])) for more_x, more_y in additions(kind)]
        neighbours += [(torch.cat([more_x, x]), torch.cat([more_y, y])) for more_x, more_y in additions(kind)]
        neighbours += [(torch.cat([x[:i], x[i + 1 :]]), torch.cat([y[:i], y[i + 1 :]])) for i in range(len(x))]
        for other_x, other_y in neighbours:
            change = (clipped_sum(network, other_x, other_y, clipper, public) - base).norm()
            assert change <= CLIP * (1 + 1e-3)


@pytest.mark.parametrize(("kind", "clipper"), CLIPPED)
def test_both_clippers_sum_each_example_scaled_down_to_the_clip(
    kind: str, clipper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp_sgd, "MICROBATCH", 2)
    monkeypatch.setattr(cohort, "PIECE", 2)
    network = network_of(kind)
    list(network.parameters())[-1].data[0] += 6  # sure of class 0, whose examples then have small gradients
    x, y = examples_for(kind, 5)[0], torch.tensor([0, 1, 0, 2, 0])
    ones = [
        flat(list(torch.autograd.grad(cross_entropy(network(x[i : i + 1]), y[i : i + 1]).sum(), network.parameters())))
        for i in range(len(x))
    ]
    norms = torch.stack([one.norm() for one in ones])
    assert (norms < CLIP).any() and (norms > CLIP).any()
    expected = sum(one * min(1.0, CLIP / float(one.norm())) for one in ones)
    torch.testing.assert_close(clipped_sum(network, x, y, clipper), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clipper", CLIPPERS)
def test_a_sequence_whose_terms_cancel_is_clipped_too(clipper: str) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 4), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.inner(x).mean(1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    network, signs = Pooled(), torch.tensor([1.0, -1.0]).repeat(32).view(1, 64, 1)
    for size in (1e4, 1e5, 1e6):
        x = signs * torch.randn(1, 1, 8) * size + torch.randn(1, 64, 8) * 30
        assert clipped_sum(network, x, torch.tensor([1]), clipper).norm() <= CLIP * (1 + 1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "clipper"), CLIPPED)
def test_an_example_without_a_finite_gradient_contributes_nothing(kind: str, clipper: str, value: float) -> None:
    network = network_of(kind)
    x, y = examples_for(kind, 4)
    x[2].flatten()[1] = value
    others = [0, 1, 3]
    torch.testing.assert_close(
        clipped_sum(network, x, y, clipper), clipped_sum(network, x[others], y[others], clipper), rtol=1e-5, atol=1e-6
    )


def test_the_dropout_masks_of_private_examples_are_as_secret_as_the_noise() -> None:
    seeds: list[int] = []
    for key in (KEY, KEY, bytes(32)):
        torch.manual_seed(3)
        network = Heard(lambda x: seeds.append(torch.initial_seed()))
        learn_round(network, labelled(4), contract(steps=1), GENTLE, NoiseSource(key), None, {})
    first, again, other = seeds
    assert first == again != other


# -- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clipper", EVERY_WAY)
@pytest.mark.parametrize("n", [0, 5])
def test_every_coordinate_gets_noise_of_exactly_noise_multiplier_times_clip_once(clipper: str, n: int) -> None:
    network, noise = network_of("mlp"), Silence()
    gradients(network, *examples_for("mlp", n), clipper, noise, public_loss(network, "mlp"))
    assert noise.asked == [(tuple(p.shape), NOISE * CLIP) for p in network.parameters()]


@pytest.mark.parametrize("clipper", EVERY_WAY)
def test_the_noise_in_the_update_is_gaussian_of_that_size(clipper: str) -> None:
    network = nn.Sequential(nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 60))
    x, y = torch.randn(4, 60, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    clean = gradients(network, x, y, clipper, Silence())
    noisy = gradients(network, x, y, clipper, NoiseSource(KEY))
    for with_noise, without in zip(noisy, clean, strict=True):
        noise = NOMINAL * (with_noise - without).flatten().double().numpy() / (NOISE * CLIP)
        assert stats.kstest(noise, "norm").pvalue > 1e-3
        assert abs(noise.std() - 1) < 5 / math.sqrt(2 * noise.size)


@pytest.mark.parametrize("way", WAYS)
def test_noise_comes_from_the_key_and_not_from_torch(way: str) -> None:
    def update(key: bytes, seed: int) -> bytes:
        network = network_of("linear")
        torch.manual_seed(seed)
        learn(way, network, labelled(6), contract(sample_rate=0.5), NoiseSource(key))
        return flat(list(network.parameters())).detach().numpy().tobytes()

    assert update(KEY, 1) == update(KEY, 2)
    assert update(KEY, 1) != update(bytes(32), 1)


def test_clients_rounds_and_runs_never_share_noise() -> None:
    keys = {
        simulation_key(seed, client, run, round)
        for seed in (0, 1)
        for client in ("alice", "bob")
        for run in ("run-1", "run-2")
        for round in (1, 2)
    }
    assert len(keys) == 16
    assert fresh_key() != fresh_key()
    assert len({NoiseSource(key).normal((4,), 1.0).tobytes() for key in keys}) == 16


def test_noise_of_two_steps_is_not_the_same() -> None:
    noise = NoiseSource(KEY)
    assert not np.array_equal(noise.normal((8,), 1.0), noise.normal((8,), 1.0))


def test_no_stream_of_a_key_shifts_another() -> None:
    busy, idle = NoiseSource(KEY), NoiseSource(KEY)
    busy.poisson(1000, 0.5)
    busy.seed()
    assert np.array_equal(busy.normal((8,), 1.0), idle.normal((8,), 1.0))
    busy.normal((999,), 1.0)
    assert not np.array_equal(NoiseSource(KEY).poisson(1000, 0.5), busy.poisson(1000, 0.5))
    assert len({tuple(NoiseSource(KEY)._noise.uniform(3)), tuple(NoiseSource(KEY)._sampling.uniform(3))}) == 2


def test_the_noise_seed_is_not_the_users_to_choose() -> None:
    usual: dict[str, Any] = {"epsilon": 1.0, "nominal_examples": 10, "proxies": "0" * 64}
    with pytest.raises(ValidationError, match="noise seed"):
        Policy(**usual, seed=1)
    with pytest.raises(ValidationError, match="needs a 'seed'"):
        Policy(**usual, noise="simulation")
    assert Policy(**usual, noise="simulation", seed=1).seed == 1
    assert not {name for name in ClientConfig.model_fields if "noise" in name}


# -- which clipper ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_the_fastest_clipper_that_can_measure_it(kind: str) -> None:
    name = kind.split("_")[0]
    chosen = {"cnn": "single_pass", "gru": "hooks", "lstm": "hooks"}.get(name, "ghost")
    assert clipper_for(network_of(kind)) == chosen
    assert (kind, chosen) in CLIPPED


def test_what_works_in_place_is_not_measured_by_outputs() -> None:
    """It changes the outputs of the layer before it, at which a single pass would look; hooks of torch refuse it."""
    for in_place, chosen in ((False, "single_pass"), (True, "ghost")):
        network = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(inplace=in_place), nn.Flatten(), nn.Linear(6, CLASSES))
        assert clipper_for(network) == chosen


def test_a_layer_that_neither_can_measure_is_clipped_with_hooks() -> None:
    normed = nn.Sequential(nn.Conv1d(1, 2, 3), nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(6, CLASSES))
    assert clipper_for(normed) == "hooks"


def test_large_networks_are_not_measured_in_a_single_pass() -> None:
    """Its per-example gradients are all held at once."""
    for width, chosen in ((8, "single_pass"), (2048, "ghost")):
        layers = nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(16, width), nn.Tanh(), nn.Linear(width, CLASSES)
        assert clipper_for(nn.Sequential(*layers)) == chosen


def test_a_network_whose_forward_was_replaced_is_a_users_own() -> None:
    """It may use a layer twice; a single pass would sum both uses too."""
    network = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(5, CLASSES))
    twice = lambda x: network[2](network[1](network[0](torch.tanh(network[0](x)))))  # noqa: E731
    network.forward = twice  # type: ignore[method-assign]
    assert clipper_for(network) == "hooks"
    x, y = torch.randn(4, 1, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    expected = clipped_sum(network, x, y, "hooks")
    torch.testing.assert_close(clipped_sum(network, x, y, "single_pass"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clipper", CLIPPERS)
def test_no_hook_is_left_on_the_network(clipper: str) -> None:
    network = network_of("cnn")
    gradients(network, *examples_for("cnn", 3), clipper, Silence(), public_loss(network, "cnn"))
    assert not any([*m._forward_hooks, *m._backward_hooks, *m._forward_pre_hooks] for m in network.modules())


def test_layers_that_share_weights_are_clipped_with_hooks() -> None:
    """Ghost clipping would measure them apart; Opacus refuses them at the first step."""
    layer, tied = nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = layer.weight
    for network in (nn.Sequential(layer, nn.Tanh(), layer), nn.Sequential(layer, nn.Tanh(), tied)):
        assert clipper_for(network) == "hooks"
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 1e3
        for i in range(3):
            steps = PrivateSteps(network, Watched(network), noise=Silence(), **SETTINGS)
            steps.step(x[i : i + 1], torch.tensor([1]), cross_entropy)
            steps.close()
            (seen,) = steps.optimiser.original_optimizer.seen
            assert 0 < NOMINAL * flat(seen).norm() <= CLIP * (1 + 1e-3)


# -- public settings --------------------------------------------------------------------------------------------------


def contract(**changes: Any) -> Contract:
    settings = {"steps": 3, "sample_rate": 1.0, "noise_multiplier": NOISE, **changes}
    event = PrivacyEvent("dp_sgd", **settings)
    return builders.contract(event, training=Training(event.steps, event.sample_rate, CLIP, NOMINAL), rounds=2)


def learn(way: str, network: nn.Module, data: Labelled, contract: Contract, noise: NoiseSource) -> None:
    """A round, alone or as one of a cohort."""
    if way == "alone":
        learn_round(network, data, contract, GENTLE, noise, None, {})
        return
    shape = Shape.of(network.body)  # type: ignore[arg-type]
    assert shape is not None
    other = Round(copy.deepcopy(network), labelled(5), contract, GENTLE, NoiseSource(bytes(32)), None, {})
    mine = Round(network, data, contract, GENTLE, noise, None, {})
    Cohort([{"a": Member(shape, 5), "b": Member(shape, len(data.y))}]).train({"a": other, "b": mine})


def labelled(n: int) -> Labelled:
    return Labelled(*examples_for("linear", n))


@pytest.mark.parametrize("clipper", EVERY_WAY)
def test_the_divisor_is_the_nominal_batch_whatever_the_number_of_examples(clipper: str) -> None:
    network = network_of("linear")
    x, y = examples_for("linear", 1)
    one = flat(gradients(network, x, y, clipper, Silence()))
    for n in (2, 10, 50):
        many = flat(gradients(network, x.repeat(n, 1), y.repeat(n), clipper, Silence()))
        torch.testing.assert_close(many, n * one, rtol=1e-5, atol=1e-7)
    assert one.norm() <= CLIP / NOMINAL * (1 + 1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_the_divisor_of_a_round_is_the_contracts(way: str) -> None:
    x, y = examples_for("linear", 1)
    moves = {}
    for n in (1, 10):
        network = network_of("linear")
        learn(way, network, Labelled(x.repeat(n, 1), y.repeat(n)), contract(steps=1), Silence())
        moves[n] = flat(list(network.parameters())).detach()
    torch.testing.assert_close(moves[10], 10 * moves[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [0, 1, 3, 40])
def test_steps_and_sampling_rate_are_the_contracts_whatever_the_number_of_examples(n: int, way: str) -> None:
    noise, network = Silence(), network_of("linear")
    learn(way, network, labelled(n), contract(steps=5, sample_rate=0.25), noise)
    assert noise.sampled == [(n, 0.25)] * 5
    assert len(noise.asked) == 5 * len(list(network.parameters()))


def test_a_contract_knows_nothing_of_the_data() -> None:
    policy = Policy(epsilon=3.0, nominal_examples=40, sample_rate=0.5, steps=2, clip=CLIP, proxies="0" * 64)
    drawn = draw_up(policy, builders.offer(rounds=2), Past())
    assert drawn.training == Training(2, 0.5, CLIP, 20.0)
    assert (drawn.limits.epsilon, drawn.limits.delta) == (policy.epsilon, policy.delta)


@pytest.mark.parametrize(("kind", "clipper"), CLIPPED)
def test_an_empty_sample_is_a_step_of_pure_noise(kind: str, clipper: str) -> None:
    network = network_of(kind)
    seen = gradients(network, *examples_for(kind, 0), clipper, NoiseSource(KEY))
    source = NoiseSource(KEY)
    for gradient, p in zip(seen, network.parameters(), strict=True):
        noise = torch.from_numpy(source.normal(tuple(p.shape), NOISE * CLIP))
        torch.testing.assert_close(gradient, (noise / NOMINAL).float())


def test_poisson_samples_have_the_rate_and_no_fixed_size() -> None:
    noise, n, rate = NoiseSource(KEY), 400, 0.3
    samples = [noise.poisson(n, rate) for _ in range(400)]
    sizes = np.array([len(sample) for sample in samples])
    assert abs(sizes.mean() - n * rate) < 5 * math.sqrt(n * rate * (1 - rate) / len(sizes))
    assert 0.7 < sizes.var() / (n * rate * (1 - rate)) < 1.35
    often = np.bincount(np.concatenate(samples), minlength=n) / len(samples)
    assert np.abs(often - rate).max() < 5.5 * math.sqrt(rate * (1 - rate) / len(samples))


def test_poisson_samples_do_not_depend_on_torch_or_on_the_noise_drawn() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = NoiseSource(KEY)
    first.normal((100,), 1.0)
    torch.manual_seed(2)
    np.random.seed(2)
    assert np.array_equal(first.poisson(100, 0.5), NoiseSource(KEY).poisson(100, 0.5))


def test_a_rate_of_one_takes_every_example() -> None:
    assert np.array_equal(NoiseSource(KEY).poisson(7, 1.0), np.arange(7))


# -- the public gradient ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "clipper"), CLIPPED)
def test_the_public_gradient_is_autograds_and_is_not_noised(kind: str, clipper: str) -> None:
    network = network_of(kind)
    public = public_loss(network, kind, weight=1e-3)
    expected = torch.autograd.grad(public(), list(network.parameters()))
    assert flat(list(expected)).norm() < CLIP
    seen = gradients(network, *examples_for(kind, 0), clipper, Silence(), public)
    if clipper == "cohort":  # in another order
        torch.testing.assert_close(seen, list(expected), rtol=1e-5, atol=1e-8)
    else:
        assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))
    x, y = examples_for(kind, 5)
    beside = flat(gradients(network, x, y, clipper, NoiseSource(KEY), public))
    alone = flat(gradients(network, x, y, clipper, NoiseSource(KEY)))
    torch.testing.assert_close(beside - alone, flat(list(expected)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clipper", EVERY_WAY)
def test_a_long_public_gradient_is_as_long_as_the_clip_and_points_the_same_way(clipper: str) -> None:
    network = network_of("mlp")
    public = public_loss(network, "mlp")
    expected = flat(list(torch.autograd.grad(public(), list(network.parameters()))))
    assert expected.norm() > 10 * CLIP
    seen = flat(gradients(network, *examples_for("mlp", 0), clipper, Silence(), public))
    torch.testing.assert_close(seen, expected * (CLIP / expected.norm()))


@pytest.mark.parametrize("clipper", CLIPPERS)
def test_a_public_loss_may_use_the_network_twice(clipper: str) -> None:
    """As a loss of perturbed inputs does; hooks that were still on would take it for shared weights."""
    network = network_of("mlp")
    one = public_loss(network, "mlp", weight=1e-3)
    both = flat(gradients(network, *examples_for("mlp", 4), clipper, Silence(), lambda: one() + one() / 2))
    once = flat(gradients(network, *examples_for("mlp", 4), clipper, Silence(), one))
    expected = flat(list(torch.autograd.grad(one() / 2, list(network.parameters()))))
    torch.testing.assert_close(both - once, expected, rtol=1e-4, atol=1e-4)


def test_the_order_of_public_batches_has_nothing_to_do_with_the_noise() -> None:
    def order(key: bytes) -> list[float]:
        seen: list[float] = []
        x, _ = examples_for("linear", 6)
        target = Targets(torch.full((6, CLASSES), 1 / CLASSES), 1.0)
        network = Heard(lambda x: seen.extend(x[:, 0].tolist()))
        distillation = Distillation(x, target, Objective({"kl": 1.0}), seed=5)
        learn_round(network, labelled(0), contract(steps=2), GENTLE, NoiseSource(key), distillation, {})
        return seen

    assert order(KEY) == order(bytes(32))


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["noise_multiplier", "clip", "nominal_batch"])
def test_a_setting_that_protects_nothing_is_refused(name: str, value: float) -> None:
    network = network_of("linear")
    with pytest.raises(PrivacyError, match=name):
        PrivateSteps(network, Watched(network), noise=NoiseSource(KEY), **{**SETTINGS, name: value})
    with pytest.raises(PrivacyError, match=name):
        CohortSteps(**{**SETTINGS, name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_an_event_with_impossible_noise_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        PrivacyEvent("dp_sgd", value, 1.0, 1)


def test_dp_sgd_without_noise_cannot_release() -> None:
    with pytest.raises(PrivacyError, match="without noise"):
        DpSgd(builders.contract(PrivacyEvent("dp_sgd", 0.0, 1.0, 1)))


@pytest.mark.parametrize("clipper", CLIPPERS)
def test_the_clip_cannot_move(clipper: str) -> None:
    network = network_of("linear")
    steps = PrivateSteps(network, Watched(network), noise=NoiseSource(KEY), clipper=clipper, **SETTINGS)
    steps.optimiser.max_grad_norm = CLIP
    for moved in (2 * CLIP, CLIP / 2):
        with pytest.raises(PrivacyError, match="constant"):
            steps.optimiser.max_grad_norm = moved
    steps.close()


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


MIXING: dict[str, Callable[[int], nn.Module]] = {
    "plain": nn.BatchNorm1d,
    "affine_false": lambda n: nn.BatchNorm1d(n, affine=False),
    "eval": lambda n: nn.BatchNorm1d(n).eval(),
    "eval_affine_false": lambda n: nn.BatchNorm1d(n, affine=False).eval(),
    "frozen": lambda n: frozen(nn.BatchNorm1d(n)),
    "without_statistics": lambda n: nn.BatchNorm1d(n, affine=False, track_running_stats=False),
    "nested": lambda n: nn.Sequential(nn.Identity(), nn.Sequential(frozen(nn.BatchNorm1d(n)))),
    "synchronised": lambda n: nn.SyncBatchNorm(n, affine=False),
}


@pytest.mark.parametrize("mode", MIXING)
def test_batch_norm_is_refused_in_every_mode(mode: str) -> None:
    network = nn.Sequential(nn.Linear(FEATURES, 4), MIXING[mode](4), nn.Linear(4, CLASSES))
    with pytest.raises(PrivacyError, match="BatchNorm"):
        PrivateSteps(network, Watched(network), noise=NoiseSource(KEY), **SETTINGS)


AGENT_MODES = {
    "affine_false": "nn.BatchNorm1d(4, affine=False)",
    "eval": "nn.BatchNorm1d(4).eval()",
    "frozen": "nn.BatchNorm1d(4).requires_grad_(False)",
    "without_statistics": "nn.BatchNorm1d(4, affine=False, track_running_stats=False)",
    "nested": "nn.Sequential(nn.Sequential(nn.BatchNorm1d(4, affine=False)))",
}


@pytest.mark.parametrize("mode", AGENT_MODES)
def test_an_agent_does_not_start_with_batch_norm(mode: str, new_device: Any) -> None:
    device = new_device(client={"student": Student(kind=f"with_{mode}:Net")})
    (device.base / f"with_{mode}.py").write_text(
        "from torch import nn\n"
        "def Net(shape, classes):\n"
        f"    return nn.Sequential(nn.Linear(shape[0], 4), {AGENT_MODES[mode]}, nn.Linear(4, classes))\n"
    )
    for policy in ({}, {"mechanism": "sum", "also": ["dp_sgd"]}):
        device.decide(**policy)
        with pytest.raises(FedkdError, match="BatchNorm"):
            device.start()


def test_a_round_that_failed_leaves_no_hooks_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("linear")

    def fails(logits: Tensor, labels: Tensor) -> Tensor:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(trainer, "cross_entropy", fails)
        learn_round(network, labelled(4), contract(), GENTLE, NoiseSource(KEY), None, {})
    learn_round(network, labelled(4), contract(), GENTLE, NoiseSource(KEY), None, {})
