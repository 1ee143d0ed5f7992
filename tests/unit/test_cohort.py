"""Clients trained together come to the students that each would have come to alone, within rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fedkd.config import Continual, Scenario, Student
from fedkd.distill import cohort, students
from fedkd.distill.cohort import Cohort, Member
from fedkd.distill.losses import Objective, Targets
from fedkd.distill.trainer import ALONE, Distillation, Labelled, Lesson, Optimiser, Round, Velocity, check_finite
from fedkd.errors import FedkdError
from fedkd.privacy.cohort import Shape
from fedkd.privacy.contract import Contract, Training
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.noise import NoiseSource, simulation_key
from tests import builders

FEATURES, CLASSES, PROXIES = 5, 3, 20
SIZES = {"a": 9, "b": 0, "c": 30, "d": 1, "e": 12}
NETWORKS = {
    "linear": Student(kind="linear"),
    "mlp": Student(kind="mlp", hidden=(6,)),
    "relu": Student(kind="mlp", hidden=(6, 4), activation="relu"),
}
ALL_TERMS = {"kl": 1.0, "mse": 0.5, "dkd": 0.1, "denoise": 1.0, "self": 0.3}


def network(kind: str, client: str) -> nn.Module:
    built = students.build(NETWORKS[kind], FEATURES, (FEATURES,), CLASSES, ord(client), Path())
    random = torch.Generator().manual_seed(ord(client))
    with torch.no_grad():  # linear networks start at zero
        for p in built.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=random))
    return built


def data(client: str) -> Labelled:
    random, n = torch.Generator().manual_seed(ord(client)), SIZES[client]
    return Labelled(torch.randn(n, FEATURES, generator=random), torch.randint(CLASSES, (n,), generator=random))


def contract(mechanism: Any, sample_rate: float) -> Contract:
    event = PrivacyEvent("dp_sgd", noise_multiplier=0.8, sample_rate=sample_rate, steps=4)
    return builders.contract(event, mechanism=mechanism, training=Training(4, sample_rate, 0.7, 6.0), rounds=2)


def distillation(client: str, round: int, terms: Any) -> Distillation | None:
    if terms is None:
        return None
    x = torch.randn(PROXIES, FEATURES, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(ord(client) + round)
    rows, earlier = torch.softmax(torch.randn(2, PROXIES, CLASSES, generator=random), dim=2)
    targets = Targets(rows, 2.0, earlier if "self" in terms else None)
    return Distillation(x, targets, Objective(terms), seed=ord(client) + round, perturbation=0.2)


class Federation:
    """Clients that learn two rounds, alone or together."""

    def __init__(
        self, kind: str, mechanism: str = "dp_sgd", sample_rate: float = 1.0, momentum: float = 0.9, terms: Any = None
    ) -> None:
        self.networks = {client: network(kind, client) for client in SIZES}
        self.velocity: dict[str, Velocity] = {client: {} for client in SIZES}
        self._contract, self._terms = contract(mechanism, sample_rate), terms
        self._optimiser = Optimiser(0.5, momentum)

    def rounds(self, number: int) -> dict[str, Round]:
        return {
            client: Round(
                self.networks[client],
                data(client),
                self._contract,
                self._optimiser,
                NoiseSource(simulation_key(0, client, "run", number)),
                distillation(client, number, self._terms),
                self.velocity[client],
            )
            for client in SIZES
        }

    def alone(self) -> Federation:
        for number in (1, 2):
            self.velocity = {client: ALONE.learn(round) for client, round in self.rounds(number).items()}
        return self

    def together(self, *groups: str) -> Federation:
        """In one meeting a round, or in one for each of ``groups``."""
        built = Cohort([members(self.networks)])
        for number in (1, 2):
            rounds = self.rounds(number)
            for group in groups or ("abcde",):
                self.velocity |= built.train({client: rounds[client] for client in group})
        return self

    def weights(self, client: str) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.networks[client].named_parameters()}

    def bytes(self) -> dict[str, bytes]:
        state = {client: [*self.weights(client).values(), *self.velocity[client].values()] for client in SIZES}
        return {client: b"".join(one.numpy().tobytes() for one in all_of_it) for client, all_of_it in state.items()}


def members(networks: dict[str, nn.Module]) -> dict[str, Member]:
    found = {client: Shape.of(one.body) for client, one in networks.items()}  # type: ignore[arg-type]
    return {client: Member(shape, SIZES[client]) for client, shape in found.items() if shape is not None}


def assert_equal_within_rounding(one: Federation, other: Federation) -> None:
    for client in SIZES:
        torch.testing.assert_close(one.weights(client), other.weights(client), rtol=1e-4, atol=1e-5)
        for name, momentum in one.velocity[client].items():
            torch.testing.assert_close(momentum, other.velocity[client][name], rtol=1e-4, atol=1e-5)


# -- equal to every client alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [None, {"kl": 1.0}, ALL_TERMS], ids=["alone", "kl", "all_terms"])
@pytest.mark.parametrize("sample_rate", [1.0, 0.3])
@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_clients_learn_together_what_each_learns_alone(
    kind: str, mechanism: str, sample_rate: float, terms: Any
) -> None:
    settings = (kind, mechanism, sample_rate, 0.9, terms)
    alone, together = Federation(*settings).alone(), Federation(*settings).together()
    assert alone.bytes() != Federation(*settings).bytes()
    assert_equal_within_rounding(together, alone)


def test_without_momentum_nothing_is_carried_to_the_next_round() -> None:
    alone, together = Federation("mlp", momentum=0.0).alone(), Federation("mlp", momentum=0.0).together()
    assert together.velocity == alone.velocity == {client: {} for client in SIZES}
    assert_equal_within_rounding(together, alone)


def test_samples_that_are_larger_than_a_piece_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "PIECE", 4)
    for mechanism, sample_rate in (("dp_sgd", 1.0), ("dp_sgd", 0.5), ("none", 1.0)):
        settings = ("mlp", mechanism, sample_rate)
        assert_equal_within_rounding(Federation(*settings).together(), Federation(*settings).alone())


# -- nobody else is felt ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mechanism", "sample_rate"), [("dp_sgd", 1.0), ("dp_sgd", 0.4), ("none", 1.0)])
@pytest.mark.parametrize("cells", [2**22, 1], ids=["one_group", "a_group_each"])
def test_who_else_takes_part_changes_no_byte(
    cells: int, mechanism: str, sample_rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "CELLS", cells)
    settings = ("mlp", mechanism, sample_rate, 0.9, {"kl": 1.0})
    everybody = Federation(*settings).together().bytes()
    assert Federation(*settings).together("c", "ab", "de").bytes() == everybody
    assert Federation(*settings).together("ecabd").bytes() == everybody


def test_a_client_that_is_not_there_stays_as_it_was() -> None:
    before, after = Federation("linear"), Federation("linear").together("ac")
    assert {client for client in SIZES if after.bytes()[client] != before.bytes()[client]} == {"a", "c"}


def test_clients_with_other_contracts_or_terms_are_trained_apart() -> None:
    together, alone = Federation("linear"), Federation("linear")
    built = Cohort([members(together.networks)])

    def mixed(federation: Federation) -> dict[str, Round]:
        changed = {"a": contract("dp_sgd", 0.3), "b": contract("none", 1.0)}
        rounds = federation.rounds(1)
        return {
            client: Round(
                one.network,
                one.data,
                changed.get(client, one.contract),
                one.optimiser,
                one.noise,
                distillation(client, 1, {"c": {"kl": 1.0}, "d": {"mse": 1.0}}.get(client)),
                {},
            )
            for client, one in rounds.items()
        }

    together.velocity = built.train(mixed(together))
    alone.velocity = {client: ALONE.learn(round) for client, round in mixed(alone).items()}
    assert_equal_within_rounding(together, alone)


# -- soft labels alone -------------------------------------------------------------------------------------------------


def cohort_of(networks: dict[str, nn.Module]) -> Cohort:
    return Cohort([members(networks)])


def lessons(networks: dict[str, nn.Module], terms: Any, steps: int = 6) -> dict[str, Lesson]:
    found = {}
    for client, one in networks.items():
        beside = distillation(client, 1, terms)
        assert beside is not None
        found[client] = Lesson(one, beside, steps, learning_rate=0.05, weight_decay=0.1, seed=0)
    return found


@pytest.mark.parametrize("terms", [{"kl": 1.0}, ALL_TERMS], ids=["kl", "all_terms"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_soft_labels_are_learned_together_as_alone(kind: str, terms: Any) -> None:
    alone, together = ({client: network(kind, client) for client in SIZES} for _ in range(2))
    for lesson in lessons(alone, terms).values():
        ALONE.distil(lesson)
    cohort_of(together).distil(lessons(together, terms))
    for client in SIZES:
        before = network(kind, client).state_dict()
        for name, value in alone[client].state_dict().items():
            assert not torch.equal(value, before[name])
            torch.testing.assert_close(together[client].state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_whose_labels_are_broken_breaks_nobody_else() -> None:
    whole, broken = ({client: network("mlp", client) for client in SIZES} for _ in range(2))
    cohort_of(whole).distil(lessons(whole, {"kl": 1.0}))
    work = lessons(broken, {"kl": 1.0})
    work["c"].beside._targets.rows.fill_(float("nan"))
    cohort_of(broken).distil(work)
    with pytest.raises(FedkdError, match="diverged"):
        check_finite(broken["c"])
    for client in SIZES.keys() - {"c"}:
        assert students.digest(broken[client]) == students.digest(whole[client])


def test_lessons_of_other_lengths_are_learned_apart() -> None:
    alone, together = ({client: network("linear", client) for client in SIZES} for _ in range(2))
    work = [lessons(one, {"kl": 1.0}) | {"d": lessons(one, {"mse": 1.0}, steps=3)["d"]} for one in (alone, together)]
    for lesson in work[0].values():
        ALONE.distil(lesson)
    cohort_of(together).distil(work[1])
    for client in SIZES:
        torch.testing.assert_close(together[client].state_dict(), alone[client].state_dict(), rtol=1e-3, atol=1e-5)


def test_clients_of_other_tables_never_share_tensors() -> None:
    """Else a run's bytes would depend on the number of its worker processes."""
    one, two = Federation("mlp"), Federation("mlp")
    everybody = members(one.networks)
    tables = [{c: everybody[c] for c in some} for some in ("abc", "de")]
    rounds = one.rounds(1)
    one.velocity = Cohort(tables).train(rounds)
    for table in tables:
        two.velocity |= Cohort([table]).train({c: round for c, round in two.rounds(1).items() if c in table})
    assert one.bytes() == two.bytes()


