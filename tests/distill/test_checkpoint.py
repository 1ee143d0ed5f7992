"""Networks that start from public weights: from the file that was agreed on, or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from fedkd.config import Student
from fedkd.data import proxy
from fedkd.distill import features, students
from fedkd.distill.model import Model, ProxyView
from fedkd.errors import ConfigError, DataError
from fedkd.tensors import digest


def view(seed: int = 0) -> ProxyView:
    x = np.random.default_rng(seed).random((12, 1, 8, 8), dtype=np.float32)
    fitted = features.fit_features("pca", x, components=4)
    return ProxyView(proxy.build(x, None, 3, fitted.spec, features.arrays(fitted), {}), Path())


def started(kind: str, path: Path, on: ProxyView | None = None, **changes: Any) -> Model:
    settings = {"kind": kind, "init": path.name, "init_hash": digest(path.read_bytes()), **changes}
    return Model.fresh(Student(**settings), on or view(), 5, path.parent)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "rnn", "transformer"])
def test_a_network_starts_from_a_model_of_fedkds(kind: str, tmp_path: Path) -> None:
    before = Model.fresh(Student(kind=kind), view(), 1, tmp_path)
    before.save(tmp_path / "public.safetensors")
    after = started(kind, tmp_path / "public.safetensors")
    assert students.digest(after.network) == students.digest(before.network)
    assert students.digest(Model.fresh(Student(kind=kind), view(), 5, tmp_path).network) != students.digest(
        after.network
    )


def test_a_network_starts_from_the_parameters_of_its_body(tmp_path: Path) -> None:
    before = Model.fresh(Student(kind="cnn"), view(), 1, tmp_path)
    save_file(students.state_arrays(before.network.body), tmp_path / "body.safetensors")
    assert students.digest(started("cnn", tmp_path / "body.safetensors").network) == students.digest(before.network)


def test_a_model_that_has_started_so_opens_without_the_file(tmp_path: Path) -> None:
    Model.fresh(Student(kind="mlp"), view(), 1, tmp_path).save(tmp_path / "public.safetensors")
    started("mlp", tmp_path / "public.safetensors").save(tmp_path / "student.safetensors")
    (tmp_path / "public.safetensors").unlink()
    assert Model.open(tmp_path / "student.safetensors").architecture.init == "public.safetensors"


def test_another_file_is_refused_and_its_hash_is_told(tmp_path: Path) -> None:
    file = tmp_path / "public.safetensors"
    Model.fresh(Student(kind="mlp"), view(), 1, tmp_path).save(file)
    with pytest.raises(ConfigError, match=digest(file.read_bytes())) as caught:
        started("mlp", file, init_hash="0" * 64)
    assert "init_hash" in caught.value.where
    with pytest.raises(ConfigError, match="cannot be read"):
        started("mlp", file, init="nowhere.safetensors")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "public.safetensors"
    Model.fresh(Student(kind="mlp"), view(), 1, tmp_path).save(file)
    with pytest.raises(DataError, match="another network") as caught:
        started("mlp", file, hidden=(5,))
    assert "key 'init'" in caught.value.where
    with pytest.raises(DataError, match="other public features"):
        started("mlp", file, view(seed=1))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = Model.fresh(Student(kind="mlp"), view(), 1, tmp_path)
    next(model.network.parameters()).data[0, 0] = np.nan
    model.save(tmp_path / "public.safetensors")
    with pytest.raises(DataError, match="NaN"):
        started("mlp", tmp_path / "public.safetensors")


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"weight": [1.0]}))
    with pytest.raises(DataError, match="safetensors"):
        started("mlp", tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "settings", [{"init": "a.safetensors"}, {"init_hash": "0" * 64}, {"init": "a", "init_hash": "0"}]
)
def test_a_file_and_its_hash_come_together(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="init_hash"):
        Student(**settings)  # type: ignore[arg-type]
