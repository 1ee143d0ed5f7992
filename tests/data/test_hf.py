"""Hugging Face data sets, from files that the tests write. Without the extra fedkd[hf] only the first test runs."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.config import Data
from fedkd.data.sources import load
from fedkd.errors import DataError

COLUMNS = ({"name": "age", "mean": 50, "sd": 10, "fill": 50}, {"name": "sex", "categories": ["f", "m"]})
needs_extra = pytest.mark.skipif(importlib.util.find_spec("flwr_datasets") is None, reason="needs the extra fedkd[hf]")


def patients(path: str = "set", **changes: Any) -> Data:
    settings = {"label": "outcome", "labels": ("ill", "well"), "columns": COLUMNS, **changes}
    return Data.model_validate({"source": "hf", "path": path, **settings})


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("datasets", "flwr_datasets", "huggingface_hub.constants"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match="needs Flower Datasets") as caught:
        load(patients(), tmp_path)
    assert "fedkd[hf]" in caught.value.fix


@pytest.fixture
def hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, its cache in the test's folder, and no network."""
    import datasets

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def table(hf: Any, n: int = 4) -> Any:
    kinds = hf.Features(
        {
            "age": hf.Value("float32"),
            "sex": hf.Value("string"),
            "whose": hf.Value("string"),
            "outcome": hf.ClassLabel(names=["well", "ill"]),  # another order than the configuration's
        }
    )
    cells = {"age": [60, 40, None, 50], "sex": list("fmff"), "whose": list("bbac"), "outcome": [0, 1, 0, 1]}
    return hf.Dataset.from_dict({name: some[:n] for name, some in cells.items()}, features=kinds)


@needs_extra
def test_a_saved_data_set_is_read_where_it_lies(tmp_path: Path, hf: Any) -> None:
    hf.DatasetDict({"train": table(hf), "test": table(hf, 2)}).save_to_disk(str(tmp_path / "set"))
    train, test = load(patients(), tmp_path, "whose")
    assert train.x.tolist() == [[1, 1, 0], [-1, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert (train.y.tolist(), train.classes) == ([1, 0, 1, 0], 2)
    assert train.ids is not None and train.ids.tolist() == [1, 1, 0, 2]
    assert test is not None and len(test) == 2
    assert not (tmp_path / "cache").exists()


@needs_extra
def test_a_single_saved_split_is_the_training_part(tmp_path: Path, hf: Any) -> None:
    table(hf).save_to_disk(str(tmp_path / "set"))
    train, test = load(patients(), tmp_path)
    assert len(train) == 4 and test is None


@needs_extra
def test_a_folder_of_files_leaves_no_copy_in_the_cache(tmp_path: Path, hf: Any) -> None:
    (tmp_path / "set").mkdir()
    table(hf).to_parquet(str(tmp_path / "set" / "train.parquet"))
    train, test = load(patients(), tmp_path)
    assert train.y.tolist() == [1, 0, 1, 0] and test is None
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@needs_extra
def test_images_are_brought_to_one_size(tmp_path: Path, hf: Any) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pictures = [pillow.fromarray(np.full((6, 6), level, np.uint8)) for level in (10, 20)]
    kinds = hf.Features({"picture": hf.Image(), "outcome": hf.ClassLabel(names=["ill", "well"])})
    hf.Dataset.from_dict({"picture": pictures, "outcome": [0, 1]}, features=kinds).save_to_disk(str(tmp_path / "set"))
    image = {"height": 4, "width": 3, "column": "picture"}
    train, _ = load(patients(columns=(), image=image), tmp_path)
    assert (train.x.shape, train.x.dtype, train.y.tolist()) == ((2, 1, 4, 3), np.uint8, [0, 1])
    assert train.x[:, 0, 0, 0].tolist() == [10, 20]
    with pytest.raises(DataError, match="no images"):
        load(patients(columns=(), image={**image, "column": "outcome"}), tmp_path)


@needs_extra
def test_a_name_is_looked_for_in_the_cache_alone(tmp_path: Path, hf: Any) -> None:
    (tmp_path / "files").mkdir()
    table(hf).to_parquet(str(tmp_path / "files" / "train.parquet"))
    hf.load_dataset(str(tmp_path / "files"), cache_dir=str(tmp_path / "made"))
    (made,) = (tmp_path / "made").rglob("dataset_info.json")
    # where a download of nobody/tiny would have put it
    cached = tmp_path / "cache" / "nobody___tiny" / "default" / "0.0.0" / "abc"
    shutil.copytree(made.parent, cached)
    next(cached.glob("*-train.arrow")).rename(cached / "tiny-train.arrow")
    assert load(patients("nobody/tiny"), tmp_path)[0].y.tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError, match="nobody/other") as caught:
        load(patients("nobody/other"), tmp_path)
    assert caught.value.where == "nobody/other" and "download" in caught.value.fix


@needs_extra
@pytest.mark.parametrize(
    ("changes", "what", "place"),
    [
        ({"columns": ("age", "smoker")}, "no column 'smoker'", "split train"),
        ({"labels": ("ill", "fine")}, "label 'well' is not in the list", "split train, row 0, column 'outcome'"),
        ({"columns": ({"name": "sex", "categories": ["f"]},)}, "category 'm'", "split train, row 1, column 'sex'"),
        ({"columns": ("age",)}, "missing", "split train, row 2, column 'age'"),
    ],
)
def test_what_does_not_fit_names_split_row_and_column(
    tmp_path: Path, hf: Any, changes: dict[str, Any], what: str, place: str
) -> None:
    table(hf).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(DataError, match=what) as caught:
        load(patients(**changes), tmp_path)
    assert caught.value.where.endswith(place)


@needs_extra
def test_a_folder_without_a_data_set_or_without_train_is_refused(tmp_path: Path, hf: Any) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="cannot be read") as caught:
        load(patients(), tmp_path)
    assert caught.value.where == str(tmp_path / "set")
    hf.DatasetDict({"other": table(hf)}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(DataError, match="no split 'train', only other"):
        load(patients("two"), tmp_path)
