"""Further public examples, made of the proxy set's own: every party computes the same ones from the shared file.

Where the answers of a student are paid for by its training (DP-SGD), asking on them costs nothing more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.data.proxy import ProxySet
from fedkd.data.sources import as_float
from fedkd.errors import ConfigError
from fedkd.rng import generator

REACH = 14
"""Images are moved by up to one pixel in so many."""


def fits(proxy: ProxySet, augment: str) -> bool:
    """Only images can be moved."""
    return not augment.startswith("shift") or len(proxy.shape) in (2, 3)


def further(proxy: ProxySet, augment: str) -> NDArray[np.float32]:
    """Examples [copies · n, *shape], each a function of the proxy set, ``augment`` and its own number. Raises
    ConfigError for shifts of what is no image.

    ``mixup:2``: twice as many means l x + (1 - l) x' of pairs, l uniform (Zhang et al. 2018, arXiv:1710.09412, with
    their alpha of 1). ``shift:2``: twice as many images moved by up to one pixel in REACH along both axes, never by
    none, with their borders repeated.
    """
    if not fits(proxy, augment):
        raise ConfigError("only images can be shifted", where="key 'augment.kind'", fix="take mixup")
    (kind, _, copies), seed, x = augment.partition(":"), int(proxy.hash, 16), as_float(proxy.examples)
    made = [_MAKERS[kind](x, generator(seed, kind, copy)) for copy in range(int(copies or 0))]
    return np.concatenate([*made, x[:0]])


def _mixed(x: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    share = random.random(len(x), np.float32).reshape(-1, *[1] * (x.ndim - 1))
    mixed: NDArray[np.float32] = share * x + (1 - share) * x[random.permutation(len(x))]
    return mixed


def _moved(x: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    height, width = x.shape[-2:]
    far = [max(1, height // REACH), max(1, width // REACH)]
    steps = [(a, b) for a in range(-far[0], far[0] + 1) for b in range(-far[1], far[1] + 1) if (a, b) != (0, 0)]
    result = np.empty_like(x)
    for index, step in enumerate(random.integers(len(steps), size=len(x))):
        rows, columns = (np.arange(n) - by for n, by in zip((height, width), steps[step], strict=True))
        image: NDArray[Any] = x[index][..., rows.clip(0, height - 1), :]
        result[index] = image[..., columns.clip(0, width - 1)]
    return result


_MAKERS = {"mixup": _mixed, "shift": _moved}
