"""Hidden activations, several teachers, earlier versions: what a term needs is there, and computed only then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedkd.config import Architecture, Distil, Student
from fedkd.config import Teacher as TeacherConfig
from fedkd.consensus import Consensus
from fedkd.data import proxy
from fedkd.data.sources import Examples
from fedkd.distill import features, students
from fedkd.distill.compress import Teaching, compare, compress
from fedkd.distill.losses import Objective, Outputs, Targets, attention, soften
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.outputs import observe, targets_of
from fedkd.distill.students import Network
from fedkd.distill.teacher import Teacher
from fedkd.distill.trainer import Distillation
from fedkd.errors import ConfigError, DataError, FedkdError

CLASSES = 3
HERE = Path()


def examples(n: int, seed: int) -> Examples:
    """Images [n, 1, 8, 8] in which one row is bright, and the row's third of the image as the class."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 6, n)
    x = random.random((n, 1, 8, 8), dtype=np.float32) * 0.5
    x[np.arange(n), 0, rows + 1] += 1
    return Examples(x, (rows // 2).astype(np.int64), CLASSES)


def view(labelled: bool = False) -> ProxyView:
    public = examples(120, 0)
    fitted = features.fit_features("pca", public.x, components=16)
    labels = public.y if labelled else None
    return ProxyView(proxy.build(public.x, labels, CLASSES, fitted.spec, features.arrays(fitted), {}), HERE)


VIEW = view(labelled=True)


def trained(kind: str = "mlp", seed: int = 0, **settings: Any) -> Model:
    """A teacher that knows the proxy set's labels."""
    student = Architecture(kind=kind, **settings)
    config = Distil(student=student, terms={"kl": 0.0}, label_weight=1.0, steps=60, learning_rate=0.02, seed=seed)
    return compress([], VIEW, config, HERE, lambda line: None)


def taught(teacher: Model, **settings: Any) -> Model:
    config = Distil(**{"steps": 40, "learning_rate": 0.02, **settings})
    return compress([Teaching(teacher, "teacher")], VIEW, config, HERE, lambda line: None)


def network(kind: str, **settings: Any) -> Network:
    return students.build(Student(kind=kind, **settings), 16, (1, 8, 8), CLASSES, 1, HERE)


# -- what a network is asked -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "cnn", "rnn", "transformer"])
def test_hidden_activations_are_what_the_last_layer_is_given(kind: str) -> None:
    made = network(kind)
    x = torch.rand(5, *made.input_shape)
    seen = observe(made, x, {"hidden"})
    (*_, head) = [layer for layer in made.modules() if type(layer) is nn.Linear]
    assert seen.hidden is not None
    torch.testing.assert_close(head(seen.hidden), seen.logits)
    assert torch.equal(seen.logits, made(x)) and seen.attention == ()


@pytest.mark.parametrize(
    ("kind", "sizes"), [("cnn", [(8, 8), (4, 4)]), ("rnn", [(8,), (8,)]), ("transformer", [(4,), (4,)])]
)
def test_attention_maps_are_sums_of_squares_over_channels(kind: str, sizes: list[tuple[int, ...]]) -> None:
    made = network(kind, hidden=(6, 7))
    found = observe(made, torch.rand(5, 1, 8, 8), {"attention"}).attention
    assert [tuple(maps.shape) for maps in found] == [(5, *size) for size in sizes]
    outputs: list[Tensor] = []
    made.get_submodule(made.maps[0]).register_forward_hook(lambda layer, given, output: outputs.append(output))
    found = observe(made, torch.rand(5, 1, 8, 8), {"attention"}).attention
    torch.testing.assert_close(found[0], outputs[0].square().sum(dim=1 if kind == "cnn" else 2))


def test_nothing_is_asked_that_no_term_needs() -> None:
    calls: list[int] = []
    made = network("mlp")
    made.register_forward_hook(lambda layer, given, output: calls.append(len(output)))
    x, targets = torch.rand(9, 16), Targets(torch.full((9, CLASSES), 1 / CLASSES), 1.0)
    for terms, runs in (({"kl": 1.0}, 1), ({"kl": 1.0, "denoise": 1.0}, 2)):
        calls.clear()
        Distillation(x, targets, Objective(terms), 0, 0.1).batch(made, 4)
        assert calls == [4] * runs
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.body.modules())
    observe(made, x, {"hidden", "attention"} - {"attention"})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.body.modules())


