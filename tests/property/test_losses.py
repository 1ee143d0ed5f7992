import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from fedkd.config import AnyTerm
from fedkd.distill.losses import (
    FLOOR,
    NEEDS,
    TERMS,
    Objective,
    Outputs,
    Targets,
    attention,
    cross_entropy,
    decoupled,
    denoise,
    earlier_self,
    hint,
    kl,
    mse,
    non_target_class_kd,
    normalised_hint,
    soft_cross_entropy,
    soften,
    target_class_kd,
)

SEEDS, TEMPERATURES = st.integers(0, 2**31), st.floats(0.5, 8)


def case(seed: int, temperature: float, n: int = 6, k: int = 5) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    random = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(n, k, generator=random, dtype=torch.float64) * 3 for _ in range(2))
    return student, teacher, Targets(soften(teacher, temperature), temperature)


def whole(seed: int, n: int = 6, k: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Outputs, Targets]:
    """Everything that any term may read."""
    random = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(n, *shape, generator=random, dtype=dtype)

    student = Outputs(some(k), some(k), some(4), (some(6, 6).square(), some(3, 3).square()))
    rows, earlier = soften(some(k), 2.0), soften(some(k), 2.0)
    return student, Targets(
        rows, 2.0, earlier, some(4), (some(5, 5).square(), some(6, 6).square(), some(3, 3).square())
    )


def gradient(term: AnyTerm, student: torch.Tensor, target: Targets) -> torch.Tensor:
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(TERMS[term](Outputs(leaf), target).sum(), leaf)[0]


# -- soft labels ------------------------------------------------------------------------------------------------------


@given(SEEDS, TEMPERATURES)
@settings(max_examples=50, deadline=None)
def test_kl_is_t_squared_times_the_divergence_of_teacher_from_student(seed: int, temperature: float) -> None:
    student, _, target = case(seed, temperature)
    expected = temperature**2 * rel_entr(target.rows.numpy(), soften(student, temperature).numpy()).sum(axis=1)
    assert torch.allclose(kl(Outputs(student), target), torch.from_numpy(expected))
    assert (kl(Outputs(student), target) >= -1e-12).all()


@given(SEEDS, TEMPERATURES)
@settings(max_examples=30, deadline=None)
def test_kl_is_zero_only_where_student_and_teacher_agree(seed: int, temperature: float) -> None:
    _, teacher, target = case(seed, temperature)
    assert torch.allclose(kl(Outputs(teacher), target), torch.zeros(6, dtype=torch.float64), atol=1e-9)


@given(SEEDS, TEMPERATURES)
@settings(max_examples=30, deadline=None)
def test_soft_cross_entropy_and_kl_have_one_gradient(seed: int, temperature: float) -> None:
    student, _, target = case(seed, temperature)
    assert torch.allclose(gradient("kl", student, target), gradient("soft_ce", student, target))
    entropy = -(target.rows * target.rows.log()).sum(dim=1) * temperature**2
    assert torch.allclose(soft_cross_entropy(Outputs(student), target) - kl(Outputs(student), target), entropy)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_gradient_keeps_its_size_when_the_temperature_grows(seed: int) -> None:
    student, teacher, _ = case(seed, 1.0)
    norms = [float(gradient("kl", student, Targets(soften(teacher, T), T)).norm()) for T in (20.0, 40.0)]
    assert norms[0] == pytest.approx(norms[1], rel=0.5)  # without T^2 it would fall by four


@given(SEEDS, TEMPERATURES)
@settings(max_examples=30, deadline=None)
def test_mse_is_half_the_mean_square_of_the_distance_of_centred_logits(seed: int, temperature: float) -> None:
    """Ba & Caruana 2014, equation 1, a class; the soft labels give the teacher's logits back but for a constant."""
    student, teacher, _ = case(seed, 1.0)
    teacher = teacher / 3
    target = Targets(soften(teacher, temperature), temperature)
    v, z = teacher.numpy(), student.numpy()
    expected = np.square((z - z.mean(1, keepdims=True)) - (v - v.mean(1, keepdims=True))).sum(axis=1) / (2 * 5)
    np.testing.assert_allclose(mse(Outputs(student), target), expected)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_mse_is_what_kl_becomes_at_high_temperature(seed: int) -> None:
    """Hinton et al. 2015, section 2.1."""
    student, teacher, _ = case(seed, 1.0)
    target = Targets(soften(teacher, 1e4), 1e4)
    assert torch.allclose(kl(Outputs(student), target), mse(Outputs(student), target), rtol=1e-2)


