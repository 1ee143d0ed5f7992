"""Hugging Face data sets, through Flower Datasets: from a folder, or from what has been downloaded before.

Nothing here opens a connection, and no copy of a folder's examples is left behind: they may be a client's private data.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.config import Data, Image
from fedkd.data import images, tables
from fedkd.errors import DataError, FedkdError

_SAVED = ("dataset_dict.json", "state.json")  # written by save_to_disk
_FIX = (
    "give a folder, or download the data set beforehand, with a connection: "
    """python -c "import datasets; datasets.load_dataset('NAME')\""""
)


def read(base: Path, data: Data, ids: str | None) -> dict[str, Any]:
    """Arrays x, y, classes of the split ``train``, those of ``test`` if there is one, and the column ``ids``.

    ``data.path`` is a folder below ``base``, written by ``save_to_disk`` or made of files that Hugging Face knows
    (Parquet, JSON lines, ...), or the name of a data set in the cache. Raises DataError where it is neither, where a
    column is missing, and for cells that tables and images refuse.
    """
    assert data.path is not None
    folder = base / data.path
    where = str(folder) if folder.exists() else data.path
    with _offline():
        try:
            with _splits(folder, data.path) as splits:
                return _parts(splits, data, where, ids)
        except FedkdError:
            raise
        except Exception as error:  # these libraries raise what their file formats raise
            raise DataError(f"the data set cannot be read: {error}", where=where, fix=_FIX) from None


def _parts(splits: Mapping[str, Any], data: Data, where: str, ids: str | None) -> dict[str, Any]:
    if "train" not in splits:
        raise DataError(f"there is no split 'train', only {', '.join(sorted(splits))}", where=where)
    found = _arrays(splits["train"], data, f"{where}, split train", ids)
    if "test" in splits:
        test = _arrays(splits["test"], data, f"{where}, split test", None)
        found |= {"x_test": test["x"], "y_test": test["y"]}
    return found


def _arrays(split: Any, data: Data, where: str, ids: str | None) -> dict[str, Any]:
    names = tables.wanted(data, ids)
    for name in [*names, *([data.image.column] if data.image else [])]:
        if name not in split.column_names:
            raise DataError(f"there is no column {name!r}", where=where, fix=f"it has {', '.join(split.column_names)}")
    table = tables.Table({name: _cells(split, name) for name in names}, lambda row: f"{where}, row {row}")
    found = tables.encode(table, data)
    if data.image is not None:
        found["x"] = _pixels(split, data.image, where)
    return {**found, "ids": None if ids is None else table.cells[ids]}


def _cells(split: Any, name: str) -> Sequence[Any]:
    """A column's cells; the numbers of a column of classes become their names."""
    names = getattr(split.features[name], "names", None)
    cells = list(split[name])
    if names is None:
        return cells
    # Hugging Face writes -1 where a label is withheld
    return [None if cell is None or cell < 0 else names[cell] for cell in cells]


def _pixels(split: Any, image: Image, where: str) -> NDArray[np.uint8]:
    images.library()
    parts = []
    for row, example in enumerate(split.select_columns([image.column])):
        opened = example[image.column]
        if not hasattr(opened, "convert"):
            raise DataError(f"column {image.column!r} holds no images", where=where)
        parts.append(images.pixels(opened, image, f"{where}, row {row}"))
    return np.stack(parts) if parts else np.zeros((0, *images.shape(image)), np.uint8)


@contextmanager
def _splits(folder: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """The data set's splits by name."""
    if any((folder / file).is_file() for file in _SAVED):
        found = _library("datasets").load_from_disk(str(folder))  # mapped into memory where it lies
        yield found if isinstance(found, Mapping) else {"train": found}
    elif folder.exists():
        with tempfile.TemporaryDirectory() as temporary:  # the usual cache would keep a copy of private data
            yield _federated(str(folder.resolve()), cache_dir=temporary, keep_in_memory=True)
    else:
        yield _federated(name)


def _federated(name: str, **options: Any) -> dict[str, Any]:
    kind = _library("flwr_datasets").FederatedDataset
    dataset = kind(dataset=name, partitioners={}, shuffle=False, **options)
    splits = {"train": dataset.load_split("train")}
    with suppress(ValueError):  # it has no such split
        splits["test"] = dataset.load_split("test")
    return splits


@contextmanager
def _offline() -> Iterator[None]:
    """No connection to Hugging Face, no report to Flower, no progress bars, whatever the environment says."""
    datasets, hub = _library("datasets"), _library("huggingface_hub.constants")
    _library("flwr_datasets.common.telemetry").FLWR_TELEMETRY_ENABLED = "0"
    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()
    datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE, quiet = before
        if not quiet:
            datasets.enable_progress_bars()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError("the source hf needs Flower Datasets", fix="pip install 'fedkd[hf]'") from None
