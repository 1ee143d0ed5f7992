from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.config import Architecture, Data
from fedkd.data import proxy, sources
from fedkd.data.proxy import ProxySet
from fedkd.data.sources import Examples
from fedkd.distill import features
from fedkd.distill.losses import cross_entropy
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.trainer import fit
from tests.journeys.conftest import fedkd

__all__ = ["fedkd"]


@dataclass(frozen=True)
class Made:
    """A student trained on private digits, and its proxy set."""

    model: Model
    public: ProxySet
    private: Examples


@cache
def digits(kind: str) -> tuple[ProxySet, Examples, Examples]:
    """Proxy set, private part and test part."""
    examples, _ = sources.load(Data(), Path())
    public, private, test = (examples.take(np.arange(*part)) for part in ((0, 300), (300, 1200), (1200, 1797)))
    fitted = features.fit_features(kind, np.asarray(public.x, np.float32), components=60)
    built = proxy.build(public.x, None, 10, fitted.spec, features.arrays(fitted), {"source": "digits"})
    return built, private, test


@cache
def trained(architecture: str, kind: str, steps: int = 150) -> Made:
    public, private, _ = digits(kind)
    model = Model.fresh(Architecture(kind=architecture), ProxyView(public, Path()), 0, Path())
    x, y = model.inputs(private.x), torch.from_numpy(private.y)
    order = torch.Generator().manual_seed(0)

    def loss(network: nn.Module) -> torch.Tensor:
        some = torch.randint(len(y), (64,), generator=order)
        return cross_entropy(network(x[some]), y[some]).mean()

    fit(model.network, loss, steps=steps, learning_rate=0.02)
    return Made(model, public, private)


@pytest.fixture(scope="session")
def mlp() -> Made:
    return trained("mlp", "scattering")
