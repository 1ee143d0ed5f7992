"""Where examples come from: one of the sources of this package, or a user's function."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedkd.config import Data
from fedkd.data import hf, idx, images, mnist1d, tables
from fedkd.data.user_code import call, load_symbol
from fedkd.errors import DataError

Pixels = NDArray[np.uint8] | NDArray[np.float32]
MAX_CLASSES = 100_000
KEYS = ("x", "y", "x_test", "y_test", "classes")
Found = tuple[Mapping[str, Any], str]  # arrays under these names, and where they are from


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples: x uint8 or float32 [n, *shape], y int64 [n] with 0 <= y < classes.

    ``ids`` int64 [n] says whose an example is: for the partition ``natural_id`` of a simulation, and for nothing else.
    """

    x: Pixels
    y: NDArray[np.int64]
    classes: int
    ids: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: NDArray[np.int64]) -> Examples:
        """The examples at ``indices`` [m], in this order, as a copy."""
        return Examples(self.x[indices], self.y[indices], self.classes, None if self.ids is None else self.ids[indices])


def load(data: Data, base: Path, ids: str | None = None) -> tuple[Examples, Examples | None]:
    """Training part and test part (None: the source has none) of a source; ``path`` is relative to ``base``.

    - ``digits``: scikit-learn's 1,797 digits, x float32 [n, 1, 8, 8] in [0, 1].
    - ``mnist1d``: made from ``data.seed``, x float32 [n, 1, 40].
    - ``idx``: a folder of IDX files, x uint8 [n, 1, height, width]; without ``path``, Debian's Fashion-MNIST.
    - ``npz``: arrays x, y and optionally x_test, y_test, classes.
    - ``csv``: a table, x float32 [n, d].
    - ``folder``: images, x uint8 [n, channels, height, width].
    - ``hf``: a Hugging Face data set of columns or images, as of ``csv`` or ``folder``.
    - ``module:function``: called with the resolved ``path`` where one is given, else without arguments; returns
      ``(x, y)``, ``(x, y, x_test, y_test)``, a mapping with the keys of an .npz file, or Examples.

    x stays uint8 or becomes float32 (only uint8 is ever rescaled, see as_float). ``classes`` counts the labels; where
    a source does not say, it is the largest label of both parts + 1: a client that is deployed takes the public list
    of its proxy set instead, and calls check with it. ``ids`` names the column (csv, hf) or array (npz, function) that
    says whose an example is. Raises DataError naming the source, file and first bad index.
    """
    if data.source not in _READERS:
        return _function(data, base, ids)
    found, where = _READERS[data.source](data, base, ids)
    return _parts(found, where, ids)


def as_float(x: Pixels) -> NDArray[np.float32]:
    """x as float32; uint8 is divided by 255."""
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    return x.astype(np.float32, copy=False)


def check(
    examples: Examples,
    where: str,
    shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    *,
    allow_empty: bool = True,
) -> None:
    """Refuse examples that are not [n, *shape], not finite, or whose labels are not in 0 .. classes - 1.

    ``shape`` and ``classes`` are what the proxy set prescribes; None: what the examples say themselves. Raises
    DataError with ``where`` (file or source) and the first bad index: for the owner's console, never for a message.
    """
    x, y = examples.x, examples.y
    if x.ndim < 2 or x.dtype not in (np.uint8, np.float32):
        raise DataError(f"x must be uint8 or float32 [n, *shape], not {x.dtype} {list(x.shape)}", where=where)
    if shape is not None and x.shape[1:] != tuple(shape):
        raise DataError(f"one example has shape {list(x.shape[1:])}, expected {list(shape)}", where=where)
    if y.ndim != 1 or len(x) != len(y):
        raise DataError(f"x has {len(x)} examples, but y has shape {list(y.shape)}", where=where)
    if len(x) == 0 and not allow_empty:
        raise DataError("there are no examples", where=where)
    bad = np.any(~np.isfinite(x), axis=tuple(range(1, x.ndim)))
    _first(np.asarray(bad), "x is NaN or infinite", where)
    _check_labels(y, examples.classes if classes is None else classes, where)


def _check_labels(y: NDArray[np.int64], classes: int, where: str) -> None:
    if y.dtype.kind not in "iu":
        raise DataError(f"labels must be integers, not {y.dtype}", where=where)
    bad = (y < 0) | (y >= classes)
    text = f"label {y[bad.argmax()]} is not in 0..{classes - 1}" if bad.any() else ""
    _first(bad, text, where, fix="the list of labels is fixed and public: correct the label, or leave the example out")


def _first(bad: NDArray[np.bool_], text: str, where: str, fix: str = "") -> None:
    if bad.any():
        raise DataError(f"{text} (first of {bad.sum()})", where=f"{where}, example {bad.argmax()}", fix=fix)


def _digits(data: Data, base: Path, ids: str | None) -> Found:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images[:, None] / 16).astype(np.float32)  # grey levels are 0..16
    return {"x": x, "y": bunch.target, "classes": 10}, "digits"


def _mnist1d(data: Data, base: Path, ids: str | None) -> Found:
    return mnist1d.make(data.size, data.seed), "mnist1d"


def _idx(data: Data, base: Path, ids: str | None) -> Found:
    folder = idx.FASHION_MNIST if data.path is None else base / data.path
    (x, y), test = idx.read_folder(folder)
    x_test, y_test = test or (None, None)
    return {"x": x, "y": y, "x_test": x_test, "y_test": y_test}, str(folder)


def _npz(data: Data, base: Path, ids: str | None) -> Found:
    if data.path is None:
        raise DataError("source npz needs a file", where="key 'path'", fix="path: my-data.npz")
    path = base / data.path
    return _with_ids(_arrays(path, KEYS if ids is None else (*KEYS, ids)), ids), str(path)


