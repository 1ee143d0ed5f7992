"""The noise itself: what a key gives, and what arrives in the weights of real agents that hold no data at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.data.proxy import ProxySet
from fedkd.data.sources import Examples
from fedkd.distill.model import ProxyView
from fedkd.privacy.audit import Evidence, Scores
from fedkd.privacy.contract import Contract
from fedkd.privacy.noise import NoiseSource, fresh_key, simulation_key
from fedkd.privacy.noise_audit import (
    Cdf,
    correlation,
    discrete_gaussian_cdf,
    distance,
    lags,
    most_correlated,
    normal_cdf,
    pairs,
    shortfall,
)
from simulations.audits import client as made_up
from simulations.audits.setting import Setting, charged, claimed

VARIANCE = 40
SAMPLERS: dict[str, tuple[Callable[[NoiseSource, int], NDArray[Any]], float, Cdf]] = {
    "normal": (lambda source, n: source.normal((n,), 1.0), 1.0, normal_cdf(1.0)),
    "discrete Gaussian": (
        lambda source, n: source.discrete_gaussian((n,), VARIANCE),
        math.sqrt(VARIANCE),
        discrete_gaussian_cdf(VARIANCE),
    ),
}
"""Draws n values; the standard deviation and the distribution that they are said to have."""

LAGS = (1, 2, 3, 8, 64)
SIDE = 20  # pixels of a side of the made-up images
CLIENTS, RUNS, ROUNDS = ("client-0", "client-1"), ("run-0", "run-1"), 2
KEYS_KNOWN = "knows everything but the noise"


def source_evidence(setting: Setting) -> Iterator[Evidence]:
    """What keys of several clients, runs and rounds give, for every sampler."""
    keys = {"fresh": [fresh_key() for _ in range(2)]}
    keys["simulated"] = [
        simulation_key(setting.scenario.seed, c, r, n) for c in CLIENTS for r in RUNS for n in (1, ROUNDS)
    ]
    for name, (draw, std, cdf) in SAMPLERS.items():
        setting.tell(f"noise source, {name}")
        streams = {
            f"{kind} key {index}": draw(NoiseSource(key), setting.sizes.draws).astype(np.float64)
            for kind, some in keys.items()
            for index, key in enumerate(some)
        }
        yield from _shape(f"noise source, {name}", streams, std, cdf)


def _shape(audit: str, streams: dict[str, Scores], std: float, cdf: Cdf) -> Iterator[Evidence]:
    sample = np.concatenate(list(streams.values()))
    compared = pairs(streams) | {k: v for name, stream in streams.items() for k, v in lags(stream, LAGS, name).items()}
    seen = {"draws": sample.size, "streams": len(streams)}
    yield Evidence(
        f"{audit}: size (chi-squared)",
        "claimed over true standard deviation",
        1.0,
        KEYS_KNOWN,
        lambda alpha: shortfall(sample, std, alpha),
        seen | {"standard_deviation": float(np.sqrt(np.mean(np.square(sample)))), "claimed": std},
    )
    yield Evidence(
        f"{audit}: shape (Kolmogorov-Smirnov)",
        "Kolmogorov distance to the claimed distribution",
        0.0,
        KEYS_KNOWN,
        lambda alpha: distance(sample, cdf, alpha),
        seen,
    )
    yield Evidence(
        f"{audit}: dependence (Fisher)",
        "|correlation| of two streams, or of coordinates within one",
        0.0,
        "sees several releases and compares them",
        lambda alpha: correlation(compared, alpha),
        seen | {"pairs": len(compared), "most_correlated": most_correlated(compared)},
    )


def update_evidence(setting: Setting) -> Iterator[Evidence]:
    """Updates of agents without data are pure noise: its size as an epsilon, its shape, and whether two clients, runs
    or rounds share it; for keys of the operating system and for simulated ones."""
    public = made_up.made_up_proxies(SIDE)
    for keys, seed in {"operating system": None, "simulated": setting.scenario.seed}.items():
        audit = f"noise in the weights, keys: {keys}"
        setting.tell(audit)
        streams: dict[str, Scores] = {}
        with TemporaryDirectory() as folder:
            public.save(Path(folder) / "proxy.safetensors")
            for name in CLIENTS:
                for run in RUNS:
                    found, contract = _updates(setting, Path(folder), public, name, run, seed)
                    streams |= found
        size, *others = _shape(audit, streams, 1.0, normal_cdf(1.0))
        yield _as_epsilon(setting, size, contract)
        yield from others


def _updates(
    setting: Setting, folder: Path, public: ProxySet, name: str, run: str, seed: int | None
) -> tuple[dict[str, Scores], Contract]:
    """Updates of one run by round, scaled to what should be N(0, 1)."""
    policy = made_up.policy_of(setting.scenario.privacy, public, nominal=1, seed=seed)
    client = made_up.client_of(setting, name, folder / "proxy.safetensors")
    client = made_up.without_momentum(client, learning_rate=1.0 / policy.clip)
    # without terms, the update has no public part
    client = client.model_copy(update={"training": client.training.model_copy(update={"terms": {}})})
    nothing = Examples(np.zeros((0, *public.shape), np.float32), np.zeros(0, np.int64), public.classes)
    found = {}
    with made_up.opened(folder / f"{name}-{run}", policy, client, nothing) as agent:
        played = made_up.Run(agent, setting.scenario, ProxyView(public, setting.base), run)
        (event,), training = played.contract.events, played.contract.training
        std = event.noise_multiplier * math.sqrt(training.steps) / training.nominal_batch
        before = made_up.weights(agent)
        for number, _ in zip(range(1, ROUNDS + 1), played.rounds(), strict=False):
            after = made_up.weights(agent)
            found[f"{name}, {run}, round {number}"] = (after - before) / std
            before = after
    return found, played.contract


def _as_epsilon(setting: Setting, size: Evidence, contract: Contract) -> Evidence:
    def bound(alpha: float) -> float:
        times = size.bound(alpha)
        return times if math.isinf(times) else charged(contract, setting.delta, times)

    return Evidence(
        f"{size.audit}, as Gaussian noise on sums of sensitivity = clip",
        setting.quantity,
        claimed(contract, setting.delta),
        "knows every record but one and sees the weights of every round (white box)",
        bound,
        size.observed,
    )
