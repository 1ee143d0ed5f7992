"""Public features: a frozen extractor that is fitted on the proxy set and on nothing else.

Under differential privacy a linear student on good features beats a deep one on pixels (Tramèr & Boneh 2021,
arXiv:2011.11660). What is fitted here has seen public examples only, so it costs no privacy.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional

from fedkd.errors import ConfigError, DataError

Floats = NDArray[np.float32]
Spec = dict[str, Any]

_BANK = {"psi0", "psi1", "at0", "at1", "phi0", "phi1"}
_HELD = {"none": {"mean", "scale"}, "pca": {"mean", "basis"}, "scattering": {"mean", "basis"} | _BANK}
KINDS = tuple(_HELD)
# Every kind is scaled to this mean norm on the proxies, so that one learning rate and one clip serve them all.
MEAN_NORM = 5.0
# Arrays are worked on in zero-padded chunks of one size: kernels choose their order of summation by shape, and an
# example must give the same bytes whatever batch it arrives in.
_CHUNK = 64
# Directions that carry less than this share of the largest variance are rounding noise: whitening would blow them up.
_RANK_TOLERANCE = 1e-7
_ANGLES = 8
_STEP = 4  # 2**J, J = 2


class FeatureMap(Protocol):
    """A frozen map from examples to features, a pure function of its arrays and of one example."""

    @property
    def dim(self) -> int:
        """Features of one example."""

    @property
    def spec(self) -> Spec:
        """What `restore` needs beside the arrays; JSON types only."""

    def __call__(self, x: Floats) -> Floats:
        """Maps examples [n, *shape] to features [n, dim]. Raises DataError for another shape."""


def fit_features(kind: str, proxy: Floats, *, components: int) -> FeatureMap:
    """Fits a feature map on the proxy examples [n, *shape] and on nothing else.

    `none` flattens, `pca` also projects, `scattering` (of [n, height, width] or [n, channels, height, width]) projects
    scattering coefficients. `components` is an upper bound: fewer are kept where the proxies span fewer directions,
    and `none` keeps all. Raises ConfigError for a kind or a shape that does not suit it, DataError for proxies that
    are all equal or not finite.
    """
    _check(kind, proxy, components)
    shape = proxy.shape[1:]
    bank = _filters(*shape[-2:]) if kind == "scattering" else {}
    raw = _chunked(_front({name: torch.from_numpy(array) for name, array in bank.items()}), proxy)
    if not np.isfinite(raw).all():
        raise DataError("The proxy examples have values that are not finite.")
    affine = _scalar(raw) if kind == "none" else _half_whitened_pca(raw, components)
    return _Fitted(kind, shape, bank | affine)


def arrays(features: FeatureMap) -> dict[str, NDArray[Any]]:
    """Everything `restore` needs beside `features.spec`: float32 and int64 arrays, ready for safetensors."""
    if not isinstance(features, _Fitted):
        raise TypeError(f"not a feature map of this module: {type(features).__name__}")
    return dict(features.held)


def restore(spec: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> FeatureMap:
    """Rebuilds a fitted map, which then gives the same bytes. Raises DataError where spec and arrays do not fit.

    The filters are stored rather than computed again: another machine's `exp` may differ in the last bit.
    """
    kind = spec.get("kind")
    if spec.get("version") != 1 or kind not in _HELD or set(arrays) != _HELD[kind]:
        raise DataError(f"Not a feature map of this version: {dict(spec)}, arrays {sorted(arrays)}")
    fitted = _Fitted(kind, tuple(spec["shape"]), {name: np.ascontiguousarray(array) for name, array in arrays.items()})
    if fitted.dim != spec["dim"]:
        raise DataError(f"The arrays give {fitted.dim} features where the description says {spec['dim']}.")
    return fitted


class FeatureNetwork(nn.Module):
    """A fitted map as a network without parameters: float32 examples [n, *shape] -> features [n, dim], unpadded."""

    def __init__(self, features: FeatureMap) -> None:
        super().__init__()
        for name, array in arrays(features).items():
            self.register_buffer(name, torch.from_numpy(array))

    def held(self) -> dict[str, Tensor]:
        """The arrays of the map by name."""
        return dict(self.named_buffers())

    def forward(self, x: Tensor) -> Tensor:
        held = self.held()
        return _affine(held)(_front(held)(x))


@dataclass(frozen=True, eq=False)
class _Fitted:
    kind: str
    shape: tuple[int, ...]
    held: dict[str, NDArray[Any]]

    @property
    def dim(self) -> int:
        return int(self.held["basis"].shape[1]) if "basis" in self.held else math.prod(self.shape)

    @property
    def spec(self) -> Spec:
        return {"version": 1, "kind": self.kind, "shape": list(self.shape), "dim": self.dim}

    def __call__(self, x: Floats) -> Floats:
        if x.shape[1:] != self.shape:
            raise DataError(f"These features take examples of shape {self.shape}, not {x.shape[1:]}.")
        return _chunked(FeatureNetwork(self), x)


# --- from raw coefficients to features ---


def _scalar(raw: Floats) -> dict[str, NDArray[Any]]:
    """One public mean and one public scale for all coordinates, so that zero pixels stay equal to one another."""
    mean = np.float32(raw.mean(dtype=np.float64))
    norm = _mean_norm(raw - mean)
    return {"mean": np.array([mean]), "scale": np.array([MEAN_NORM / norm], dtype=np.float32)}


def _half_whitened_pca(raw: Floats, components: int) -> dict[str, NDArray[Any]]:
    """Principal components divided by the fourth root of their variance.

    Between PCA (the first components drown the rest in a clipped gradient) and whitening (noise directions are
    as loud as signal): a component's standard deviation s becomes the square root of s.
    """
    mean = raw.mean(axis=0, dtype=np.float64)
    centred = raw - mean
    if not centred.any():
        raise DataError("The proxy examples are all equal: there is nothing to fit.")
    variance, basis = _principal(centred, components)
    basis = basis / variance**0.25
    basis *= MEAN_NORM / _mean_norm(centred @ basis)
    return {"mean": mean.astype(np.float32), "basis": np.ascontiguousarray(basis, dtype=np.float32)}


def _principal(centred: NDArray[np.float64], components: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances [k], falling, and orthonormal directions [d, k] of rows [n, d], by exact eigen-decomposition.

    Of the covariance or of the Gram matrix, whichever is smaller: they share their non-zero eigenvalues.
    """
    n, d = centred.shape
    wide = d > n
    with threadpool_limits(1, "blas"):  # sums are split among threads: their number must not change the last bits
        return _eigen(centred, components, wide)


