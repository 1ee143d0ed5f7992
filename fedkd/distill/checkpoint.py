"""Public weights that a network starts from, instead of random ones.

They are taken as public: what their training has spent, if it saw private data, is in nobody's ledger. The hash in the
configuration says which ones they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedkd.config import Architecture
from fedkd.distill import features as public
from fedkd.distill.features import FeatureMap
from fedkd.distill.students import Network, load_arrays
from fedkd.errors import ConfigError, DataError
from fedkd.tensors import Arrays, below, digest, unpack, unpack_plain


def start(network: Network, features: FeatureMap, config: Architecture, base: Path) -> None:
    """Give the network the weights that ``config.init`` names, relative to ``base``; nothing to do for random ones.

    The file is a model of fedkd's, or safetensors with the parameters of the network's body by their names. Raises
    ConfigError for a file whose SHA-256 is not ``config.init_hash``, DataError for weights of another network, or for
    a network that takes features and a model that has learned on other ones.
    """
    if config.init == "random":
        return
    path = base / config.init
    try:
        weights, meta = _content(read(path, config.init_hash or ""))
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise DataError("there are weights that are NaN or infinite")
        if meta is None:
            return load_arrays(network.body, weights)
        if network.takes == "features" and not _same_features(features, meta, weights):
            raise DataError("the model has learned on other public features", fix="start from one with this proxy set")
        load_arrays(network, below("weights.", weights))
    except DataError as error:
        raise error.at(f"{path}, key 'init'") from None


def read(path: Path, expected: str) -> bytes:
    """A file whose SHA-256 is known. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the weights cannot be read: {error.strerror}", where=str(path), fix="check 'init'"
        ) from None
    if digest(data) != expected:
        raise ConfigError(
            f"the weights are others than those agreed on: their SHA-256 is {digest(data)}",
            where=f"{path}, key 'init_hash'",
            fix="get the file again, or if this is the right one correct init_hash",
        )
    return data


def _content(data: bytes) -> tuple[Arrays, dict[str, Any] | None]:
    """Arrays, and the description of a model of fedkd's."""
    try:
        return unpack(data)
    except DataError:
        return unpack_plain(data), None


def _same_features(features: FeatureMap, meta: dict[str, Any], content: Arrays) -> bool:
    mine, theirs = public.arrays(features), below("features.", content)
    same = meta.get("features") == features.spec and mine.keys() == theirs.keys()
    return same and all(np.array_equal(mine[name], theirs[name]) for name in mine)
