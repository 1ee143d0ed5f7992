import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from opacus.layers import DPGRU, DPLSTM
from pydantic import ValidationError
from torch import nn

from fedkd.config import ARCHITECTURES, Student, Training
from fedkd.distill.networks import _patches as patches
from fedkd.distill.students import (
    Network,
    build,
    check_output,
    digest,
    load_arrays,
    state_arrays,
)
from fedkd.distill.trainer import optimiser_of
from fedkd.errors import ConfigError, DataError, PrivacyError
from fedkd.privacy.architecture import check_private
from fedkd.tensors import pack, unpack


def make(kind: str, seed: int = 0, shape: tuple[int, ...] = (1, 28, 28), base: Path = Path()) -> Network:
    return build(Student(kind=kind), 12, shape, 10, seed, base)


@pytest.fixture
def user_class(tmp_path: Path):
    path, known = list(sys.path), set(sys.modules)

    def write(body: str) -> Network:
        name = f"net_{random.SystemRandom().getrandbits(48):x}"
        imports = "import numpy as np, torch, random\nfrom torch import nn\nimport torch.nn.functional as F\n"
        (tmp_path / f"{name}.py").write_text(imports + body)
        return make(f"{name}:Net", base=tmp_path)

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if name.startswith("net_"):
            del sys.modules[name]


class Forward(nn.Module):
    """A linear layer below a forward pass of the test's choice."""

    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 10)
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.chosen = forward

    def forward(self, x):
        return self.chosen(self, x)


def wrapped(forward, **parts) -> Network:
    return Network(Forward(forward, **parts), "features", (12,), 10)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_built_in_students_answer_logits_and_may_train_privately(kind: str) -> None:
    network = make(kind)
    output = network(torch.zeros(3, *network.input_shape))
    check_output(output, 3, 10, kind)
    check_private(network)
    assert network.takes == ("features" if kind in ("linear", "mlp") else "raw") and network.training


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 64), (1, 16, 16), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_the_cnn_takes_images_of_many_sizes_and_stays_small(shape: tuple[int, ...]) -> None:
    network = make("cnn", shape=shape)
    check_output(network(torch.zeros(2, *shape)), 2, 10, "cnn")
    check_private(network)
    assert 10_000 < sum(p.numel() for p in network.parameters()) < 50_000


@pytest.mark.parametrize("shape", [(64,), (1, 7), (1, 1025), (1, 7, 8), (1, 65, 65)])
def test_the_cnn_refuses_what_is_no_image_or_sequence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="cnn"):
        make("cnn", shape=shape)


@pytest.mark.parametrize("shape", [(1, 40), (6, 128), (1, 8), (2, 9, 13), (3, 32, 32)])
@pytest.mark.parametrize(
    "settings", [{"kind": "rnn"}, {"kind": "transformer"}, {"kind": "cnn", "channels": [8]}], ids=str
)
def test_students_of_sequences_and_images_of_many_sizes(settings: dict, shape: tuple[int, ...]) -> None:
    network = build(Student(**settings), 12, shape, 10, 0, Path())
    check_output(network(torch.rand(3, *shape)), 3, 10, "student")
    assert network(torch.rand(0, *shape)).shape == (0, 10)


@pytest.mark.parametrize("kind", ["rnn", "transformer"])
@pytest.mark.parametrize("shape", [(64,), (1, 2, 3, 4)])
def test_students_of_sequences_refuse_what_has_no_steps(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"\[channels, length\]"):
        make(kind, shape=shape)


@pytest.mark.parametrize(
    ("kind", "shape"), [("rnn", (1, 1025)), ("transformer", (1, 5000)), ("transformer", (1, 200, 200))]
)
def test_students_of_sequences_refuse_more_steps_than_they_can_take(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="up to 1024 steps"):
        make(kind, shape=shape)


def test_sizes_are_the_configurations() -> None:
    def sizes(**settings) -> list[tuple[int, ...]]:
        return [tuple(p.shape) for p in build(Student(**settings), 12, (2, 40), 10, 0, Path()).parameters()]

    assert (8, 2, 5) in sizes(kind="cnn", channels=[8, 16, 4]) and (10, 16) in sizes(kind="cnn", channels=[8, 16, 4])
    assert (4 * 7, 5) in sizes(kind="rnn", cell="lstm", hidden=[5, 7]) and (3 * 7, 5) in sizes(
        kind="rnn", hidden=[5, 7]
    )
    assert (16, 2 * 5) in sizes(kind="transformer", width=16, heads=2, patch=5)
    assert len(sizes(kind="transformer", layers=3)) == len(sizes(kind="transformer", layers=1)) + 2 * 16


