import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fedkd.config import FEATURES
from fedkd.distill.features import MEAN_NORM, FeatureMap, arrays, fit_features, restore
from fedkd.distill.features import _chunked as chunked
from fedkd.distill.fronts import front
from fedkd.distill.scattering import filters
from fedkd.errors import ConfigError, DataError

Floats = NDArray[np.float32]

# Kymatio 0.3.0, Scattering2D(J=2), of `grating` in the middle of a 96 × 96 image, read at row 3, column 3 of the
# image's own 7 × 7 coefficients: the average; scale 0, 8 angles; scale 1, 8 angles; first and second angle, 8 × 8.
KYMATIO_AVERAGE = 0.35956
KYMATIO_FIRST = [
    [0.04130, 0.07487, 0.08371, 0.05517, 0.02717, 0.01318, 0.00892, 0.01565],
    [0.04106, 0.11055, 0.13543, 0.06479, 0.02929, 0.02226, 0.01995, 0.02093],
]
KYMATIO_SECOND = [
    [0.002019, 0.003938, 0.004754, 0.003989, 0.002682, 0.002107, 0.001799, 0.001691],
    [0.004123, 0.005743, 0.006668, 0.005563, 0.004355, 0.003719, 0.003380, 0.003381],
    [0.004709, 0.006534, 0.007521, 0.005967, 0.004844, 0.004164, 0.003758, 0.003745],
    [0.003436, 0.005165, 0.005512, 0.004008, 0.003113, 0.002684, 0.002453, 0.002493],
    [0.002548, 0.004293, 0.004043, 0.003033, 0.001099, 0.000858, 0.000953, 0.001329],
    [0.001650, 0.002594, 0.001958, 0.001823, 0.001241, 0.001239, 0.000894, 0.000819],
    [0.000840, 0.001098, 0.001844, 0.001123, 0.000410, 0.001098, 0.001682, 0.001303],
    [0.001367, 0.001887, 0.003299, 0.002878, 0.001527, 0.000750, 0.000287, 0.000294],
]


def images(n: int, *shape: int) -> Floats:
    return np.random.default_rng(7).random((n, *shape), dtype=np.float32)


def grating() -> Floats:
    rows, columns = np.mgrid[:28, :28]
    envelope = np.exp(-((rows - 14) ** 2 + (columns - 12) ** 2) / 32)
    wave = (1 + np.cos(0.9 * rows + 0.5 * columns)) / 2
    return np.asarray(envelope * wave, dtype=np.float32)


def scatter(x: Floats) -> Floats:
    bank = {name: torch.from_numpy(array) for name, array in filters(*x.shape[-2:]).items()}
    return chunked(front("scattering", bank), x)


@pytest.fixture(scope="module", params=[*FEATURES, "scattering+patches"])
def fitted(request: pytest.FixtureRequest) -> FeatureMap:
    return fit_features(request.param, images(60, 8, 8), components=20)


def test_scattering_is_kymatios() -> None:
    got = scatter(grating()[None]).reshape(81, 7, 7)[:, 3, 3]
    # The filters are cut to 9 and 15 pixels, which costs about a hundredth of the largest coefficient of an order.
    np.testing.assert_allclose(got[0], KYMATIO_AVERAGE, rtol=1e-3)
    np.testing.assert_allclose(got[1:17].reshape(2, 8), KYMATIO_FIRST, atol=0.01 * 0.135)
    np.testing.assert_allclose(got[17:].reshape(8, 8), KYMATIO_SECOND, atol=0.015 * 0.0075)


def test_a_flat_image_has_an_average_and_no_waves() -> None:
    coefficients = scatter(np.full((1, 12, 12), 0.5, dtype=np.float32)).reshape(81, 9)
    np.testing.assert_allclose(coefficients[0], 0.5, rtol=1e-5)
    np.testing.assert_allclose(coefficients[1:], 0, atol=1e-5)


def test_turning_an_image_by_a_right_angle_turns_the_angles() -> None:
    image = np.zeros((1, 29, 29), dtype=np.float32)  # 29 = 7 · 4 + 1: the coefficients' grid has the image's centre
    image[0, 8:21, 8:21] = images(1, 13, 13)[0]
    upright = scatter(image).reshape(81, 8, 8)[1:9]
    turned = scatter(np.rot90(image, axes=(1, 2)).copy()).reshape(81, 8, 8)[1:9]
    np.testing.assert_allclose(np.rot90(np.roll(upright, 4, axis=0), axes=(1, 2)), turned, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "coefficients"), [((28, 28), 3969), ((8, 8), 324), ((3, 8, 8), 972), ((2, 5, 7), 648), ((1, 1), 81)]
)
def test_scattering_takes_images_of_any_size(shape: tuple[int, ...], coefficients: int) -> None:
    assert scatter(images(2, *shape)).shape == (2, coefficients)