def test_perturbed_inputs_differ_by_the_standard_deviations_that_were_asked_for() -> None:
    seen: list[Tensor] = []
    made = network("linear")
    made.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    x = torch.randn(4000, 16) * 3
    targets = Targets(torch.full((4000, CLASSES), 1 / CLASSES), 1.0)
    Distillation(x, targets, Objective({"denoise": 1.0}), 0, 0.2).batch(made, 4000)
    clean, noisy = seen
    assert float((noisy - clean).std()) == pytest.approx(0.6, rel=0.02)
    assert {tuple(row) for row in clean.tolist()} == {tuple(row) for row in x.tolist()}


def test_a_users_class_names_its_maps(tmp_path: Path) -> None:
    (tmp_path / "with_maps.py").write_text(
        "from torch import nn\n\nclass Net(nn.Sequential):\n    takes, maps = 'raw', ('0',)\n"
        "    def __init__(self, shape, classes):\n"
        "        super().__init__(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, classes))\n\n"
        "class Wrong(Net):\n    maps = ('conv9',)\n"
    )
    made = students.build(Student(kind="with_maps:Net"), 16, (1, 8, 8), CLASSES, 1, tmp_path)
    assert observe(made, torch.rand(2, 1, 8, 8), {"attention"}).attention[0].shape == (2, 6, 6)
    with pytest.raises(ConfigError, match="conv9"):
        students.build(Student(kind="with_maps:Wrong"), 16, (1, 8, 8), CLASSES, 1, tmp_path)


# -- compression -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "terms"),
    [
        ("mlp", {"hidden": [12]}, {"kl": 1.0}),
        ("mlp", {"hidden": [12]}, {"mse": 1.0}),
        ("mlp", {"hidden": [12]}, {"dkd": 0.2, "denoise": 0.5}),
        ("mlp", {"hidden": [12]}, {"kl": 1.0, "hint": 0.5, "hint_norm": 0.5}),
        ("cnn", {"channels": [8, 8]}, {"kl": 1.0, "hint": 0.1}),
        ("rnn", {"hidden": [12]}, {"kl": 1.0}),
        ("transformer", {"width": 8, "heads": 2, "patch": 2}, {"kl": 1.0}),
    ],
    ids=str,
)
def test_a_student_learns_from_its_teacher(kind: str, settings: dict[str, Any], terms: dict[str, float]) -> None:
    teacher, test = trained(hidden=[32]), examples(200, 9)
    student = taught(teacher, student={"kind": kind, **settings}, terms=terms, steps=60)
    found = compare([Teaching(teacher, "teacher")], student, VIEW, test)
    assert found["teachers"][0]["accuracy"] > 0.85
    assert found["student"]["accuracy"] > 0.6 and found["teachers"][0]["agreement"]["proxy"] > 0.6


def test_a_cnn_takes_over_the_attention_of_a_larger_one() -> None:
    teacher = trained("cnn", channels=[16, 24])
    x, distances = torch.from_numpy(examples(50, 5).x), []
    target = targets_of(teacher.network, x, 1.0, {"attention"})
    for weight in (0.0, 20.0):
        terms = {"kl": 1.0, "attention": weight}
        student = taught(teacher, student={"kind": "cnn", "channels": [8, 8]}, terms=terms)
        seen = targets_of(student.network, x, 1.0, {"attention"})
        distances.append(float(attention(Outputs(seen.rows, attention=seen.attention), target).mean()))
    assert distances[1] < distances[0]


def test_the_same_settings_give_the_same_student_and_another_seed_another() -> None:
    teacher, settings = trained(), {"terms": {"kl": 1.0, "hint": 1.0, "denoise": 1.0}, "student": "mlp", "steps": 5}
    torch.manual_seed(1)
    one = students.digest(taught(teacher, **settings).network)
    torch.manual_seed(2)
    assert students.digest(taught(teacher, **settings).network) == one
    assert students.digest(taught(teacher, **settings, seed=1).network) != one


