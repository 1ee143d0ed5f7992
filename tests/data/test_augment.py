"""Further proxy examples: the same for everybody, and made of public ones alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.config import Scenario, load
from fedkd.data import proxy
from fedkd.data.augment import further
from fedkd.data.proxy import ProxySet
from fedkd.distill import features
from fedkd.distill.model import ProxyView
from fedkd.distill.teacher import Teacher
from fedkd.errors import ConfigError, WireError
from fedkd.wire import Offer, decode, encode, pool
from simulations.runner import Options, Simulation
from tests import builders


def public(*shape: int, seed: int = 0) -> ProxySet:
    x = np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)
    fitted = features.fit_features("none", x.astype(np.float32) / 255, components=3)
    return proxy.build(x, None, 3, fitted.spec, features.arrays(fitted), {"source": "a test"})


IMAGES = public(20, 8, 8)
SPECS = ["mixup:1", "mixup:3", "shift:1", "shift:2"]


@pytest.mark.parametrize("spec", SPECS)
def test_server_and_clients_make_the_same_examples_of_the_same_file(spec: str, tmp_path: Path) -> None:
    IMAGES.save(tmp_path / "proxy.safetensors")
    here, there = (ProxyView(ProxySet.load(tmp_path / "proxy.safetensors"), tmp_path) for _ in range(2))
    assert here.inputs("features", spec).numpy().tobytes() == there.inputs("features", spec).numpy().tobytes()
    assert len(here.inputs("raw", spec)) == pool(20, spec)
    assert (here.inputs("raw", spec)[:20] == here.inputs("raw")).all()


@pytest.mark.parametrize("spec", SPECS)
def test_another_proxy_set_or_copy_has_other_ones(spec: str) -> None:
    made, other = further(IMAGES, spec), further(public(20, 8, 8, seed=1), spec)
    assert made.dtype == np.float32 and made.shape == (pool(20, spec) - 20, 8, 8)
    assert (made != other).any() and len(np.unique(made, axis=0)) > 0.9 * len(made)


def test_nothing_is_added_where_nothing_is_asked_for() -> None:
    assert further(IMAGES, "none").shape == (0, 8, 8)


def test_a_mixture_lies_between_two_examples() -> None:
    x = IMAGES.examples.astype(np.float32).reshape(20, -1) / 255
    for mixed in further(IMAGES, "mixup:1").reshape(20, -1):
        pairs = [(a, b) for a in x for b in x]
        off = min(np.linalg.norm(a + np.clip(share(mixed, a, b), 0, 1) * (b - a) - mixed) for a, b in pairs)
        assert off < 1e-4


def share(mixed: Any, a: Any, b: Any) -> float:
    along = b - a
    return float((mixed - a) @ along / max(along @ along, 1e-12))


@pytest.mark.parametrize("shape", [(20, 8, 8), (20, 3, 28, 28)])
def test_a_shift_moves_every_image_by_a_few_pixels_and_never_by_none(shape: tuple[int, ...]) -> None:
    one = public(*shape)
    x, reach = one.examples.astype(np.float32) / 255, max(1, shape[-1] // 14)
    for image, moved in zip(x, further(one, "shift:1"), strict=True):
        inner = moved[..., reach:-reach, reach:-reach]
        n = shape[-1] - 2 * reach
        found = [
            (a, b)
            for a in range(2 * reach + 1)
            for b in range(2 * reach + 1)
            if np.allclose(image[..., a : a + n, b : b + n], inner)
        ]
        assert len(found) == 1 and found != [(reach, reach)]


def test_what_is_no_image_cannot_be_shifted() -> None:
    with pytest.raises(ConfigError, match="only images"):
        further(public(20, 6), "shift:1")
    assert further(public(20, 6), "mixup:1").shape == (20, 6)


@pytest.mark.parametrize("spec", ["mixup", "mixup:0", "mixup:10", "shift:-1", "other:1", ""])
def test_an_offer_of_something_else_is_refused(spec: str) -> None:
    with pytest.raises(WireError, match="augment"):
        decode(encode(builders.offer(augment=spec)), Offer)


@pytest.mark.parametrize("mechanism", ["gaussian", "sum", "votes"])
def test_where_every_answer_costs_more_of_them_are_refused(mechanism: str) -> None:
    settings = ["clients=50", "privacy.accept_low_utility=true", f"privacy.mechanism={mechanism}"]
    with pytest.raises(ConfigError, match="every answer costs"):
        load(Scenario, None, [*settings, "augment.kind=mixup"])


def test_the_teacher_learns_from_all_that_was_asked_and_labels_the_proxy_set_alone(tmp_path: Path) -> None:
    config = load(Scenario, None, ["augment.kind=mixup", "augment.copies=2"])
    teacher = Teacher(config.teacher, ProxyView(IMAGES, tmp_path), 0, tmp_path, config.augment.spec)
    assert teacher.soft_labels(1.0).shape == (20, 3)
    entropies = teacher.entropies()
    assert entropies.shape == (60,) and (entropies >= 0).all() and (entropies <= np.log(3) + 1e-6).all()


def test_a_run_that_asks_on_further_examples_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    settings = ["clients=2", "rounds=2", "baselines=false", "training.distil_steps=0", "features.kind=pca",
                "privacy.mechanism=none", "privacy.steps=2", "teacher.steps=20", "codec=label+zlib", "proxy.size=200",
                "augment.kind=shift", "aggregate.queries=150", "aggregate.choose=entropy"]  # fmt: skip
    scenario = load(Scenario, None, settings)
    whole = Simulation(scenario, Options(tmp_path / "whole", tmp_path, tell=lambda text: None)).run()
    stops = iter([False, True])
    halves = Options(tmp_path / "halves", tmp_path, tell=lambda text: None, stop=lambda: next(stops))
    assert Simulation(scenario, halves).run() is None
    rest = Simulation(scenario, replace(halves, resume=True, stop=lambda: False)).run()
    assert whole is not None and rest is not None
    assert whole["teacher_accuracy"] == rest["teacher_accuracy"] > 0.5
    teachers = [(tmp_path / name / "teacher.safetensors").read_bytes() for name in ("whole", "halves")]
    assert teachers[0] == teachers[1]