def test_channels_are_scattered_one_by_one() -> None:
    x = images(2, 3, 8, 8)
    apart = [scatter(x[:, channel]) for channel in range(3)]
    np.testing.assert_allclose(scatter(x), np.concatenate(apart, axis=1), rtol=1e-5, atol=1e-7)


def test_an_example_gives_the_same_bytes_in_any_batch(fitted: FeatureMap) -> None:
    x = images(70, 8, 8)
    whole = fitted(x)
    assert b"".join(fitted(x[i : i + 1]).tobytes() for i in range(70)) == whole.tobytes()
    assert fitted(x[::-1])[::-1].tobytes() == whole.tobytes()
    assert fitted(x[13:50]).tobytes() == whole[13:50].tobytes()


@pytest.mark.parametrize("components", range(1, 16))
def test_so_do_few_components(components: int) -> None:
    x = images(64, 8, 8)
    found = fit_features("pca", x, components=components)
    assert b"".join(found(x[i : i + 1]).tobytes() for i in range(64)) == found(x).tobytes()


def test_the_number_of_threads_is_neither_felt_nor_changed(fitted: FeatureMap) -> None:
    x, before = images(40, 8, 8), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = fitted(x)
        torch.set_num_threads(2)
        assert fitted(x).tobytes() == alone.tobytes()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_restored_map_gives_the_same_bytes(fitted: FeatureMap) -> None:
    again = restore(json.loads(json.dumps(fitted.spec)), arrays(fitted))
    x = images(40, 8, 8)
    assert again(x).tobytes() == fitted(x).tobytes()
    assert (again.dim, again.spec) == (fitted.dim, fitted.spec)


def test_features_are_a_float_matrix_of_a_known_mean_norm_on_the_proxies(fitted: FeatureMap) -> None:
    features = fitted(images(60, 8, 8))
    assert features.shape == (60, fitted.dim)
    assert features.dtype == np.float32
    assert np.linalg.norm(features, axis=1).mean() == pytest.approx(MEAN_NORM, rel=1e-3)


def test_no_examples_give_no_features(fitted: FeatureMap) -> None:
    assert fitted(images(0, 8, 8)).shape == (0, fitted.dim)


@pytest.mark.parametrize("n", [40, 400])
def test_components_are_centred_uncorrelated_and_half_whitened(n: int) -> None:
    proxy = images(n, 10, 10) * np.linspace(0.1, 2, 10, dtype=np.float32)
    features = fit_features("pca", proxy, components=12)(proxy).astype(np.float64)
    covariance = features.T @ features / n
    variance = np.linalg.eigvalsh(np.cov(proxy.reshape(n, -1).T, bias=True))[::-1][:12]
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(covariance / covariance[0, 0], np.diag(np.sqrt(variance / variance[0])), atol=1e-4)


def test_components_are_an_upper_bound() -> None:
    assert fit_features("pca", images(50, 4, 4), components=600).dim == 16
    assert fit_features("pca", images(10, 8, 8), components=600).dim == 9  # ten points span nine directions


def test_fitting_twice_gives_the_same_arrays() -> None:
    first, second = (arrays(fit_features("scattering", images(30, 8, 8), components=10)) for _ in range(2))
    assert {name: a.tobytes() for name, a in first.items()} == {name: a.tobytes() for name, a in second.items()}


def test_the_number_of_blas_threads_is_not_felt_by_what_is_fitted() -> None:
    rows = images(1500, 300)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            found.append(arrays(fit_features("pca", rows, components=200)))
    assert all(np.array_equal(array, found[1][name]) for name, array in found[0].items())


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ConfigError, match="sift"):
        fit_features("sift", images(5, 8, 8), components=5)
    with pytest.raises(ConfigError, match="images"):
        fit_features("scattering", images(5, 64), components=5)
    with pytest.raises(ConfigError, match="components"):
        fit_features("pca", images(5, 8, 8), components=0)
    with pytest.raises(DataError, match="two"):
        fit_features("pca", images(1, 8, 8), components=5)
    with pytest.raises(DataError, match="finite"):
        fit_features("pca", np.full((5, 4), np.nan, dtype=np.float32), components=5)


@pytest.mark.parametrize("kind", FEATURES)
def test_equal_proxies_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match="equal"):
        fit_features(kind, np.ones((5, 8, 8), dtype=np.float32), components=5)


def test_other_shapes_and_other_artefacts_are_refused(fitted: FeatureMap) -> None:
    with pytest.raises(DataError, match="shape"):
        fitted(images(2, 9, 8))
    held = arrays(fitted)
    with pytest.raises(DataError, match="version"):
        restore({**fitted.spec, "version": 2}, held)
    with pytest.raises(DataError, match="arrays"):
        restore(fitted.spec, {**held, "extra": np.ones(1, np.float32)})
    with pytest.raises(DataError, match="features"):
        restore({**fitted.spec, "dim": 3}, held)
