"""What a run is compared with: a central model on everybody's data, without privacy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fedkd.config import Data, Scenario
from fedkd.data import sources
from fedkd.distill.losses import cross_entropy
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.trainer import Labelled, accuracy, fit
from fedkd.rng import derive
from simulations.prepare import private_examples

EPOCHS = 10
BATCH = 256


def central_accuracy(scenario: Scenario, out: Path, base: Path) -> float:
    """Test accuracy of the teacher's architecture, trained on all private data in one place."""
    view = ProxyView.load(out / "proxy.safetensors", base)
    seed = derive(scenario.seed, "central")
    model = Model.fresh(scenario.teacher, view, seed, base)
    private, test = private_examples(out, scenario), sources.load(Data(source="npz", path="test.npz"), out)[0]
    data = Labelled(model.inputs(private.x), torch.from_numpy(private.y))
    order = torch.Generator().manual_seed(seed)

    def loss(network: nn.Module) -> Tensor:
        some = torch.randint(len(data.y), (BATCH,), generator=order)
        return cross_entropy(network(data.x[some]), data.y[some]).mean()

    steps = max(300, EPOCHS * len(data.y) // BATCH)
    fit(model.network, loss, steps=steps, learning_rate=0.005, weight_decay=1e-4, seed=seed)
    return accuracy(model.network, Labelled(model.inputs(test.x), torch.from_numpy(test.y)))
