from pathlib import Path

import numpy as np
import pytest

from fedkd.config import Data
from fedkd.data.proxy import ProxySet, build, describe
from fedkd.errors import DataError
from fedkd.state import read_packed, write_atomic
from fedkd.tensors import pack


def made(**changes) -> ProxySet:
    content = {
        "examples": np.arange(12, dtype=np.uint8).reshape(4, 3),
        "labels": np.array([0, 1, 1, 0]),
        "classes": 3,
        "features_spec": {"kind": "pca", "components": 2},
        "features_arrays": {"mean": np.zeros(3, np.float32), "basis": np.eye(3, 2)},
        "provenance": describe(Data(source="idx", path="/secret/folder"), 0, "cut", {"proxy": 4}),
    }
    return build(**{**content, **changes})


@pytest.mark.parametrize("changes", [{}, {"labels": None}, {"examples": np.ones((4, 1, 2, 2), np.float32)}])
def test_a_proxy_set_comes_back_as_it_was_saved(tmp_path: Path, changes: dict) -> None:
    one = made(**changes)
    one.save(tmp_path / "proxy")
    two = ProxySet.load(tmp_path / "proxy")
    assert (two.hash, two.classes, two.shape, len(two)) == (one.hash, 3, one.shape, 4)
    assert (two.features_spec, two.provenance) == (one.features_spec, one.provenance)
    assert two.examples.dtype == one.examples.dtype and (two.examples == one.examples).all()
    assert (two.labels is None) == (one.labels is None)
    assert all((two.features_arrays[name] == array).all() for name, array in one.features_arrays.items())


def test_the_same_content_has_the_same_hash_and_the_same_bytes(tmp_path: Path) -> None:
    one, two = made(), made(features_arrays=dict(reversed(made().features_arrays.items())))
    one.save(tmp_path / "one")
    two.save(tmp_path / "two")
    assert one.hash == two.hash
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"examples": np.arange(1, 13, dtype=np.uint8).reshape(4, 3)},
        {"examples": np.arange(12, dtype=np.float32).reshape(4, 3)},
        {"examples": np.arange(12, dtype=np.uint8).reshape(4, 1, 3)},
        {"labels": None},
        {"labels": np.array([0, 1, 1, 2])},
        {"classes": 4},
        {"features_spec": {"kind": "none"}},
        {"features_arrays": {}},
        {"provenance": {"seed": 1}},
    ],
)
def test_any_other_content_has_another_hash(changes: dict) -> None:
    assert made(**changes).hash != made().hash


@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_an_edit_of_any_byte_is_detected(tmp_path: Path, flip: int) -> None:
    path = tmp_path / "proxy"
    made(provenance={}).save(path)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
        with pytest.raises(DataError) as caught:
            ProxySet.load(path)
        assert caught.value.where == str(path)


def test_an_alteration_names_both_hashes(tmp_path: Path) -> None:
    one = made()
    one.save(tmp_path / "proxy")
    arrays, meta = read_packed(tmp_path / "proxy")
    arrays["x"][0, 0] += 1
    write_atomic(tmp_path / "proxy", pack(arrays, meta))
    with pytest.raises(DataError, match="damaged or altered") as caught:
        ProxySet.load(tmp_path / "proxy")
    assert one.hash in caught.value.what
    assert made(examples=arrays["x"]).hash in caught.value.what


def test_a_file_of_another_kind_or_none_is_refused(tmp_path: Path) -> None:
    write_atomic(tmp_path / "other", pack({"x": np.ones(2)}, {"format": "something"}))
    for name in ("other", "missing"):
        with pytest.raises(DataError):
            ProxySet.load(tmp_path / name)


@pytest.mark.parametrize(
    "changes",
    [
        {"examples": np.full((4, 3), np.nan, np.float32)},
        {"examples": np.ones((4, 3))},
        {"examples": np.ones((3, 3), np.uint8)},
        {"examples": np.ones((0, 3), np.uint8), "labels": None},
        {"labels": np.array([0, 1, 2, 3])},
        {"provenance": {"mean": float("nan")}},
        {"features_spec": {"folder": Path("somewhere")}},
    ],
)
def test_faulty_content_is_never_built(changes: dict) -> None:
    with pytest.raises(DataError):
        made(**changes)


def test_provenance_tells_no_path() -> None:
    assert "secret" not in str(made().provenance)


def test_what_is_built_does_not_follow_the_callers_arrays() -> None:
    x = np.zeros((4, 3), np.uint8)
    one = made(examples=x)
    x[:] = 1
    one.verify()
    assert not one.examples.any()


def test_one_class_alone_is_no_question() -> None:
    with pytest.raises(DataError, match="two classes"):
        build(np.zeros((2, 3), np.float32), None, 1, {"kind": "none"}, {}, {})