def test_teachers_teach_by_their_weights() -> None:
    """For kl, several teachers are the one whose soft labels are the weighted mean: it has the same gradient."""
    models = [trained(seed=seed, hidden=[8]) for seed in (0, 1)]
    config = Distil(student="linear", steps=3, learning_rate=0.1, temperature=1.0)
    both = compress([Teaching(models[0], "a", 3.0), Teaching(models[1], "b", 1.0)], VIEW, config, HERE, print)
    x = VIEW.inputs("features")
    rows = sum(w * targets_of(m.network, x, 1.0, set()).rows for w, m in zip((0.75, 0.25), models, strict=True))
    mean = replace(targets_of(models[0].network, x, 1.0, set()), rows=rows)
    student = Model.fresh(config.student, VIEW, config.seed, HERE)
    lesson = Distillation(x, mean, Objective({"kl": 1.0}), config.seed)
    from fedkd.distill.trainer import fit

    fit(student.network, lambda net: lesson.batch(net, 256), steps=3, learning_rate=0.1, weight_decay=0.01)
    for one, other in zip(both.network.parameters(), student.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("student", "terms", "what"),
    [
        ("linear", {"hint": 1.0}, "no hidden layer"),
        ("mlp", {"attention": 1.0}, "attention maps"),
        ("rnn", {"attention": 1.0}, "cannot be compared"),
        ("mlp", {"kl": 0.0}, "learns from nothing"),
        ("mlp", {"self": 1.0}, "self"),
    ],
)
def test_terms_that_a_student_cannot_have_are_refused(student: str, terms: dict[str, float], what: str) -> None:
    with pytest.raises((FedkdError, ValueError), match=what):
        taught(trained("cnn", channels=[8]), student=student, terms=terms)


def test_labels_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="no labels"):
        compress([], view(), Distil(label_weight=1.0), HERE, print)


def test_a_teacher_of_another_task_is_refused() -> None:
    x = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    fitted = features.fit_features("pca", x, components=4)
    other = ProxyView(proxy.build(x, None, 7, fitted.spec, features.arrays(fitted), {}), HERE)
    teacher = Model.fresh(Student(), other, 0, HERE)
    with pytest.raises(DataError, match="7 classes") as caught:
        taught(teacher)
    assert caught.value.where == "teacher"


# -- an earlier version of the server's teacher ------------------------------------------------------------------------


def consensus(known: int = 100) -> Consensus:
    """Of answers on the first ``known`` proxies."""
    rows = soften(torch.randn(120, CLASSES, generator=torch.Generator().manual_seed(0)), 1.0).numpy()
    return Consensus(rows, np.arange(120) < known)


def distilled(terms: dict[str, float], rounds: int = 2, kind: str = "mlp") -> Teacher:
    config = TeacherConfig(kind=kind, terms=terms, steps=4, label_weight=0.0)
    teacher = Teacher(config, VIEW, 3, HERE)
    for round in range(1, rounds + 1):
        teacher.distil(consensus(), round)
    return teacher


@pytest.mark.parametrize(
    ("kind", "name"), [("mlp", "self"), ("mlp", "hint"), ("mlp", "hint_norm"), ("cnn", "attention")]
)
def test_a_teacher_compares_itself_with_that_of_the_round_before(kind: str, name: str) -> None:
    first, both = ({"kl": 1.0}, {"kl": 1.0, name: 2.0})
    digests = {
        rounds: [students.digest(distilled(terms, rounds, kind).model.network) for terms in (first, both)]
        for rounds in (1, 2)
    }
    assert digests[1][0] == digests[1][1], "there is no earlier version in the first round"
    assert digests[2][0] != digests[2][1]


def test_a_teacher_that_continues_from_a_checkpoint_compares_itself_with_it() -> None:
    terms = {"kl": 1.0, "self": 2.0}
    first, whole = distilled(terms, 1), distilled(terms, 2)
    again = distilled(terms, 0)
    again.load(first.arrays())
    again.distil(consensus(), 2)
    assert students.digest(again.model.network) == students.digest(whole.model.network)


def test_a_teacher_that_has_learned_nothing_is_no_earlier_version() -> None:
    """Also after a restart: nobody had answered in the round before."""
    alone, again = (distilled({"kl": 1.0, "self": 2.0}, 0) for _ in range(2))
    alone.distil(consensus(known=0), 1)
    again.load(alone.arrays())
    plain = distilled({"kl": 1.0}, 0)
    for teacher in (alone, again, plain):
        teacher.distil(consensus(), 2)
    assert len({students.digest(teacher.model.network) for teacher in (alone, again, plain)}) == 1


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"terms": {"self": 1.0}}, "learns from nothing"),
        ({"kind": "linear", "terms": {"kl": 1.0, "hint": 1.0}}, "no hidden layer"),
        ({"kind": "mlp", "terms": {"kl": 1.0, "attention": 1.0}}, "attention maps"),
    ],
)
def test_a_teacher_that_cannot_learn_so_is_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        TeacherConfig(**settings)