def test_mse_takes_a_probability_that_has_been_rounded_to_zero_for_the_smallest() -> None:
    student, target = torch.zeros(1, 2), Targets(torch.tensor([[1.0, 0.0]]), 1.0)
    assert float(mse(Outputs(student), target)) == pytest.approx(math.log(FLOOR) ** 2 / 8)


@given(SEEDS, TEMPERATURES)
@settings(max_examples=50, deadline=None)
def test_kl_is_its_decoupled_parts_put_together(seed: int, temperature: float) -> None:
    """Zhao et al. 2022, equation 6: KD = TCKD + (1 - p_t of the teacher) NCKD."""
    student, _, target = case(seed, temperature)
    outputs = Outputs(student)
    together = target_class_kd(outputs, target) + (1 - target.rows.amax(dim=1)) * non_target_class_kd(outputs, target)
    assert torch.allclose(kl(outputs, target), together)
    parts = target_class_kd(outputs, target) + 8 * non_target_class_kd(outputs, target)
    assert torch.allclose(decoupled(outputs, target), parts)


def test_the_decoupled_parts_are_the_papers() -> None:
    """Zhao et al. 2022, equations 2 to 5, written out for one example with T = 1."""
    student, q = torch.tensor([[1.0, -0.5, 0.2]], dtype=torch.float64), np.array([0.2, 0.5, 0.3])
    p = soften(student, 1.0).numpy()[0]
    binary_p, binary_q = np.array([p[1], 1 - p[1]]), np.array([q[1], 1 - q[1]])
    rest_p, rest_q = p[[0, 2]] / (1 - p[1]), q[[0, 2]] / (1 - q[1])
    target = Targets(torch.from_numpy(q[None]), 1.0)
    assert float(target_class_kd(Outputs(student), target)) == pytest.approx(rel_entr(binary_q, binary_p).sum())
    assert float(non_target_class_kd(Outputs(student), target)) == pytest.approx(rel_entr(rest_q, rest_p).sum())


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_denoise_is_kl_of_what_is_said_of_perturbed_inputs(seed: int) -> None:
    student, target = whole(seed)
    assert student.perturbed is not None
    assert torch.equal(denoise(student, target), kl(Outputs(student.perturbed), target))


# -- another network at hand ------------------------------------------------------------------------------------------


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_self_is_kl_with_the_earlier_version(seed: int) -> None:
    student, target = whole(seed)
    assert target.earlier is not None
    assert torch.equal(earlier_self(student, target), kl(student, Targets(target.earlier, target.temperature)))


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_hint_is_fitnets_distance_for_each_unit(seed: int) -> None:
    """Romero et al. 2015, equation 3: 1/2 ||u - r(v)||^2."""
    student, target = whole(seed)
    assert student.hidden is not None and target.hidden is not None
    squares = (student.hidden - target.hidden).square().sum(dim=1)
    assert torch.allclose(hint(student, target) * student.hidden.shape[1], squares / 2)


@given(SEEDS, st.floats(0.1, 10), st.floats(-5, 5))
@settings(max_examples=30, deadline=None)
def test_the_normalised_hint_is_one_less_the_correlation(seed: int, scale: float, shift: float) -> None:
    student, target = whole(seed)
    assert student.hidden is not None and target.hidden is not None
    expected = [1 - np.corrcoef(one, other)[0, 1] for one, other in zip(student.hidden, target.hidden, strict=True)]
    other = Outputs(student.logits, hidden=student.hidden * scale + shift)
    np.testing.assert_allclose(normalised_hint(student, target), expected, atol=1e-9)
    np.testing.assert_allclose(normalised_hint(other, target), expected, atol=1e-6)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_attention_transfer_is_the_papers_with_layers_paired_from_the_last(seed: int) -> None:
    """Zagoruyko & Komodakis 2017, equation 2 without beta: 1/2 sum_j ||Q_S/||Q_S|| - Q_T/||Q_T|| ||."""
    student, target = whole(seed)
    expected = np.zeros(6)
    for mine, other in zip(student.attention, target.attention[1:], strict=True):
        unit = [q.flatten(1).numpy() / np.linalg.norm(q.flatten(1).numpy(), axis=1)[:, None] for q in (mine, other)]
        expected += np.linalg.norm(unit[0] - unit[1], axis=1) / 2
    np.testing.assert_allclose(attention(student, target), expected)


