"""A deployed life goes from one version of the proxy set to the next: one client comes at once, the other later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd import config
from fedkd.config import ClientConfig, Policy, ServerConfig
from fedkd.data.proxy import ProxySet
from fedkd.distill.losses import soften
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.trainer import logits
from fedkd.errors import ConfigError, DataError
from server.anchor import anchor_of
from server.loop import serve
from simulations.engine import Engine
from tests.journeys.conftest import sets

Fedkd = Callable[..., tuple[int, str, str]]
CLIENTS = ("client-0", "client-1")


def changed(path: Path, kind: type[Any], **changes: Any) -> None:
    found = config.load(kind, path)
    path.write_text(config.dump(kind.model_validate({**found.model_dump(), **changes})))


def play(out: Path) -> None:
    """One run of the deployed server with the clients as they are configured now."""
    engine = Engine({name: out / "clients" / name for name in CLIENTS}, out / "test.npz", 1)
    try:
        with engine.grid() as grid:
            serve(grid, str(out / "server.yaml"))
    finally:
        engine.close()


@pytest.fixture
def laid_out(tmp_path: Path, fedkd: Fedkd) -> Path:
    out = tmp_path / "life"
    settings = sets("clients=2", "quorum=0.5", "rounds=1", "privacy.mechanism=none")
    code, _, err = fedkd("prepare", "--noise", "simulation", "--out", out, *settings)
    assert code == 0, err
    return out


def test_a_life_goes_on_with_a_new_version_of_the_proxy_set(
    laid_out: Path, fedkd: Fedkd, capsys: pytest.CaptureFixture[str]
) -> None:
    out = laid_out
    play(out)
    first, second = (ProxySet.load(out / "proxy.safetensors"), out / "second.safetensors")
    code, _, err = fedkd(
        *("proxy", "build", "--features", out / "proxy.safetensors", "--out", second),
        *sets("seed=7", "proxy.size=80"),
    )
    assert code == 0, err
    version = ProxySet.load(second)
    assert version.hash != first.hash and len(version) == 80 and version.provenance["features_of"] == first.hash
    assert ProxyView.load(second, out).features_hash == ProxyView.load(out / "proxy.safetensors", out).features_hash
    for name in CLIENTS:
        changed(out / "clients" / name / "policy.yaml", Policy, proxies=(first.hash, version.hash))
    changed(out / "clients" / "client-0" / "client.yaml", ClientConfig, proxy="../../second.safetensors")
    changed(
        out / "server.yaml", ServerConfig, proxy="second.safetensors", out="next", anchor="server/teacher.safetensors"
    )
    capsys.readouterr()
    play(out)
    assert "1 answered, 1 refused, 0 failed" in capsys.readouterr().out
    assert Model.open(out / "next" / "teacher.safetensors").proxy == version.hash
    changed(out / "clients" / "client-1" / "client.yaml", ClientConfig, proxy="../../second.safetensors")
    changed(out / "server.yaml", ServerConfig, out="third")
    play(out)
    assert "2 answered, 0 refused, 0 failed" in capsys.readouterr().out


def test_the_anchor_is_what_the_teacher_before_says_of_this_proxy_set(laid_out: Path) -> None:
    play(laid_out)
    view = ProxyView.load(laid_out / "proxy.safetensors", laid_out)
    server = config.load(ServerConfig, laid_out / "server.yaml")
    assert anchor_of(server, laid_out, view) is None
    named = server.model_copy(update={"anchor": "server/teacher.safetensors"})
    teacher = Model.open(laid_out / "server" / "teacher.safetensors")
    said = logits(teacher.network, view.inputs("features"))
    np.testing.assert_allclose(anchor_of(named, laid_out, view), soften(said, server.temperature), atol=1e-6)
    some = anchor_of(named.model_copy(update={"anchor_classes": (0, 3)}), laid_out, view)
    assert some is not None and not some[:, [1, 2, *range(4, 10)]].any()
    np.testing.assert_allclose(some.sum(axis=1), 1, atol=1e-6)


def test_an_anchor_that_cannot_be_is_told(laid_out: Path) -> None:
    play(laid_out)
    view = ProxyView.load(laid_out / "proxy.safetensors", laid_out)
    server = config.load(ServerConfig, laid_out / "server.yaml")
    with pytest.raises(DataError):
        anchor_of(server.model_copy(update={"anchor": "nowhere"}), laid_out, view)
    named = server.model_copy(update={"anchor": "server/teacher.safetensors", "anchor_classes": (10,)})
    with pytest.raises(ConfigError, match="0 to 9"):
        anchor_of(named, laid_out, view)
