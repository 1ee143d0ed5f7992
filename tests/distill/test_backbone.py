"""A user's own frozen features: weights in the proxy set, code in a file that every party has read."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from fedkd.data import proxy
from fedkd.data.proxy import ProxySet
from fedkd.distill import features
from fedkd.distill.features import FeatureMap, arrays, fit_features, restore
from fedkd.distill.model import ProxyView
from fedkd.errors import ConfigError, DataError, FedkdError
from fedkd.tensors import digest, unpack_plain

NET = """import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, shape):
        super().__init__(nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
"""
X = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Writes a file of code, and gives the name of its class Net."""
    path, known = list(sys.path), set(sys.modules)

    def make(text: str, folder: Path = tmp_path) -> str:
        name = f"front_{random.SystemRandom().getrandbits(48):x}"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        return f"{name}:Net"

    yield make
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if name.startswith("front_"):
            del sys.modules[name]


def fit(name: str, base: Path, **settings: object) -> FeatureMap:
    return fit_features(name, X, components=6, base=base, **settings)  # type: ignore[arg-type]


def test_a_backbones_answers_are_projected_like_any_other_features(write: Callable[..., str], tmp_path: Path) -> None:
    found = fit(write(NET), tmp_path)
    assert found(X).shape == (20, 6)
    assert np.linalg.norm(found(X), axis=1).mean() == pytest.approx(features.MEAN_NORM, rel=1e-3)
    joined = fit(f"scattering+{write(NET)}", tmp_path)
    assert joined.dim == 12


def test_an_example_gives_the_same_bytes_in_any_batch(write: Callable[..., str], tmp_path: Path) -> None:
    found = fit(write(NET), tmp_path)
    assert b"".join(found(X[i : i + 1]).tobytes() for i in range(20)) == found(X).tobytes()
    assert found(X[:0]).shape == (0, 6)


def test_it_travels_in_the_proxy_set_and_comes_back_the_same(write: Callable[..., str], tmp_path: Path) -> None:
    found = fit(f"scattering+{write(NET)}", tmp_path)
    proxy.build(X, None, 3, found.spec, arrays(found), {}).save(tmp_path / "proxy.safetensors")
    view = ProxyView(ProxySet.load(tmp_path / "proxy.safetensors"), tmp_path)
    assert view.features(X).tobytes() == found(X).tobytes()
    again = fit(str(found.spec["kind"]), tmp_path)
    assert {n: a.tobytes() for n, a in arrays(again).items()} == {n: a.tobytes() for n, a in arrays(found).items()}


def test_weights_may_come_from_a_file(write: Callable[..., str], tmp_path: Path) -> None:
    name = write(NET)
    weights = {
        n.removeprefix("weights."): a for n, a in arrays(fit(name, tmp_path)).items() if n.startswith("weights.")
    }
    other = unpack_plain(save({**weights, "0.weight": weights["0.weight"] * -2}))
    found = fit(name, tmp_path, weights=other)
    assert arrays(found)["weights.0.weight"].tobytes() == other["0.weight"].tobytes()
    with pytest.raises(DataError, match="another network"):
        fit(name, tmp_path, weights={"0.weight": other["0.weight"]})


def test_without_its_file_or_with_another_one_nothing_is_imported(write: Callable[..., str], tmp_path: Path) -> None:
    name = write(NET)
    found = fit(name, tmp_path)
    empty, altered = tmp_path / "empty", tmp_path / "altered"
    empty.mkdir()
    with pytest.raises(ConfigError, match="there is no file"):
        restore(found.spec, arrays(found), empty)
    altered.mkdir()
    file = altered / f"{name.partition(':')[0]}.py"
    file.write_text(NET + f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    del sys.modules[name.partition(":")[0]]
    with pytest.raises(ConfigError, match="other code than this") as caught:
        restore(found.spec, arrays(found), altered)
    assert str(file) in caught.value.where and digest(file.read_bytes()) in caught.value.what
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "builtins:eval"])
def test_a_proxy_set_cannot_name_code_that_its_owner_has_not_put_there(name: str, tmp_path: Path) -> None:
    held = {"mean": np.zeros(1, np.float32), "basis": np.ones((1, 1), np.float32)}
    with pytest.raises(ConfigError, match="there is no file"):
        restore({"version": 1, "kind": name, "shape": [1], "dim": 1, "code": "0" * 64}, held, tmp_path)
    with pytest.raises(DataError, match="version"):
        restore({"version": 1, "kind": name, "shape": [1], "dim": 1}, held, tmp_path)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("def Net(shape): return 3", "not a torch.nn.Module"),
        ("def Net(shape): raise OSError('no weights')", "no weights"),
        ("Net = lambda shape: nn.Identity()", r"not float32 features \[1, d\]"),
        ("Net = lambda shape: nn.Linear(3, 3)", "failed"),
        ("Other = 1", "has no 'Net'"),
        (
            "class Net(nn.Flatten):\n def __init__(self, shape):\n  super().__init__()\n  self.seen = 0\n"
            " def forward(self, x):\n  self.seen += 1\n  return super().forward(x) + self.seen",
            "seen before it",
        ),
        (
            "class Net(nn.Flatten):\n def __init__(self, shape):\n  super().__init__()\n"
            "  self.register_buffer('seen', torch.zeros(1))\n"
            " def forward(self, x):\n  self.seen += x.sum()\n  return super().forward(x)",
            "seen before it",
        ),
    ],
)
def test_a_class_that_cannot_be_used_is_refused(
    write: Callable[..., str], tmp_path: Path, body: str, what: str
) -> None:
    with pytest.raises(FedkdError, match=what):
        fit(write("import torch\nfrom torch import nn\n" + body), tmp_path)


def test_a_backbone_that_remembers_is_refused_on_every_device(write: Callable[..., str], tmp_path: Path) -> None:
    """Also where whoever built the proxy set has not looked: an example's features must be its own."""
    text = (
        "from torch import nn\n\nclass Net(nn.Flatten):\n    seen = 0\n\n    def __init__(self, shape):\n"
        "        super().__init__()\n\n    def forward(self, x):\n        Net.seen += 1\n"
        "        return super().forward(x) + Net.seen\n"
    )
    name = write(text)
    held = {"mean": np.zeros(64, np.float32), "basis": np.ones((64, 2), np.float32)}
    spec = {"version": 1, "kind": name, "shape": [1, 8, 8], "dim": 2, "code": digest(text.encode())}
    with pytest.raises(ConfigError, match="seen before it"):
        restore(spec, held, tmp_path)