@pytest.mark.parametrize("changes", [{"width": 10}, {"kind": "rnn", "hidden": []}, {"kind": "gpt"}, {"channels": []}])
def test_sizes_that_cannot_be_are_refused(changes: dict) -> None:
    with pytest.raises(ValidationError):
        Student(**changes)


# SHA-256 of the parameters that version 0.1.0 starts with at seed 3, for twelve features or images of 28 x 28.
FIRST = {
    "linear": "a1081818578ff0be",
    "mlp": "7e53bd17e56d9720",
    "cnn": "1675dcaa38686c5f",
}


@pytest.mark.parametrize("kind", FIRST)
def test_the_networks_of_the_first_version_start_as_they_did(kind: str) -> None:
    assert digest(make(kind, 3))[:16] == FIRST[kind]


@pytest.mark.parametrize(("cell", "layer"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_the_rnn_is_pytorchs(cell: str, layer: type) -> None:
    network = build(Student(kind="rnn", cell=cell, hidden=[5]), 12, (2, 7), 10, 0, Path())
    mine, reference = network.body.layers[0].cell, layer(2, 5, batch_first=True)
    reference.load_state_dict(
        {f"{p}_{s}_l0": getattr(getattr(mine, s), p) for s in ("ih", "hh") for p in ("weight", "bias")}
    )
    x = torch.rand(3, 2, 7)
    expected = network.body.head(reference(x.transpose(1, 2))[0][:, -1])
    torch.testing.assert_close(network(x), expected)


def test_the_rnn_reads_images_row_by_row() -> None:
    image, network = torch.rand(2, 3, 4, 5), build(Student(kind="rnn"), 12, (3, 4, 5), 10, 0, Path())
    rows = image.permute(0, 2, 1, 3).reshape(2, 4, 15)
    torch.testing.assert_close(network(image), network.body.head(network.body.layers[0](rows)[:, -1]))


def test_the_transformers_attention_is_pytorchs() -> None:
    attention = build(Student(kind="transformer"), 12, (1, 8, 8), 10, 0, Path()).body.blocks[0].attention
    reference = nn.MultiheadAttention(32, 4, batch_first=True)
    parts = (attention.query, attention.key, attention.value)
    names = {"in_proj_weight": torch.cat([p.weight for p in parts]), "in_proj_bias": torch.cat([p.bias for p in parts])}
    names |= {f"out_proj.{name}": value for name, value in attention.out.state_dict().items()}
    reference.load_state_dict(names)
    x = torch.rand(2, 6, 32)
    torch.testing.assert_close(attention(x), reference(x, x, x, need_weights=False)[0])


def test_the_transformers_tokens_are_patches_with_zeros_at_the_end() -> None:
    image = torch.arange(15.0).reshape(1, 1, 3, 5)
    tokens = patches(image, 2)[0].reshape(6, 2, 2)
    assert tokens[0].tolist() == [[0, 1], [5, 6]] and tokens[1].tolist() == [[2, 3], [7, 8]]
    assert tokens[5].tolist() == [[14, 0], [0, 0]]
    sequence = torch.arange(10.0).reshape(1, 2, 5)
    assert patches(sequence, 3)[0].tolist() == [[0, 1, 2, 5, 6, 7], [3, 4, 0, 8, 9, 0]]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_starting_values_are_a_function_of_the_seed_alone(kind: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = digest(make(kind, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert digest(make(kind, 1)) == one
    if kind != "linear":  # which starts at zero
        assert digest(make(kind, 2)) != one


def test_a_users_class_is_seeded_too_and_leaves_every_global_generator_alone(user_class) -> None:
    text = (
        "class Net(nn.Linear):\n def __init__(self, shape, classes):\n  super().__init__(shape[0], classes)\n"
        "  self.bias.data.fill_(float(np.random.rand() + random.random()))\n"
    )
    random.seed(1)
    np.random.seed(1)
    one = user_class(text)
    assert digest(one) == digest(user_class(text))
    drawn = random.random(), float(np.random.rand())
    random.seed(1)
    np.random.seed(1)
    assert drawn == (random.random(), float(np.random.rand()))


def test_a_users_class_chooses_raw_examples(user_class) -> None:
    network = user_class(
        "class Net(nn.Sequential):\n takes = 'raw'\n def __init__(self, shape, classes):\n"
        "  super().__init__(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))\n"
    )
    assert (network.takes, network.input_shape, network.training) == ("raw", (1, 28, 28), True)
    check_private(network)


@pytest.mark.parametrize(
    ("body", "kind", "what"),
    [
        ("Net = lambda shape, classes: 3", ConfigError, "not a torch.nn.Module"),
        ("def Net(shape, classes): raise OSError('no weights')", ConfigError, "no weights"),
        ("Net = lambda shape, classes: nn.Linear(shape[0], classes + 1)", DataError, r"expected logits \[2, 10\]"),
        ("Net = lambda shape, classes: nn.Linear(3, classes)", ConfigError, "RuntimeError"),
        ("Net = lambda shape, classes: nn.LSTM(shape[0], classes)", DataError, "answered tuple"),
        ("def Net(s, c):\n n = nn.Linear(s[0], c)\n n.bias.data.fill_(np.nan)\n return n", DataError, "NaN"),
        ("class Net(nn.Linear):\n takes = 'images'", ConfigError, "'takes'"),
        ("Other = 1", ConfigError, "has no 'Net'"),
        (
            "class Net(nn.Linear):\n def __init__(self, s, c): super().__init__(s[0], c, dtype=torch.float64)\n"
            " def forward(self, x): return super().forward(x.double()).float()",
            ConfigError,
            "float32",
        ),
    ],
)
def test_a_users_class_that_cannot_be_used_is_refused(user_class, body: str, kind: type, what: str) -> None:
    with pytest.raises(kind, match=what):
        user_class(body)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.BatchNorm1d(4, affine=False, track_running_stats=False),
        nn.BatchNorm3d(4).eval().requires_grad_(False),
        nn.SyncBatchNorm(4),
        nn.LazyBatchNorm1d(),
        nn.InstanceNorm1d(4, track_running_stats=True),
        nn.LSTM(4, 4),
        nn.GRU(4, 4),
        nn.RNN(4, 4),
        nn.MultiheadAttention(4, 2),
        nn.TransformerEncoderLayer(4, 2),
    ],
    ids=repr,
)
def test_layers_that_dp_sgd_cannot_protect_are_refused_by_name(layer: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(layer))
    with pytest.raises(PrivacyError, match=r"'1\.0"):
        check_private(module)
    with pytest.raises(PrivacyError, match=r"'1\.0"):
        for parameter in layer.parameters():
            parameter.requires_grad = False
        check_private(module.eval())


@pytest.mark.parametrize("layer", [nn.LSTM(4, 4), nn.GRU(4, 4), nn.RNN(4, 4), nn.MultiheadAttention(4, 2)], ids=repr)
def test_the_refusal_names_opacus_own_layer(layer: nn.Module) -> None:
    with pytest.raises(PrivacyError) as caught:
        check_private(layer)
    assert f"DP{type(layer).__name__}" in caught.value.fix


def unnamed_batch_norm(self, x):
    return F.batch_norm(self.fc(x), None, None, training=True)


def mixed_in_secret(self, x):
    with torch.no_grad():
        centre = self.fc(x).sum(0)
    return self.fc(x) + centre


def counted(self, x):
    self.seen += 1
    return self.fc(x)


@pytest.mark.parametrize(
    ("network", "what"),
    [
        (wrapped(lambda self, x: self.fc(x - x.mean(0))), "depends on the other examples"),
        (wrapped(unnamed_batch_norm), "failed|depends on"),
        (wrapped(lambda self, x: self.fc(x) / max(1, len(x))), "depends on the size"),
        (wrapped(mixed_in_secret), "depends on the other examples"),
        (wrapped(lambda self, x: self.fc(x.view(len(x), -1))), "may be empty|failed"),
        (wrapped(counted, seen=torch.zeros(())), "a forward pass changes it"),
        (wrapped(lambda self, x: F.linear(x, self.fc.weight)), "no gradient per example"),
        (wrapped(lambda self, x: self.fc(x) + self.unused(x)[:, :0].sum(), unused=nn.EmbeddingBag(3, 3)), "failed"),
    ],
)
def test_a_forward_pass_that_mixes_or_fails_is_refused(network: Network, what: str) -> None:
    with pytest.raises(PrivacyError, match=what):
        check_private(network)


class PastItsLayer(nn.Module):
    """Uses a weight both in its layer, where hooks see it, and outside, where they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + 100 * nn.functional.linear(x, self.layer.weight)


def test_a_parameter_that_is_also_used_past_its_layer_is_refused() -> None:
    with pytest.raises(PrivacyError, match="past its layer"):
        check_private(Network(PastItsLayer(), "features", (4,), 3))


def test_a_users_own_code_is_clipped_with_hooks() -> None:
    from fedkd.privacy.dp_sgd import clipper_for

    assert clipper_for(Network(nn.Sequential(nn.Linear(4, 3)), "features", (4,), 3)) == "ghost"
    assert clipper_for(Network(PastItsLayer(), "features", (4,), 3)) == "hooks"


class Renormed(nn.Module):
    """Its forward pass shortens the rows that a batch asks for."""

    takes = "raw"

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(6, 4, max_norm=0.01), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.words((x[:, 0] > 0).long()))


def test_weights_that_a_forward_pass_changes_are_refused() -> None:
    with pytest.raises(PrivacyError, match="a forward pass changes it"):
        check_private(Network(Renormed(), "raw", (4,), 3))


def test_a_layer_with_parameters_and_buffers_is_refused() -> None:
    layer = nn.Linear(4, 4)
    layer.register_buffer("scale", torch.ones(4))
    with pytest.raises(PrivacyError, match="buffers"):
        check_private(nn.Sequential(layer))


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.fc = layer, nn.Linear(5, 10)

    def forward(self, x):
        return self.fc(self.layer(x.unflatten(1, (3, 4)))[0][:, -1])


@pytest.mark.parametrize(
    "network",
    [
        wrapped(lambda self, x: self.drop(self.fc(x)), drop=nn.Dropout(0.5)),
        wrapped(lambda self, x: self.fc(x * self.scale), scale=torch.ones(12)),
        wrapped(lambda self, x: self.fc(x) * self.gain, gain=nn.Parameter(torch.ones(10))),  # by functorch
        wrapped(lambda self, x: self.fc(self.norm(x)), norm=nn.LayerNorm(12)),
        Network(nn.Sequential(nn.InstanceNorm2d(3), nn.Flatten(), nn.Linear(48, 10)), "raw", (3, 4, 4), 10),
    ],
)
def test_what_keeps_examples_apart_is_admitted(network: Network) -> None:
    before = digest(network)
    check_private(network)
    check_private(network.eval())
    assert digest(network) == before and not network.training


@pytest.mark.parametrize("kind", [DPLSTM, DPGRU])
def test_opacus_recurrent_layers_pass_the_check_of_layers(kind: type) -> None:
    check_private(nn.Sequential(kind(4, 5, batch_first=True)))


def test_parameters_travel_as_arrays() -> None:
    one, two = make("cnn", 1), make("cnn", 2)
    load_arrays(two, unpack(pack(state_arrays(one), {}))[0])
    assert digest(one) == digest(two)


def test_scalars_survive_a_file() -> None:
    module = nn.BatchNorm1d(3)
    load_arrays(module, unpack(pack(state_arrays(module), {}))[0])
    assert module.num_batches_tracked.shape == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("body.bias"),
        lambda a: a.update(extra=np.ones(1)),
        lambda a: a.update({"body.bias": np.ones(11, np.float32)}),
        lambda a: a.update({"body.bias": np.ones(10)}),
        lambda a: a.update({"body.bias": np.ones((10, 1), np.float32)}),
    ],
)
def test_the_arrays_of_another_network_are_refused(change) -> None:
    network = make("linear")
    before, arrays = digest(network), state_arrays(network)
    change(arrays)
    with pytest.raises(DataError, match="another network"):
        load_arrays(network, arrays)
    assert digest(network) == before


@pytest.mark.parametrize(
    "output", [None, torch.zeros(2, 9), torch.zeros(2, 10, dtype=torch.long), torch.full((2, 10), torch.inf)]
)
def test_only_finite_logits_are_answers(output) -> None:
    with pytest.raises(DataError):
        check_output(output, 2, 10, "a student")


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn", "rnn", "transformer"])
def test_a_learning_rate_is_the_students_own_else_the_training_blocks_else_what_suits_its_kind(kind: str) -> None:
    def rate(student: float | None, training: float | None) -> float:
        found = optimiser_of(Student(kind=kind, learning_rate=student), Training(learning_rate=training))
        return found.learning_rate

    assert (rate(1e-3, 1e-6), rate(None, 1e-6)) == (1e-3, 1e-6)
    assert rate(None, None) == {"mlp": 0.3, "cnn": 0.1, "transformer": 0.2}.get(kind, 0.5)
