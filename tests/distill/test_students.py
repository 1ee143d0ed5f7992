import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from opacus.layers import DPGRU, DPLSTM
from torch import nn

from fedkd.config import Student
from fedkd.distill.students import (
    Network,
    build,
    check_output,
    digest,
    load_arrays,
    state_arrays,
)
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


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn"])
def test_built_in_students_answer_logits_and_may_train_privately(kind: str) -> None:
    network = make(kind)
    output = network(torch.zeros(3, *network.input_shape))
    check_output(output, 3, 10, kind)
    check_private(network)
    assert network.takes == ("raw" if kind == "cnn" else "features") and network.training


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 64), (1, 16, 16), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_the_cnn_takes_images_of_many_sizes_and_stays_small(shape: tuple[int, ...]) -> None:
    network = make("cnn", shape=shape)
    check_output(network(torch.zeros(2, *shape)), 2, 10, "cnn")
    check_private(network)
    assert 10_000 < sum(p.numel() for p in network.parameters()) < 50_000


@pytest.mark.parametrize("shape", [(64,), (28, 28), (1, 7, 8), (1, 65, 65)])
def test_the_cnn_refuses_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="cnn"):
        make("cnn", shape=shape)


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn"])
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
        (wrapped(counted, seen=torch.zeros(())), "buffer"),
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
    from fedkd.privacy.dp_sgd import prefers_ghost

    assert prefers_ghost(Network(nn.Sequential(nn.Linear(4, 3)), "features", (4,), 3))
    assert not prefers_ghost(Network(PastItsLayer(), "features", (4,), 3))


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
