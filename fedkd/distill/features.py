"""Public features: a frozen extractor that is fitted on the proxy set and on nothing else.

Under differential privacy a linear student on good features beats a deep one on pixels (Tramèr & Boneh 2021,
arXiv:2011.11660). What is fitted here has seen public examples only, so it costs no privacy.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import nn

from fedkd.config import FEATURES
from fedkd.distill import patches, scattering
from fedkd.distill.backbone import Backbone
from fedkd.distill.fronts import Front, FrontNetwork, JoinedNetwork, affine, front, one_by_one
from fedkd.errors import ConfigError, DataError
from fedkd.tensors import Arrays, below

Floats = NDArray[np.float32]
Spec = dict[str, Any]

_HELD: dict[str, frozenset[str]] = {
    "none": frozenset({"mean", "scale"}),
    "pca": frozenset({"mean", "basis"}),
    "scattering": frozenset({"mean", "basis"}) | scattering.HELD,
    "patches": frozenset({"mean", "basis"}) | patches.HELD,
}
_WEIGHTS = "weights."  # of a backbone
# Every kind is scaled to this mean norm on the proxies, so that one learning rate and one clip serve them all.
MEAN_NORM = 5.0
# Arrays are worked on in zero-padded chunks of one size: kernels choose their order of summation by shape, and an
# example must give the same bytes whatever batch it arrives in.
_CHUNK = 64
# Directions that carry less than this share of the largest variance are rounding noise: whitening would blow them up.
_RANK_TOLERANCE = 1e-7


class FeatureMap(Protocol):
    """A frozen map from examples to features, a pure function of its arrays and of one example."""

    @property
    def dim(self) -> int:
        """Features of one example."""

    @property
    def spec(self) -> Spec:
        """What `restore` needs beside the arrays; JSON types only."""

    @property
    def held(self) -> Arrays:
        """Everything `restore` needs beside the spec: float32 and int64 arrays, ready for safetensors."""

    def __call__(self, x: Floats) -> Floats:
        """Maps examples [n, *shape] to features [n, dim]. Raises DataError for another shape."""

    def network(self, part: type[FrontNetwork] = FrontNetwork) -> nn.Module:
        """The map as a network without parameters, each front a ``part``; its last bits may depend on the batch."""


def fit_features(
    kind: str, proxy: Floats, *, components: int, base: Path | None = None, weights: Arrays | None = None
) -> FeatureMap:
    """Fits a feature map on the proxy examples [n, *shape] and on nothing else.

    `none` flattens, `pca` also projects, `scattering` and `patches` (of [n, height, width] or [n, channels, height,
    width]) project their coefficients, `module:Class`, a file in `base`, projects the answers of a user's backbone with
    these `weights`. Kinds joined by + are fitted one by one and concatenated. `components` is an upper bound for each:
    fewer are kept where the proxies span fewer directions, and `none` keeps all. Raises ConfigError for a kind or a
    shape that does not suit it, DataError for proxies that are all equal or not finite.
    """
    kinds = kind.split("+")
    for one in kinds:
        _check(one, proxy, components)
    fitted = [_fit(one, proxy, components, base or Path(), weights) for one in kinds]
    return fitted[0] if len(kinds) == 1 else _joined(fitted, proxy)


def arrays(features: FeatureMap) -> Arrays:
    """A copy of the mapping `features.held`."""
    return dict(features.held)


def restore(spec: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], base: Path | None = None) -> FeatureMap:
    """Rebuilds a fitted map, which then gives the same bytes. Raises DataError where spec and arrays do not fit, and
    ConfigError where `base` does not hold the code of a backbone.

    Filters are stored rather than computed again: another machine's `exp` may differ in the last bit.
    """
    parts = spec.get("parts")
    if parts is None:
        found: FeatureMap = _restore(spec, arrays, base or Path())
    else:
        held = [below(f"{index}.", dict(arrays)) for index in range(len(parts) if isinstance(parts, list) else 0)]
        if not held or sum(map(len, held)) != len(arrays) or spec.get("version") != 1:
            raise _other(spec, arrays)
        found = _Joined([_restore(part, own, base or Path()) for part, own in zip(parts, held, strict=True)])
    if found.dim != spec["dim"]:
        raise DataError(f"The arrays give {found.dim} features where the description says {spec['dim']}.")
    return found


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A front and what follows it."""

    kind: str
    shape: tuple[int, ...]
    held: Arrays
    backbone: Backbone | None = None

    @property
    def dim(self) -> int:
        return int(self.held["basis"].shape[1]) if "basis" in self.held else math.prod(self.shape)

    @property
    def spec(self) -> Spec:
        return {"version": 1, "kind": self.kind, "shape": list(self.shape), "dim": self.dim, **_code(self.backbone)}

    def __call__(self, x: Floats) -> Floats:
        if x.shape[1:] != self.shape:
            raise DataError(f"These features take examples of shape {self.shape}, not {x.shape[1:]}.")
        raw, after = _front(self.kind, self.held, self.backbone), affine(_tensors(self.held))
        return _chunked(lambda part, real: after(raw(part, real)), x)

    def network(self, part: type[FrontNetwork] = FrontNetwork) -> nn.Module:
        own = {name: array for name, array in self.held.items() if not name.startswith(_WEIGHTS)}
        return part(self.kind, own, None if self.backbone is None else self.backbone.module)