def _eigen(
    centred: NDArray[np.float64], components: int, wide: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n = len(centred)
    square = centred @ centred.T if wide else centred.T @ centred
    values, vectors = np.linalg.eigh(square / n)
    kept = np.flatnonzero(values > _RANK_TOLERANCE * values[-1])[::-1][:components]
    basis = vectors[:, kept]
    if wide:
        basis = centred.T @ basis / np.sqrt(n * values[kept])
    # An eigenvector's sign is the solver's whim; the largest entry is made positive.
    peak = basis[np.abs(basis).argmax(axis=0), np.arange(len(kept))]
    return values[kept], basis * np.sign(peak)


def _mean_norm(rows: NDArray[Any]) -> float:
    norm = float(np.linalg.norm(rows.astype(np.float64), axis=1).mean())
    if norm == 0:
        raise DataError("The proxy examples are all equal: there is nothing to fit.")
    return norm


def _affine(held: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    if "basis" not in held:
        return lambda raw: (raw - held["mean"]) * held["scale"]
    return lambda raw: (raw - held["mean"]) @ held["basis"]


# --- scattering ---


def _front(bank: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Examples [n, *shape] to raw coefficients [n, d]: pixels, or scattering where there are filters."""
    return partial(_scatter, bank=bank) if "psi0" in bank else lambda x: x.flatten(1)


def _scatter(x: Tensor, bank: Mapping[str, Tensor]) -> Tensor:
    """Scattering of images [n, ..., height, width] with J = 2, 8 angles, order 2: [n, channels · 81 · h/4 · w/4].

    Bruna & Mallat 2013 (arXiv:1203.1513), section 2: |x ∗ ψ| averaged, then ||x ∗ ψ₁| ∗ ψ₂| averaged for scale 2 >
    scale 1, with the image's own average: 1 + 2·8 + 8·8 channels, ordered by path. Channels of x are independent.
    """
    images = x.reshape(-1, 1, x.shape[-2] * x.shape[-1])
    fine = _modulus(images, bank["psi0"], bank["at0"], 1)
    coarse = _modulus(images, bank["psi1"], bank["at1"], 2)
    pairs = _modulus(fine, bank["psi1"], bank["at1"], 2)
    averages = (images @ bank["phi0"], fine @ bank["phi0"], coarse @ bank["phi1"], pairs @ bank["phi1"])
    return torch.cat(averages, dim=1).reshape(len(x), -1)


def _modulus(images: Tensor, psi: Tensor, at: Tensor, stride: int) -> Tensor:
    """|x ∗ ψ| of images [n, m, height · width] -> [n, m · angles, positions].

    The filters [2 · angles, 1, k, k] are real parts, then imaginary ones; `at` [rows, columns] are the pixels of the
    image with its mirrored border. What a convolution of the network's kind leaves out, flipping the filter, would
    only conjugate a Morlet wavelet.
    """
    flat = images.reshape(-1, images.shape[2])
    bordered = flat.index_select(1, at.flatten()).reshape(-1, 1, *at.shape)
    waves = functional.conv2d(bordered, psi, stride=stride).flatten(2)
    return torch.hypot(waves[:, :_ANGLES], waves[:, _ANGLES:]).reshape(len(images), -1, waves.shape[2])


def _filters(height: int, width: int) -> dict[str, NDArray[Any]]:
    """The filter bank for images of one size, with the constants of Bruna & Mallat as Kymatio has them.

    Scale j has an envelope of 0.8 · 2^j pixels and the centre frequency 3π/4 / 2^j; the average has 0.8 · 2^(J−1).
    Borders are mirrored, so any size of at least one coefficient works.
    """
    bank: dict[str, NDArray[Any]] = {}
    for j in (0, 1):
        waves = [_morlet(0.8 * 2**j, 3 * np.pi / 4 / 2**j, np.pi / _ANGLES * (3 - a)) for a in range(_ANGLES)]
        psi = np.stack([wave.real for wave in waves] + [wave.imag for wave in waves])
        rows, columns = (_average(-(-n // 2**j), _STEP // 2**j, 1.6 / 2**j) for n in (height, width))
        bank[f"psi{j}"] = psi[:, None].astype(np.float32)
        bank[f"at{j}"] = _bordered(psi.shape[1] // 2, height, width)
        bank[f"phi{j}"] = np.ascontiguousarray(np.kron(rows, columns).T, dtype=np.float32)
    return bank


def _morlet(sigma: float, frequency: float, angle: float) -> NDArray[np.complex128]:
    """A Morlet wavelet: a Gaussian times a wave, less the multiple of the Gaussian that makes the mean zero.

    The envelope is twice as long across the wave as along it, and cut where convolutions get dear.
    """
    radius = round(4.4 * sigma)
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    along = rows * np.cos(angle) + columns * np.sin(angle)
    across = rows * np.sin(angle) - columns * np.cos(angle)
    slant = 4 / _ANGLES
    envelope = np.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2)) * slant / (2 * np.pi * sigma**2)
    wave = envelope * np.exp(1j * frequency * along)
    return cast(NDArray[np.complex128], wave - envelope * (wave.sum() / envelope.sum()))


def _bordered(radius: int, height: int, width: int) -> NDArray[np.int64]:
    """Pixel numbers [height + 2 · radius, width + 2 · radius] of an image with a mirrored border."""
    rows, columns = (_mirror(np.arange(-radius, n + radius), n) for n in (height, width))
    return rows[:, None] * width + columns


def _mirror(positions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Positions on a line that is mirrored at both ends, however far out: … 1 0 | 0 1 … n−1 | n−1 n−2 …"""
    folded = positions % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def _average(size: int, step: int, sigma: float) -> NDArray[np.float64]:
    """Gaussian averages [⌈size/step⌉, size] at every `step`-th position of a mirrored line, each of sum one."""
    radius = math.ceil(5 * sigma)
    matrix = np.zeros((-(-size // step), size))
    for row, centre in enumerate(range(0, size, step)):
        positions = np.arange(centre - radius, centre + radius + 1)
        np.add.at(matrix[row], _mirror(positions, size), np.exp(-((positions - centre) ** 2) / (2 * sigma**2)))
    return cast(NDArray[np.float64], matrix / matrix.sum(axis=1, keepdims=True))


# --- the same bytes whatever the batch ---


def _chunked(function: Callable[[Tensor], Tensor], x: Floats) -> Floats:
    """Applies a function of rows in chunks of one size, the last one padded with zeros, on one thread."""
    parts = []
    with torch.no_grad(), _one_thread():
        for start in range(0, max(len(x), 1), _CHUNK):
            part = np.zeros((_CHUNK, *x.shape[1:]), dtype=np.float32)
            taken = part[: len(x) - start]
            taken[...] = x[start : start + _CHUNK]
            parts.append(function(torch.from_numpy(part))[: len(taken)].numpy())
    return np.concatenate(parts)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads split sums by their number; torch has one setting for the process, so it is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(kind: str, proxy: Floats, components: int) -> None:
    if kind not in KINDS:
        raise ConfigError(f"Unknown features {kind!r}.", fix=f"one of {', '.join(KINDS)}")
    if len(proxy) < 2 or proxy.ndim < 2:
        raise DataError(f"Features need at least two proxy examples, not an array of shape {proxy.shape}.")
    if kind == "scattering" and proxy.ndim not in (3, 4):
        raise ConfigError(f"Scattering takes images, not examples of shape {proxy.shape[1:]}.", fix="pca or none")
    if components < 1:
        raise ConfigError(f"components must be at least 1, not {components}.")