# -- who can be trained so --------------------------------------------------------------------------------------------


class Doubled(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)  # type: ignore[no-any-return]


def half() -> nn.Module:
    frozen = nn.Linear(5, 3)
    frozen.bias.requires_grad_(False)
    return frozen


@pytest.mark.parametrize(
    "body",
    [
        nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.Tanh()),
        nn.Linear(5, 3, bias=False),
        Doubled(nn.Linear(5, 3)),
        half(),
        nn.Conv1d(5, 3, 1),
    ],
)
def test_a_network_of_any_other_form_is_trained_alone(body: nn.Module) -> None:
    assert Shape.of(body) is None


def test_a_round_of_another_network_or_beside_another_loss_is_not_taken() -> None:
    class Other:
        def batch(self, network: nn.Module, size: int) -> torch.Tensor:
            raise AssertionError("a loss that is refused is not computed")

    federation = Federation("mlp")
    built, round = cohort_of(federation.networks), federation.rounds(1)["c"]

    def changed(**changes: Any) -> Round:
        return Round(**{**vars(round), **changes})

    assert built.takes("c", round)
    assert not built.takes("f", round)
    assert not built.takes("c", changed(network=network("linear", "c")))
    assert not built.takes("c", changed(data=data("a")))
    assert not built.takes("c", changed(beside=Other()))


@pytest.mark.parametrize(
    ("settings", "together"),
    [
        ({"clients": 50}, True),
        ({"clients": 50, "features": {"kind": "scattering"}}, False),
        ({"clients": 49}, False),
        ({"clients": 50, "engine": "process"}, False),
        ({"clients": 2, "engine": "cohort"}, True),
        ({"clients": 50, "students": ["linear", "mlp"]}, True),
        ({"clients": 50, "students": ["linear", "cnn"]}, False),
        ({"clients": 50, "students": [{"kind": "mlp", "dropout": 0.1}]}, False),
        ({"clients": 50, "privacy": {"mechanism": "votes", "shards": 2}}, False),
    ],
)
def test_auto_is_a_function_of_the_scenario_alone(settings: Any, together: bool) -> None:
    assert Scenario.model_validate({"features": {"kind": "pca"}, **settings}).trained_together == together


def test_the_clients_of_a_stream_are_trained_by_themselves() -> None:
    assert Continual.model_validate({}).engine == "auto"
    with pytest.raises(ValidationError, match="engine 'cohort' is for 'fedkd simulate'"):
        Continual.model_validate({"engine": "cohort"})
