"""A trained model that anyone can use: architecture, weights and public features in one file."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedkd.config import Architecture
from fedkd.data.augment import further
from fedkd.data.proxy import ProxySet
from fedkd.data.sources import as_float
from fedkd.distill import checkpoint, students
from fedkd.distill.features import FeatureMap, arrays, restore
from fedkd.distill.losses import soften
from fedkd.distill.trainer import logits
from fedkd.errors import DataError
from fedkd.state import read_packed, write_atomic
from fedkd.tensors import Arrays, below, digest, pack

FORMAT = "fedkd.model/1"
LARGEST_INPUT = 1e4  # features are clamped here, so that one absurd private record cannot overflow its gradient


class ProxyView:
    """A proxy set with its public features; what networks see of it is computed once and shared."""

    def __init__(self, proxy: ProxySet, code: Path) -> None:
        """``code`` is the folder in which a backbone is looked for."""
        self.proxy = proxy
        self.features = restore(proxy.features_spec, proxy.features_arrays, code)
        self._inputs: dict[tuple[str, str], Tensor] = {}

    @classmethod
    def load(cls, path: Path, code: Path) -> ProxyView:
        """Read and verify a file; the agents of one process share one copy."""
        return _view(path.resolve(), path.stat().st_mtime_ns if path.exists() else 0, code.resolve())

    @cached_property
    def features_hash(self) -> str:
        """Of the features alone: another version of a proxy set may have the same."""
        return digest(pack(arrays(self.features), self.features.spec))

    def inputs(self, takes: str, augment: str = "none") -> Tensor:
        """All proxy examples as a network that takes "features" or "raw" sees them, the further ones behind the proxy
        set's own. Raises ConfigError for an ``augment`` that does not fit."""
        key = takes, augment
        if key not in self._inputs and augment == "none":
            self._inputs[key] = _inputs(self.features, takes, self.proxy.examples)
        elif key not in self._inputs:
            more = _inputs(self.features, takes, further(self.proxy, augment))
            self._inputs[key] = torch.cat([self.inputs(takes), more])
        return self._inputs[key]


@lru_cache(maxsize=2)
def _view(path: Path, modified: int, code: Path) -> ProxyView:
    return ProxyView(ProxySet.load(path), code)


def _inputs(features: FeatureMap, takes: str, x: NDArray[Any]) -> Tensor:
    floats = as_float(x)
    seen = features(floats) if takes == "features" else floats
    return torch.from_numpy(np.nan_to_num(seen, nan=0.0).clip(-LARGEST_INPUT, LARGEST_INPUT))


class Model:
    """A network and the frozen feature map in front of it."""

    def __init__(
        self, network: students.Network, features: FeatureMap, architecture: Architecture, proxy: str, classes: int
    ) -> None:
        self.network, self.features = network, features
        self.architecture, self.proxy, self.classes = architecture, proxy, classes

    @classmethod
    def fresh(cls, architecture: Architecture, view: ProxyView, seed: int, base: Path) -> Self:
        """For the examples of a proxy set, randomly initialised from ``seed``, or where its configuration says so with
        public weights, which are looked for in ``base``."""
        proxy = view.proxy
        network = students.build(architecture, view.features.dim, proxy.shape, proxy.classes, seed, base)
        checkpoint.start(network, view.features, architecture, base)
        plain = Architecture.model_validate(architecture.model_dump(include=set(Architecture.model_fields)))
        return cls(network, view.features, plain, proxy.hash, proxy.classes)

    def inputs(self, x: NDArray[Any]) -> Tensor:
        """What the network sees of examples [n, *shape]: features [n, dim], or the examples themselves."""
        return _inputs(self.features, self.network.takes, x)

    def predict(self, x: ArrayLike, temperature: float = 1.0) -> NDArray[np.float32]:
        """Probabilities [n, classes] for examples [n, *shape], uint8 or floats. Raises DataError for another shape,
        for values that are not finite, or for a temperature that is not above 0."""
        x, shape = np.asarray(x), tuple(self.features.spec["shape"])
        if tuple(x.shape[1:]) != shape:
            raise DataError(f"examples of shape {tuple(x.shape[1:])}, but the model takes {shape}")
        if not np.isfinite(x).all():
            raise DataError("examples must be finite numbers")
        if not 0 < temperature < np.inf:
            raise DataError(f"the temperature must be above 0, not {temperature}")
        return soften(logits(self.network, self.inputs(x)), temperature).numpy()

    def arrays(self) -> Arrays:
        """The weights."""
        return students.state_arrays(self.network)

    def load(self, weights: Arrays) -> None:
        """Take these weights. Raises DataError if they belong to another architecture."""
        students.load_arrays(self.network, weights)

    def save(self, path: Path) -> None:
        """Write one self-contained file."""
        content = {f"weights.{name}": array for name, array in self.arrays().items()}
        content |= {f"features.{name}": array for name, array in arrays(self.features).items()}
        meta = {
            "format": FORMAT,
            "architecture": self.architecture.model_dump(mode="json"),
            "features": self.features.spec,
            "classes": self.classes,
            "proxy": self.proxy,
        }
        write_atomic(path, pack(content, meta))

    @classmethod
    def open(cls, path: Path, base: Path | None = None) -> Self:
        """Read a file written by ``save``; ``base`` is where a user's own architecture is looked for.

        Raises DataError for a file that is missing, damaged or of another kind.
        """
        content, meta = read_packed(path)
        if meta.get("format") != FORMAT:
            raise DataError("not a fedkd model", where=str(path), fix="give a student or the teacher")
        base = base or Path.cwd()
        try:
            features = restore(meta["features"], below("features.", content), base)
            architecture = Architecture.model_validate(meta["architecture"])
            shape, classes, proxy = tuple(features.spec["shape"]), meta["classes"], meta["proxy"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a whole fedkd model: {error}", where=str(path)) from None
        network = students.build(architecture, features.dim, shape, classes, 0, base)
        model = cls(network, features, architecture, proxy, classes)
        model.load(below("weights.", content))
        return model
