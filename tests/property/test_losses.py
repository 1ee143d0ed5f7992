import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from fedkd.distill.losses import TERMS, Objective, SoftLabels, cross_entropy, kl, soft_cross_entropy, soften

SEEDS, TEMPERATURES = st.integers(0, 2**31), st.floats(0.5, 8)


def case(seed: int, temperature: float, n: int = 6, k: int = 5) -> tuple[torch.Tensor, torch.Tensor, SoftLabels]:
    random = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(n, k, generator=random, dtype=torch.float64) * 3 for _ in range(2))
    return student, teacher, SoftLabels(soften(teacher, temperature), temperature)


@given(SEEDS, TEMPERATURES)
@settings(max_examples=50, deadline=None)
def test_kl_is_t_squared_times_the_divergence_of_teacher_from_student(seed: int, temperature: float) -> None:
    student, _, target = case(seed, temperature)
    expected = temperature**2 * rel_entr(target.rows.numpy(), soften(student, temperature).numpy()).sum(axis=1)
    assert torch.allclose(kl(student, target), torch.from_numpy(expected))
    assert (kl(student, target) >= -1e-12).all()


@given(SEEDS, TEMPERATURES)
@settings(max_examples=30, deadline=None)
def test_kl_is_zero_only_where_student_and_teacher_agree(seed: int, temperature: float) -> None:
    _, teacher, target = case(seed, temperature)
    assert torch.allclose(kl(teacher, target), torch.zeros(6, dtype=torch.float64), atol=1e-9)


@given(SEEDS, TEMPERATURES)
@settings(max_examples=30, deadline=None)
def test_soft_cross_entropy_and_kl_have_one_gradient(seed: int, temperature: float) -> None:
    student, _, target = case(seed, temperature)
    gradients = []
    for term in (kl, soft_cross_entropy):
        leaf = student.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(term(leaf, target).sum(), leaf)
        gradients.append(gradient)
    assert torch.allclose(*gradients)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_gradient_keeps_its_size_when_the_temperature_grows(seed: int) -> None:
    student, teacher, _ = case(seed, 1.0)
    norms = []
    for temperature in (20.0, 40.0):
        leaf = student.clone().requires_grad_()
        target = SoftLabels(soften(teacher, temperature), temperature)
        norms.append(float(torch.autograd.grad(kl(leaf, target).sum(), leaf)[0].norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.5)  # without T^2 it would fall by four


@pytest.mark.parametrize("name", sorted(TERMS))
def test_a_term_is_per_example_and_finite_at_the_corners_of_the_simplex(name: str) -> None:
    student = torch.tensor([[80.0, -80.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    target = SoftLabels(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), 2.0)
    values = TERMS[name](student, target)
    assert values.shape == (2,) and torch.isfinite(values).all()
    assert torch.isfinite(torch.autograd.grad(values.sum(), student)[0]).all()
    each = [TERMS[name](student[i : i + 1], SoftLabels(target.rows[i : i + 1], 2.0)) for i in range(2)]
    assert torch.equal(values, torch.cat(each))


def test_an_objective_is_the_weighted_sum_of_its_terms() -> None:
    student, _, target = case(0, 2.0)
    both = Objective({"kl": 0.5, "hard_ce": 2.0})(student, target)
    assert torch.allclose(both, 0.5 * kl(student, target) + 2 * cross_entropy(student, target.rows.argmax(1)))
    assert not Objective({"kl": 0.0})
