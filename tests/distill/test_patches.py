"""Patch features are those of Coates, Lee & Ng 2011, fitted on the proxies alone, and joined with others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fedkd.distill import patches
from fedkd.distill.features import arrays, fit_features
from fedkd.errors import ConfigError, DataError

Floats = NDArray[np.float32]


def images(n: int, *shape: int) -> Floats:
    return np.random.default_rng(3).random((n, *shape), dtype=np.float32)


def encoded(x: Floats, held: dict[str, NDArray[np.float32]]) -> Floats:
    return patches.encode(torch.from_numpy(x), {name: torch.from_numpy(a) for name, a in held.items()}).numpy()


def test_an_image_is_coded_as_the_paper_says() -> None:
    """Section 3: patches normalised and whitened, f_k = max(0, mean(z) - z_k) of distances z to the centroids, then
    averages over a grid."""
    x = images(40, 2, 11, 11)
    held = patches.fit(x)
    expected = np.zeros((len(held["centroids"]), 6, 6))
    for row in range(6):
        for column in range(6):
            patch = x[0, :, row : row + 6, column : column + 6].astype(np.float64).ravel()
            patch = (patch - patch.mean()) / np.sqrt(patch.var() + held["floor"][0])
            seen = (patch - held["centre"]) @ held["whitening"]
            z = np.linalg.norm(seen - held["centroids"], axis=1)
            expected[:, row, column] = np.maximum(0, z.mean() - z)
    regions = expected.reshape(-1, 3, 2, 3, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(encoded(x[:1], held)[0], regions.ravel(), atol=1e-4)


def test_the_patches_are_whitened_with_the_papers_floor() -> None:
    x = images(300, 12, 12)
    held = patches.fit(x)
    rows = patches._normalised(torch.from_numpy(patches._sample(x)), torch.from_numpy(held["floor"])).numpy()
    values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))
    after = np.linalg.eigvalsh(np.cov((rows - held["centre"]) @ held["whitening"], rowvar=False, bias=True))
    np.testing.assert_allclose(np.sort(values / (values + 0.1)), after, atol=1e-4)


def test_the_unit_of_the_pixels_does_not_matter() -> None:
    x = images(30, 10, 10)
    one, other = patches.fit(x), patches.fit(x * 255)
    np.testing.assert_allclose(encoded(x[:2], one), encoded(x[:2] * 255, other), atol=1e-3)


@pytest.mark.parametrize(("n", "side", "centroids"), [(5, 8, 4), (40, 8, 36), (200, 12, 600)])
def test_there_are_600_centroids_or_a_tenth_of_the_patches(n: int, side: int, centroids: int) -> None:
    assert patches.fit(images(n, side, side))["centroids"].shape == (centroids, 36)


def test_the_same_proxies_give_the_same_bytes_whatever_the_threads() -> None:
    x, found = images(150, 10, 10), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(arrays(fit_features("scattering+patches", x, components=20)))
    assert found[0].keys() == found[1].keys()
    assert all(array.tobytes() == found[1][name].tobytes() for name, array in found[0].items())


def test_joined_features_are_their_parts_side_by_side() -> None:
    x = images(60, 10, 10)
    joined = fit_features("scattering+patches", x, components=12)
    parts = [fit_features(kind, x, components=12)(x) for kind in ("scattering", "patches")]
    assert joined.dim == 24 and joined.spec["kind"] == "scattering+patches"
    got = joined(x)
    factor = got[0, 0] / parts[0][0, 0]
    np.testing.assert_allclose(got, factor * np.concatenate(parts, axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 9), (1, 8, 7), (64,)])
def test_images_too_small_for_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="patches takes images"):
        fit_features("patches", images(5, *shape), components=3)


def test_images_that_are_all_flat_are_refused() -> None:
    x = np.ones((9, 8, 8), np.float32) * np.arange(9, dtype=np.float32)[:, None, None]
    with pytest.raises(DataError, match="flat"):
        fit_features("patches", x, components=3)
