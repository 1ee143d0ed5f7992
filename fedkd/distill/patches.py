"""Patch features learned without labels: Coates, Lee & Ng 2011, "An analysis of single-layer networks in unsupervised
feature learning", section 3: k-means on whitened patches, triangle coding, averages over a grid."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from fedkd.errors import DataError
from fedkd.rng import derive, generator

HELD = frozenset({"floor", "centre", "whitening", "centroids"})
SIDE = 6  # pixels of a patch
GRID = 3  # averages a side
SMALLEST = SIDE + GRID - 1  # side of an image
_CENTROIDS = 600
_PATCHES = 100_000  # on which whitening and centroids are fitted, at the most
_PATCHES_A_CENTROID = 10
# The paper adds 10 to a patch's variance in grey levels of 0..255 before dividing by its root; as a share of the mean
# variance it does not depend on the unit.
_FLOOR = 0.01
_ZCA = 0.1
_ITERATIONS = 50


def fit(proxy: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Whitening and centroids of random patches of images [n, (channels,) height, width]; the same for the same images.

    The 600 centroids are fewer where there are less than ten different patches for each. Raises DataError for images
    that are all flat.
    """
    rows = _sample(proxy)
    if not rows.var(axis=1).any():
        raise DataError("The proxy examples are all equal, or flat: there is nothing to fit.")
    floor = np.float32(_FLOOR * rows.var(axis=1, dtype=np.float64).mean())
    normal = _normalised(torch.from_numpy(rows), torch.tensor([floor])).numpy()
    with threadpool_limits(1):  # sums are split among threads: their number must not change the last bits
        centre, whitening = _zca(normal)
        centroids = _centroids((normal - centre) @ whitening)
    return {"floor": np.array([floor]), "centre": centre, "whitening": whitening, "centroids": centroids}


def encode(x: Tensor, held: Mapping[str, Tensor]) -> Tensor:
    """Images [n, ..., height, width] to [n, centroids · 9]: what each centroid is nearer than the average one, averaged
    over 3 × 3 regions. One image after another, so that an image gives the same bytes in any batch."""
    return torch.stack([_encode(image, held) for image in x.reshape(len(x), -1, *x.shape[-2:])])


def _encode(image: Tensor, held: Mapping[str, Tensor]) -> Tensor:
    rows, columns = (side - SIDE + 1 for side in image.shape[-2:])
    patches = functional.unfold(image[None], SIDE)[0].T
    seen = (_normalised(patches, held["floor"]) - held["centre"]) @ held["whitening"]
    centroids = held["centroids"]
    squares = torch.addmm(centroids.square().sum(1), seen, centroids.T, alpha=-2).add_(seen.square().sum(1)[:, None])
    distance = squares.clamp_(min=0).sqrt_()
    triangle = (distance.mean(dim=1, keepdim=True) - distance).clamp_(min=0)
    return (_regions(rows, columns) @ triangle).T.flatten()


@lru_cache
def _regions(rows: int, columns: int) -> Tensor:
    """Means over the 3 × 3 regions of a grid, as a matrix [9, rows · columns]."""
    each = []
    for size in (rows, columns):
        ends = [(part * size // GRID, -(-(part + 1) * size // GRID)) for part in range(GRID)]
        inside = np.array([[start <= at < stop for at in range(size)] for start, stop in ends], np.float32)
        each.append(inside / inside.sum(axis=1, keepdims=True))
    return torch.from_numpy(np.kron(*each))


def _sample(proxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Random patches [m, channels · 36]."""
    windows = sliding_window_view(proxy.reshape(len(proxy), -1, *proxy.shape[-2:]), (SIDE, SIDE), axis=(2, 3))
    n, _, rows, columns = windows.shape[:4]
    total = n * rows * columns
    chosen = generator(0, "patches").choice(total, min(total, _PATCHES), replace=False)
    image, row, column = np.unravel_index(chosen, (n, rows, columns))
    return np.ascontiguousarray(windows[image, :, row, column].reshape(len(chosen), -1), dtype=np.float32)


def _normalised(rows: Tensor, floor: Tensor) -> Tensor:
    """Each patch less its mean, divided by its standard deviation."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + floor).sqrt()


def _zca(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [d] and the symmetric whitening matrix [d, d] of rows [n, d]."""
    mean = rows.mean(axis=0, dtype=np.float64)
    centred = rows - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    whitening = (vectors / np.sqrt(values.clip(min=0) + _ZCA)) @ vectors.T
    return mean.astype(np.float32), whitening.astype(np.float32)


def _centroids(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    from sklearn.cluster import KMeans  # imported late: it takes a second, and only whoever fits needs it

    different = len(np.unique(rows, axis=0))
    count = min(_CENTROIDS, max(1, different // _PATCHES_A_CENTROID))
    seed = derive(0, "centroids") % 2**32
    found = KMeans(count, n_init=1, max_iter=_ITERATIONS, random_state=seed).fit(rows.astype(np.float32))
    return np.ascontiguousarray(found.cluster_centers_, dtype=np.float32)
