"""Plain training on our MNIST-1D, beside what is published for the original: is it the same problem?

python benchmarks/mnist1d.py --seeds 42 43 44
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedkd.config import Data
from fedkd.data import sources

BATCH, LEARNING_RATE = 100, 0.01
WIDTH, CHANNELS = 100, 25


class Residual(nn.Sequential):
    """Adds its input to its output."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def linear() -> nn.Module:
    """Logistic regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 10))


def mlp() -> nn.Module:
    """Two hidden layers of 100, the second around a skip connection."""
    hidden = Residual(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    return nn.Sequential(nn.Flatten(), nn.Linear(40, WIDTH), nn.ReLU(), hidden, nn.Linear(WIDTH, 10))


def cnn() -> nn.Module:
    """Three strided convolutions of 25 channels."""
    layers: list[nn.Module] = [nn.Conv1d(1, CHANNELS, 5, 2, 1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv1d(CHANNELS, CHANNELS, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * CHANNELS, 10))


# Greydanus & Kobak 2024 (arXiv:2011.14439), test accuracy; their architectures, optimiser and number of steps.
PUBLISHED: dict[Callable[[], nn.Module], float] = {linear: 0.32, mlp: 0.68, cnn: 0.94}


def main() -> None:
    """Train every model on data of every seed, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="of data and initial weights")
    parser.add_argument("--steps", type=int, default=6000)
    options = parser.parse_args()
    print("| model | test accuracy, mean (min-max) | published |\n| --- | --- | --- |")
    for make, published in PUBLISHED.items():
        found = [accuracy(make, seed, options.steps) for seed in options.seeds]
        spread = f"{min(found):.1%}-{max(found):.1%}"
        print(f"| {make.__name__} | {statistics.mean(found):.1%} ({spread}) | {published:.0%} |", flush=True)


def accuracy(make: Callable[[], nn.Module], seed: int, steps: int) -> float:
    """Test accuracy after training with Adam on mini-batches."""
    train, test = sources.load(Data(source="mnist1d", seed=seed), Path())
    assert test is not None
    torch.manual_seed(seed)
    network, x, y = make(), torch.from_numpy(train.x), torch.from_numpy(train.y)
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    for step in range(steps):
        at = step * BATCH % len(x)  # in one fixed order, as published
        optimiser.zero_grad()
        cross_entropy(network(x[at : at + BATCH]), y[at : at + BATCH]).backward()
        optimiser.step()
    with torch.no_grad():
        first = network(torch.from_numpy(test.x)).argmax(dim=1)
    return float((first == torch.from_numpy(test.y)).float().mean())


if __name__ == "__main__":
    main()