def test_a_larger_map_is_averaged_down_to_the_smaller() -> None:
    small = torch.rand(2, 3, 3)
    large = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    for mine, other in ((small, large), (large, small)):
        found = attention(
            Outputs(torch.zeros(2, 1), attention=(mine,)), Targets(torch.ones(2, 1), 1.0, attention=(other,))
        )
        assert torch.allclose(found, torch.zeros(2), atol=1e-6)


def test_equal_maps_have_a_gradient() -> None:
    """Of zero: an earlier version with the same weights must not make every weight NaN."""
    maps = torch.rand(2, 3, 3, requires_grad=True)
    found = attention(
        Outputs(maps[:, 0], attention=(maps,)), Targets(torch.ones(2, 1), 1.0, attention=(maps.detach(),))
    )
    assert torch.isfinite(torch.autograd.grad(found.sum(), maps)[0]).all()


# -- every term -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TERMS))
def test_a_term_is_per_example_and_never_below_zero(name: AnyTerm) -> None:
    student, target = whole(3)
    values = TERMS[name](student, target)
    assert values.shape == (6,) and (values > 0).all()
    alone = [
        TERMS[name](
            Outputs(
                student.logits[i : i + 1],
                student.perturbed[i : i + 1],  # type: ignore[index]
                student.hidden[i : i + 1],  # type: ignore[index]
                tuple(one[i : i + 1] for one in student.attention),
            ),
            target.take(torch.tensor([i])),
        )
        for i in range(6)
    ]
    assert torch.allclose(values, torch.cat(alone), rtol=1e-12)
    none = TERMS[name](
        Outputs(student.logits[:0], student.logits[:0], student.logits[:0], tuple(m[:0] for m in student.attention)),
        Targets(*(target.rows[:0], 2.0, target.rows[:0], target.rows[:0]), tuple(m[:0] for m in target.attention)),
    )
    assert none.shape == (0,)


@pytest.mark.parametrize("name", sorted(set(TERMS) - set(NEEDS)))
def test_a_term_is_finite_at_the_corners_of_the_simplex(name: AnyTerm) -> None:
    student = torch.tensor([[80.0, -80.0, 0.0], [0.0, 0.0, 0.0]])
    target = Targets(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), 2.0)
    assert torch.isfinite(TERMS[name](Outputs(student), target)).all()
    assert torch.isfinite(gradient(name, student, target)).all()


@pytest.mark.parametrize("name", sorted({*TERMS} - {"hard_ce", "soft_ce"}))
def test_a_term_is_zero_where_the_student_says_what_it_should(name: AnyTerm) -> None:
    student, _ = whole(4)
    rows = soften(student.logits, 2.0)
    student = Outputs(student.logits, student.logits, student.hidden, student.attention)
    target = Targets(rows, 2.0, rows, student.hidden, student.attention)
    assert torch.allclose(TERMS[name](student, target), torch.zeros(6, dtype=torch.float64), atol=1e-9)


def test_an_objective_is_the_weighted_sum_of_its_terms() -> None:
    student, _, target = case(0, 2.0)
    both = Objective({"kl": 0.5, "hard_ce": 2.0})(Outputs(student), target)
    assert torch.allclose(both, 0.5 * kl(Outputs(student), target) + 2 * cross_entropy(student, target.rows.argmax(1)))
    assert not Objective({"kl": 0.0})


def test_an_objective_needs_what_its_terms_read_and_no_more() -> None:
    assert Objective({"kl": 1.0, "mse": 1.0, "hint": 0.0, "self": 0.0}).needs == set()
    assert Objective({"hint": 1.0, "hint_norm": 1.0, "denoise": 0.1}).needs == {"hidden", "perturbed"}