def _csv(data: Data, base: Path, ids: str | None) -> Found:
    path = base / str(data.path)
    table = tables.read_csv(path, tables.wanted(data, ids))
    return {**tables.encode(table, data), "ids": None if ids is None else tables.owners(table, ids, data)}, str(path)


def _folder(data: Data, base: Path, ids: str | None) -> Found:
    folder = base / str(data.path)
    return images.read_folder(folder, data), str(folder)


def _hf(data: Data, base: Path, ids: str | None) -> Found:
    return hf.read(base, data, ids), str(data.path)


_READERS: Mapping[str, Callable[[Data, Path, str | None], Found]] = {
    "digits": _digits,
    "mnist1d": _mnist1d,
    "idx": _idx,
    "npz": _npz,
    "csv": _csv,
    "folder": _folder,
    "hf": _hf,
}


def read_inputs(path: Path) -> Pixels:
    """The array x [n, *shape] of an .npz file, which needs no labels: examples to predict. Raises DataError."""
    x = _arrays(path, ("x",)).get("x")
    if x is None:
        raise DataError("there is no array x", where=str(path), fix="write the file with numpy.savez(path, x=...)")
    pixels = _pixels(x, str(path))
    check(Examples(pixels, np.zeros(len(pixels), np.int64), 1), str(path))
    return pixels


def _arrays(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Those of these arrays that an .npz file has."""
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(
                    "not an .npz file, but one array", where=str(path), fix="write x and y with numpy.savez"
                )
            return {key: file[key] for key in keys if key in file}
    except FileNotFoundError:
        raise DataError("the file does not exist", where=str(path), fix="check 'path'") from None
    except (OSError, ValueError, EOFError, TypeError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"not an .npz file of plain arrays: {error}", where=str(path)) from None


def _function(data: Data, base: Path, ids: str | None) -> tuple[Examples, Examples | None]:
    where, function = data.source, load_symbol(data.source, base)
    found = call(where, function, *([] if data.path is None else [base / data.path]), kind=DataError)
    if isinstance(found, Examples):
        found = {"x": found.x, "y": found.y, "classes": found.classes, "ids": found.ids}
    if isinstance(found, tuple | list) and len(found) in (2, 4):
        found = dict(zip(KEYS, found, strict=False))
    if not isinstance(found, Mapping):
        raise DataError(
            f"the function returned {type(found).__name__}", where=where, fix="return (x, y) or (x, y, x_test, y_test)"
        )
    return _parts(_with_ids(found, ids), where, ids)


def _with_ids(found: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """The array of this name under the name ids."""
    return {**found, "ids": None if name is None else found.get(name)}


def _parts(found: Mapping[str, Any], where: str, ids: str | None) -> tuple[Examples, Examples | None]:
    """Arrays under the names KEYS, and ids where they were asked for by a name of theirs, as checked examples."""
    if found.get("x") is None or found.get("y") is None:
        raise DataError("there are no arrays x and y", where=where)
    if (found.get("x_test") is None) != (found.get("y_test") is None):
        raise DataError("x_test and y_test only come together", where=where)
    y = _labels(found["y"], f"{where}, y")
    y_test = None if found.get("y_test") is None else _labels(found["y_test"], f"{where}, y_test")
    classes = _classes(found.get("classes"), np.concatenate([y, y[:0] if y_test is None else y_test]), where)
    train = Examples(_pixels(found["x"], f"{where}, x"), y, classes, _ids(found, ids, len(y), where))
    check(train, where)
    if y_test is None:
        return train, None
    test = Examples(_pixels(found["x_test"], f"{where}, x_test"), y_test, classes)
    check(test, f"{where}, test part", train.x.shape[1:])
    return train, test


def _pixels(values: ArrayLike, where: str) -> Pixels:
    x = np.asarray(values)
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "fiub":
        raise DataError(f"x must be numbers, not {x.dtype}", where=where)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as such
        return x.astype(np.float32)


def _labels(values: ArrayLike, where: str) -> NDArray[np.int64]:
    y = np.asarray(values)
    if y.ndim != 1 or y.dtype.kind not in "fiu":
        raise DataError(f"y must be integers [n], not {y.dtype} {list(y.shape)}", where=where)
    if y.dtype.kind == "f":
        _first(~np.isfinite(y) | (y != np.trunc(y)), "a label is not an integer", where)
    return y.astype(np.int64)


def _ids(found: Mapping[str, Any], name: str | None, n: int, where: str) -> NDArray[np.int64] | None:
    """Every example's owner as a number, in the order of the sorted ids."""
    if name is None:
        return None
    if found.get("ids") is None:
        raise DataError(f"the source says nothing of whose its examples are: there is no {name!r}", where=where)
    values = np.asarray(found["ids"])
    if values.dtype.kind not in "iuU" or values.shape != (n,):
        raise DataError(f"{name!r} must be {n} whole numbers or texts, one an example", where=where)
    if values.dtype.kind == "U":
        _first(values == "", f"{name!r} is empty", where)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _classes(declared: Any, y: NDArray[np.int64], where: str) -> int:
    if declared is None:
        found = int(y.max(initial=-1)) + 1
        if found > MAX_CLASSES:
            raise DataError(
                f"the largest label is {found - 1}",
                where=where,
                fix="number the classes 0, 1, 2, ... without gaps; answers have a column for each",
            )
        return found
    value = np.asarray(declared)
    if value.shape != () or value.dtype.kind not in "iu" or not 1 <= value <= MAX_CLASSES:
        raise DataError(f"'classes' must be one integer from 1 to {MAX_CLASSES}, not {declared!r}", where=where)
    return int(value)
