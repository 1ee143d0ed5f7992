"""The proxy set: the public examples that all parties hold, in one file with a content hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedkd import state, tensors
from fedkd.config import Data
from fedkd.data import encoding
from fedkd.data.sources import Examples, Pixels, check
from fedkd.errors import DataError
from fedkd.tensors import Arrays

FORMAT = "fedkd.proxy/1"
_FEATURES = "features."
_LIBRARIES = ("fedkd", "numpy", "scikit-learn", "safetensors")


@dataclass(frozen=True, eq=False)
class ProxySet:
    """Public examples uint8 or float32 [q, *shape], their labels int64 [q] or None, and the fixed list of labels
    0 .. classes - 1.

    ``features_spec`` and ``features_arrays`` describe the public features that were fitted on these examples;
    they are opaque here. Two sets with equal ``hash`` are equal. Made by build or load.
    """

    examples: Pixels
    labels: NDArray[np.int64] | None
    classes: int
    features_spec: dict[str, Any]
    features_arrays: Arrays
    provenance: dict[str, Any]
    hash: str

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.examples.shape[1:])

    def verify(self, where: str = "proxy set") -> None:
        """Raises DataError when the content is not what the hash says, or is no valid proxy set."""
        found = _hash(_description(self), _arrays(self))
        if found != self.hash:
            raise DataError(
                f"the proxy set is damaged or altered: its hash should be {self.hash}, but is {found}",
                where=where,
                fix="get the file again from whoever built it",
            )
        if self.classes < 2:
            raise DataError("one class alone leaves nothing to answer", where=where, fix="give two classes or more")
        labels = np.zeros(len(self), np.int64) if self.labels is None else self.labels
        check(Examples(self.examples, labels, self.classes), where, allow_empty=False)

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically. The same content gives the same bytes."""
        state.write_atomic(path, tensors.pack(_arrays(self), {**_description(self), "hash": self.hash}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and verify. Raises DataError for a file that is missing, damaged, altered, or of another kind."""
        arrays, description = state.read_packed(path)
        if description.get("format") != FORMAT:
            raise DataError("not a proxy set", where=str(path), fix=f"its format must be {FORMAT}")
        try:
            found = cls(
                examples=arrays.pop("x"),
                labels=arrays.pop("y", None),
                classes=int(description["classes"]),
                features_spec=dict(description["features"]),
                features_arrays={name.removeprefix(_FEATURES): array for name, array in arrays.items()},
                provenance=dict(description["provenance"]),
                hash=str(description["hash"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the proxy set is damaged or altered ({error!r})", where=str(path)) from None
        found.verify(str(path))
        return found


def build(
    examples: Pixels,
    labels: NDArray[np.int64] | None,
    classes: int,
    features_spec: Mapping[str, Any],
    features_arrays: Mapping[str, NDArray[Any]],
    provenance: Mapping[str, Any],
) -> ProxySet:
    """A proxy set with its hash. Spec and provenance must be JSON. Raises DataError for content that check refuses."""
    unhashed = ProxySet(
        examples.copy(),
        None if labels is None else np.ascontiguousarray(labels, np.int64),
        int(classes),
        _plain(features_spec),
        # at least one axis, as files have it
        {name: np.ascontiguousarray(array) for name, array in features_arrays.items()},
        _plain(provenance),
        "",
    )
    content = _hash(_description(unhashed), _arrays(unhashed))
    made = ProxySet(**{**vars(unhashed), "hash": content})
    made.verify("the new proxy set")
    return made


def describe(data: Data, seed: int, rule: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Where a proxy set comes from: source without its path, its encoding, seed, the rule that chose the indices, sizes
    of the splits, and versions. No path and no clock: what is built again on the same machine has the same hash. On
    another one, other kernels of the processor may round otherwise: parties share the file, not its recipe.
    """
    found = encoding.describe(data)
    return {
        **({"encoding": found} if found else {}),
        "source": data.source,
        "test_fraction": data.test_fraction,
        "seed": seed,
        "rule": rule,
        "sizes": dict(sizes),
        "versions": {name: _version(name) for name in _LIBRARIES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """What a file would give back: a copy with lists for tuples. Refuses what JSON cannot say."""
    try:
        return dict(json.loads(tensors.canonical(dict(value))))
    except (TypeError, ValueError) as error:
        raise DataError(f"the description of a proxy set must be JSON: {error}") from None


def _description(proxy: ProxySet) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "classes": proxy.classes,
        "features": proxy.features_spec,
        "provenance": proxy.provenance,
    }


def _arrays(proxy: ProxySet) -> Arrays:
    arrays: Arrays = {_FEATURES + name: array for name, array in proxy.features_arrays.items()}
    arrays["x"] = proxy.examples
    if proxy.labels is not None:
        arrays["y"] = proxy.labels
    return arrays


def _hash(description: dict[str, Any], arrays: Arrays) -> str:
    """Of the content, not of the file: independent of how a version of safetensors lays a file out."""
    content = {name: _array_content(array) for name, array in arrays.items()}
    return tensors.digest(tensors.canonical({"description": description, "arrays": content}))


def _array_content(array: NDArray[Any]) -> list[Any]:
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return [little.dtype.str, list(array.shape), tensors.digest(little.tobytes())]