@dataclass(frozen=True, eq=False)
class _Joined:
    """Features beside one another."""

    parts: Sequence[_Fitted]

    @property
    def dim(self) -> int:
        return sum(part.dim for part in self.parts)

    @property
    def spec(self) -> Spec:
        kind = "+".join(part.kind for part in self.parts)
        shape = list(self.parts[0].shape)
        return {"version": 1, "kind": kind, "shape": shape, "dim": self.dim, "parts": [p.spec for p in self.parts]}

    @property
    def held(self) -> Arrays:
        return {f"{index}.{name}": array for index, part in enumerate(self.parts) for name, array in part.held.items()}

    def __call__(self, x: Floats) -> Floats:
        return np.concatenate([part(x) for part in self.parts], axis=1)

    def network(self, part: type[FrontNetwork] = FrontNetwork) -> nn.Module:
        return JoinedNetwork([one.network(part) for one in self.parts])


def _fit(kind: str, proxy: Floats, components: int, base: Path, weights: Arrays | None) -> _Fitted:
    held, backbone = {}, None
    if kind in FEATURES:
        held = _FITTED[kind](proxy) if kind in _FITTED else {}
    else:
        backbone = Backbone(kind, proxy.shape[1:], base)
        if weights is not None:
            backbone.load(weights)
        backbone.check()
        held = {_WEIGHTS + name: array for name, array in backbone.arrays().items()}
    raw = _chunked(_front(kind, held, backbone), proxy)
    if not np.isfinite(raw).all():
        raise DataError(f"The features {kind} of the proxy examples are not finite.")
    after = _scalar(raw) if kind == "none" else _half_whitened_pca(raw, components)
    return _Fitted(kind, proxy.shape[1:], held | after, backbone)


def _joined(parts: Sequence[_Fitted], proxy: Floats) -> _Joined:
    """Each part has the mean norm that one alone would have; together they have it too."""
    factor = np.float32(MEAN_NORM / _mean_norm(_Joined(parts)(proxy)))
    return _Joined([replace(part, held=part.held | {"basis": part.held["basis"] * factor}) for part in parts])


def _restore(spec: Mapping[str, Any], held: Mapping[str, NDArray[Any]], base: Path) -> _Fitted:
    kind, shape = str(spec.get("kind")), tuple(spec.get("shape", ()))
    ready = {name: np.ascontiguousarray(array) for name, array in held.items()}
    weights = below(_WEIGHTS, {n: a for n, a in ready.items() if n.startswith(_WEIGHTS)})
    mine = ":" in kind and "code" in spec
    wanted = {"mean", "basis"} | {_WEIGHTS + n for n in weights} if mine else _HELD.get(kind)
    if spec.get("version") != 1 or set(ready) != wanted:
        raise _other(spec, held)
    if not mine:
        return _Fitted(kind, shape, ready)
    backbone = Backbone(kind, shape, base, str(spec["code"]))
    backbone.load(weights)
    backbone.check()
    return _Fitted(kind, shape, ready, backbone)


def _other(spec: Mapping[str, Any], held: Mapping[str, NDArray[Any]]) -> DataError:
    return DataError(f"Not a feature map of this version: {dict(spec)}, arrays {sorted(held)}")


# --- from examples to raw coefficients ---

_FITTED: dict[str, Callable[[Floats], Arrays]] = {
    "scattering": lambda proxy: scattering.filters(*proxy.shape[-2:]),
    "patches": patches.fit,
}


def _front(kind: str, held: Arrays, backbone: Backbone | None) -> Front:
    return front(kind, _tensors(held)) if backbone is None else one_by_one(backbone)


def _tensors(held: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in held.items()}


def _code(backbone: Backbone | None) -> Spec:
    return {} if backbone is None else {"code": backbone.code}


# --- fitting what follows a front ---


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


# --- the same bytes whatever the batch ---


def _chunked(function: Front, x: Floats) -> Floats:
    """Applies a function of rows in chunks of one size, the last one padded with zeros, on one thread."""
    parts = []
    with torch.no_grad(), _one_thread():
        for start in range(0, max(len(x), 1), _CHUNK):
            part = np.zeros((_CHUNK, *x.shape[1:]), dtype=np.float32)
            taken = part[: len(x) - start]
            taken[...] = x[start : start + _CHUNK]
            parts.append(function(torch.from_numpy(part), len(taken))[: len(taken)].numpy())
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
    if kind not in FEATURES and ":" not in kind:
        raise ConfigError(f"Unknown features {kind!r}.", fix=f"one of {', '.join(FEATURES)}, or module:Class")
    if len(proxy) < 2 or proxy.ndim < 2:
        raise DataError(f"Features need at least two proxy examples, not an array of shape {proxy.shape}.")
    if not np.isfinite(proxy).all():
        raise DataError("The proxy examples have values that are not finite.")
    if kind in ("scattering", "patches") and proxy.ndim not in (3, 4):
        raise ConfigError(f"{kind} takes images, not examples of shape {proxy.shape[1:]}.", fix="pca or none")
    if kind == "patches" and min(proxy.shape[-2:]) < patches.SMALLEST:
        smallest = f"{patches.SMALLEST} x {patches.SMALLEST}"
        raise ConfigError(
            f"patches takes images of {smallest} pixels or more, not {proxy.shape[1:]}.", fix="scattering"
        )
    if components < 1:
        raise ConfigError(f"components must be at least 1, not {components}.")
