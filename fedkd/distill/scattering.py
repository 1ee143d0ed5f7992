"""Scattering: averages of the moduli of wavelets, a frozen front for images that is fitted on nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

HELD = frozenset({"psi0", "psi1", "at0", "at1", "phi0", "phi1"})
_ANGLES = 8
_STEP = 4  # 2**J, J = 2


def scatter(x: Tensor, bank: Mapping[str, Tensor]) -> Tensor:
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


def filters(height: int, width: int) -> dict[str, NDArray[Any]]:
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
