"""Each method's loss against its paper's formula, written out by hand, and what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedkd.config import WEIGHTS, Keeping
from fedkd.continual.anchor import anchored, coverage, uncovered
from fedkd.continual.fisher import fisher
from fedkd.continual.learner import learn
from fedkd.continual.methods import METHODS, FineTune, Now
from fedkd.continual.replay import Buffer
from fedkd.distill.trainer import PUBLIC_BATCH, Labelled, logits

ALL = torch.arange(6)
T = 2.0


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))


def data(seed: int, labels: list[int], n: int = 6) -> Labelled:
    draws = torch.Generator().manual_seed(seed)
    return Labelled(torch.randn(n, 3, generator=draws), torch.tensor(labels)[torch.arange(n) % len(labels)])


FIRST, SECOND = Now(0, data(1, [0, 1]), ()), Now(1, data(2, [2, 3]), (0, 1))
PROXIES = data(3, [0], PUBLIC_BATCH).x  # so many that a batch is all of them, in another order


def method(name: str, **settings: object) -> FineTune:
    return METHODS[name](Keeping.model_validate({"method": name, **settings}), PROXIES, T, 5)


def second(name: str, old: nn.Module, **settings: object) -> FineTune:
    """A method that has been through the first experience with ``old``, at the start of the second."""
    made = method(name, **settings)
    made.begin(old, FIRST)
    made.end(old)
    made.begin(old, SECOND)
    return made


def ce(said: Tensor, y: Tensor) -> Tensor:
    return -torch.log_softmax(said, 1)[torch.arange(len(y)), y].mean()


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"joint"}))
def test_the_first_experience_is_cross_entropy_alone(name: str) -> None:
    made, net = method(name), network()
    made.begin(net, FIRST)
    torch.testing.assert_close(made.loss(net, ALL), ce(net(FIRST.data.x), FIRST.data.y))


def test_every_method_has_a_usual_weight_and_a_maker() -> None:
    assert set(METHODS) == set(WEIGHTS)


def test_lwf_keeps_old_answers_on_new_examples_among_old_classes() -> None:
    old, new = network(0), network(1)
    made = second("lwf", old, weight=0.7)
    x, y = SECOND.data.x, SECOND.data.y
    p = torch.softmax(old(x)[:, :2] / T, 1)
    q = torch.softmax(new(x)[:, :2] / T, 1)
    expected = ce(new(x), y) + 0.7 * T**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(made.loss(new, ALL), expected)
    made.end(new)
    assert made.held == (0, 0)


def test_the_anchor_keeps_old_answers_on_proxies_without_mass_on_new_classes() -> None:
    old, new = network(0), network(1)
    made = second("proxy", old, weight=0.7)
    p = torch.zeros(len(PROXIES), 4)
    p[:, :2] = torch.softmax(old(PROXIES)[:, :2] / T, 1)
    log_q = torch.log_softmax(new(PROXIES) / T, 1)
    kl = (p[:, :2] * (p[:, :2].log() - log_q[:, :2])).sum(1).mean()
    expected = ce(new(SECOND.data.x), SECOND.data.y) + 0.7 * T**2 * kl
    torch.testing.assert_close(made.loss(new, ALL), expected)


def test_the_anchor_stays_frozen_while_the_network_learns() -> None:
    net = network()
    made = second("proxy", net)
    before = made.memory["anchor"].clone()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    made.loss(net, ALL)
    assert torch.equal(made.memory["anchor"], before)


def test_replay_adds_cross_entropy_of_kept_examples() -> None:
    old, new = network(0), network(1)
    made = second("er", old, weight=0.7, buffer=1)
    x, y = made.memory["x"], made.memory["y"]
    assert y[0] in FIRST.data.y and any(torch.equal(x[0], one) for one in FIRST.data.x)
    torch.testing.assert_close(made.loss(new, ALL), ce(new(SECOND.data.x), SECOND.data.y) + 0.7 * ce(new(x), y))


def test_dark_replay_adds_the_mean_square_to_kept_logits() -> None:
    old, new = network(0), network(1)
    made = second("derpp", old, weight=0.7, alpha=0.3, buffer=1)
    x, y = made.memory["x"], made.memory["y"]
    square = (new(x) - old(x)).square().mean()
    expected = ce(new(SECOND.data.x), SECOND.data.y) + 0.7 * ce(new(x), y) + 0.3 * square
    torch.testing.assert_close(made.loss(new, ALL), expected)


def test_elastic_weights_are_held_by_the_fisher_around_what_they_were() -> None:
    old, new = network(0), network(1)
    made = second("ewc", old, weight=20)
    pairs = zip(new.named_parameters(), old.parameters(), strict=True)
    penalty = torch.stack(
        [(made.memory[f"fisher.{n}"] * (p - before).square()).sum() for (n, p), before in pairs]
    ).sum()
    torch.testing.assert_close(made.loss(new, ALL), ce(new(SECOND.data.x), SECOND.data.y) + 10 * penalty)


def test_fishers_of_several_experiences_add_up() -> None:
    net = network()
    made = second("ewc", net)
    once = made.memory["fisher.0.weight"].clone()
    made.end(net)
    assert bool((made.memory["fisher.0.weight"] >= once).all()) and bool((made.memory["fisher.0.weight"] > once).any())


def test_joint_trains_on_all_examples_so_far() -> None:
    made = method("joint")
    assert len(made.begin(network(), FIRST).y) == 6
    made.end(network())
    both = made.begin(network(), SECOND)
    assert torch.equal(both.y, torch.cat([FIRST.data.y, SECOND.data.y])) and made.held.private_examples == 12


# -- parts -----------------------------------------------------------------------------------------------------------


def test_the_fisher_of_a_softmax_regression_is_what_its_closed_form_says() -> None:
    """F of the bias is E[p_k (1 - p_k)] of class k (arXiv:1905.12558, equation 5); sampled labels come near it."""
    torch.manual_seed(0)
    net, x = nn.Linear(3, 4), torch.randn(4000, 3)
    p = torch.softmax(net(x), 1)
    found = fisher(net, x, torch.Generator().manual_seed(0), examples=4000)
    torch.testing.assert_close(found["bias"], (p * (1 - p)).mean(0).detach(), atol=0.01, rtol=0)


@given(st.integers(1, 30), st.lists(st.integers(0, 25), min_size=1, max_size=5))
def test_a_buffer_is_bounded_and_holds_what_has_come(capacity: int, sizes: list[int]) -> None:
    memory: dict[str, Tensor] = {}
    buffer, came = Buffer(capacity, 0), 0
    for size in sizes:
        x = torch.arange(came, came + size, dtype=torch.float32)[:, None]
        memory = buffer.add(memory, Labelled(x, torch.arange(came, came + size)), x.clone())
        came += size
    assert len(memory["y"]) == min(capacity, came) == len(set(memory["y"].tolist()))
    assert torch.equal(memory["x"][:, 0].long(), memory["y"]) and torch.equal(memory["logits"], memory["x"])


def test_a_buffer_is_a_uniform_sample() -> None:
    counts = np.zeros(40)
    for seed in range(400):
        memory: dict[str, Tensor] = {}
        for start in (0, 20):
            y = torch.arange(start, start + 20)
            memory = Buffer(10, seed).add(memory, Labelled(y[:, None].float(), y), y[:, None].float())
        counts[memory["y"].numpy()] += 1
    assert abs(counts[:20].sum() - 2000) < 160 and counts.min() > 60  # 100 expected each, standard deviation 9


@given(st.integers(0, 2**16), st.sets(st.integers(0, 3), min_size=1), st.floats(0.1, 10))
def test_an_anchor_is_a_distribution_over_the_classes_that_have_come(seed: int, before: set[int], t: float) -> None:
    rows = anchored(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)), sorted(before), t)
    torch.testing.assert_close(rows.sum(1), torch.ones(5))
    assert all(bool((rows[:, label] == 0).all()) for label in set(range(4)) - before)


def test_coverage_counts_the_proxies_of_every_class_and_finds_what_is_missing() -> None:
    rows = np.zeros((40, 3), np.float32)
    rows[:30, 0], rows[30:39, 1], rows[39, :2] = 1, 1, 0.5
    found = coverage(rows, (0, 1))
    assert found == {"0": 30.5, "1": 9.5} and uncovered(found) == ["1"]


# -- a learner -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_experience_without_examples_changes_nothing(name: str) -> None:
    made, net, keeping = method(name), network(), Keeping.model_validate({"method": name})
    learn(net, made, FIRST, keeping, 0, online=False)
    before = [p.clone() for p in net.parameters()]
    nobody = Now(1, Labelled(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)), (0, 1))
    if name != "joint":
        learn(net, made, nobody, keeping, 0, online=False)
        assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


def test_online_every_example_is_seen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    loss = FineTune.loss
    monkeypatch.setattr(
        FineTune, "loss", lambda self, net, some: (seen.extend(some.tolist()), loss(self, net, some))[1]
    )
    learn(network(), method("finetune"), FIRST, Keeping(method="finetune", batch_size=4), 0, online=True)
    assert sorted(seen) == list(range(6))


def test_a_learner_is_a_function_of_its_seed() -> None:
    said = []
    for seed in (0, 0, 1):
        net = network()
        learn(net, method("er"), FIRST, Keeping(method="er", batch_size=2), seed, online=False)
        said.append(logits(net, PROXIES))
    assert torch.equal(said[0], said[1]) and not torch.equal(said[0], said[2])
