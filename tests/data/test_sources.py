import gzip
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from fedkd.config import Data
from fedkd.data.sources import Examples, as_float, check, load
from fedkd.data.user_code import load_symbol
from fedkd.errors import ConfigError, DataError


def examples(n: int = 4, classes: int = 2) -> Examples:
    return Examples(np.zeros((n, 3), np.float32), np.arange(n, dtype=np.int64) % classes, classes)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(folder: Path, part: str, n: int, compress: bool) -> np.ndarray:
    images = np.arange(n * 28 * 28, dtype=np.uint64).astype(np.uint8).reshape(n, 28, 28)
    arrays = {f"{part}-images-idx3-ubyte": images, f"{part}-labels-idx1-ubyte": (np.arange(n) % 10).astype(np.uint8)}
    for name, array in arrays.items():
        data = idx_bytes(array)
        (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(data) if compress else data)
    return images


@pytest.fixture
def module(tmp_path: Path):
    """Writes user code under a name that no other test has used."""
    path, known = list(sys.path), set(sys.modules)

    def write(text: str) -> str:
        name = f"mine_{random.SystemRandom().getrandbits(48):x}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if name.startswith("mine_"):
            del sys.modules[name]


def test_digits_are_images_between_zero_and_one(tmp_path: Path) -> None:
    train, test = load(Data(source="digits"), tmp_path)
    assert test is None
    assert (train.x.shape, train.x.dtype, train.y.dtype, train.classes) == ((1797, 1, 8, 8), np.float32, np.int64, 10)
    assert (train.x.min(), train.x.max()) == (0, 1)


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_stay_bytes_plain_or_gzipped(tmp_path: Path, compress: bool) -> None:
    images = write_idx(tmp_path, "train", 20, compress)
    write_idx(tmp_path, "t10k", 5, compress)
    train, test = load(Data(source="idx", path="."), tmp_path)
    assert train.x.dtype == np.uint8 and train.x.shape == (20, 1, 28, 28)
    assert (train.x[:, 0] == images).all()
    assert test is not None and len(test) == 5 and test.classes == train.classes == 10


def test_an_idx_folder_may_lack_a_test_part(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 3, True)
    assert load(Data(source="idx", path=str(tmp_path)), Path("elsewhere"))[1] is None


def test_a_missing_idx_file_is_named_with_the_way_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte") as caught:
        load(Data(source="idx", path="nowhere"), tmp_path)
    assert str(tmp_path / "nowhere") in caught.value.where
    assert "apt install dataset-fashion-mnist" in caught.value.fix


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d + b"0", lambda d: b"\1" + d[1:], lambda d: b"", lambda d: d[:6]]
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, damage) -> None:
    write_idx(tmp_path, "train", 3, False)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError) as caught:
        load(Data(source="idx", path="."), tmp_path)
    assert caught.value.where == str(file)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 3, True)
    file = tmp_path / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        load(Data(source="idx", path="."), tmp_path)


def test_npz_arrays_are_read_with_their_declared_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((4, 3)), y=[0, 1, 1, 0], x_test=np.ones((2, 3)), y_test=[4, 0], classes=7)
    train, test = load(Data(source="npz", path="d.npz"), tmp_path)
    assert (train.x.dtype, train.classes, len(train)) == (np.float32, 7, 4)
    assert test is not None and test.y.tolist() == [4, 0]


def test_undeclared_classes_count_the_labels_of_both_parts(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3)), y=[0, 1], x_test=np.ones((1, 3)), y_test=[4])
    assert load(Data(source="npz", path="d.npz"), tmp_path)[0].classes == 5


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"x": np.ones((2, 3))}, "no arrays x and y"),
        ({"x": np.ones((2, 3)), "y": [0]}, "2 examples"),
        ({"x": np.ones(2), "y": [0, 1]}, r"\[n, \*shape\]"),
        ({"x": np.array([[1.0], [np.nan]]), "y": [0, 1]}, "NaN"),
        ({"x": np.array([[1.0], [1e300]]), "y": [0, 1]}, "infinite"),
        ({"x": np.array([["a"]]), "y": [0]}, "numbers"),
        ({"x": np.ones((2, 3)), "y": [0, -1]}, "label -1"),
        ({"x": np.ones((2, 3)), "y": [0, 0.5]}, "not an integer"),
        ({"x": np.ones((2, 3)), "y": ["a", "b"]}, "integers"),
        ({"x": np.ones((2, 3)), "y": [0, 3], "classes": 3}, r"label 3 is not in 0\.\.2"),
        ({"x": np.ones((2, 3)), "y": [0, 3], "classes": 2.5}, "'classes'"),
        ({"x": np.ones((2, 3)), "y": [0, 3], "classes": 10**9}, "'classes'"),
        ({"x": np.ones((2, 3)), "y": [0, 1], "x_test": np.ones((2, 3))}, "together"),
        ({"x": np.ones((2, 3)), "y": [0, 1], "x_test": np.ones((1, 4)), "y_test": [0]}, r"expected \[3\]"),
        ({"x": np.array([[None]], dtype=object), "y": [0]}, "plain arrays"),
    ],
)
def test_a_faulty_npz_is_refused_by_name(tmp_path: Path, arrays: dict, what: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=what) as caught:
        load(Data(source="npz", path="d.npz"), tmp_path)
    assert "d.npz" in caught.value.where


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\3\4 damaged"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"not an|does not exist"):
        load(Data(source="npz", path="d.npz"), tmp_path)


def test_a_single_npy_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.ones(3))
    with pytest.raises(DataError, match="not an"):
        load(Data(source="npz", path="d.npy"), tmp_path)


def test_npz_needs_a_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a file"):
        load(Data(source="npz"), tmp_path)


def test_an_array_of_npz_or_of_a_function_says_whose_an_example_is(tmp_path: Path, module) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 2)), y=[0, 1, 1], ids=["b", "a", "b"], site=[7, 7, 5])
    data = Data(source="npz", path="d.npz")
    assert load(data, tmp_path, "ids")[0].ids.tolist() == [1, 0, 1]
    assert load(data, tmp_path, "site")[0].ids.tolist() == [1, 1, 0]
    assert load(data, tmp_path, "y")[0].ids.tolist() == [0, 1, 1]
    assert load(data, tmp_path)[0].ids is None
    name = module("import numpy as np\ndef f():\n return {'x': np.ones((2, 2)), 'y': [0, 1], 'who': [3, 3]}\n")
    assert load(Data(source=f"{name}:f"), tmp_path, "who")[0].ids.tolist() == [0, 0]
    for source in (Data(source=f"{name}:f"), data, Data(source="digits")):
        with pytest.raises(DataError, match="no 'device'"):
            load(source, tmp_path, "device")


@pytest.mark.parametrize("ids", [[1, 2], [0.5, 1, 2], [["a"], ["b"], ["c"]], ["a", "", "b"]])
def test_ids_are_one_number_or_text_an_example(tmp_path: Path, ids: list) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 2)), y=[0, 1, 1], ids=np.array(ids))
    with pytest.raises(DataError, match="'ids'"):
        load(Data(source="npz", path="d.npz"), tmp_path, "ids")


def test_an_empty_client_is_allowed(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((0, 3)), y=np.zeros(0, int))
    train, _ = load(Data(source="npz", path="d.npz"), tmp_path)
    check(train, "client", shape=(3,), classes=10)
    with pytest.raises(DataError, match="no examples"):
        check(train, "client", allow_empty=False)


def test_check_names_the_first_bad_example() -> None:
    with pytest.raises(DataError, match="label 1") as caught:
        check(examples(), "patients.npz", classes=1)
    assert caught.value.where == "patients.npz, example 1"
    with pytest.raises(DataError, match=r"expected \[4\]"):
        check(examples(), "patients.npz", shape=(4,))


def test_only_bytes_are_rescaled() -> None:
    assert as_float(np.array([[0, 255]], np.uint8)).tolist() == [[0, 1]]
    assert as_float(np.array([[0, 255]], np.float32)).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    "returned",
    [
        "x, y",
        "x, y, x, y",
        "{'x': x, 'y': y, 'classes': 2}",
        "__import__('fedkd.data.sources').data.sources.Examples(x.astype('float32'), y, 2)",
    ],
)
def test_a_users_function_may_return_any_of_the_documented_forms(tmp_path: Path, module, returned: str) -> None:
    name = module(f"import numpy as np\ndef f():\n x, y = np.ones((3, 2)), np.array([0, 1, 1])\n return {returned}\n")
    train, test = load(Data(source=f"{name}:f"), tmp_path)
    assert (len(train), train.classes, train.x.dtype) == (3, 2, np.float32)
    assert (test is not None) == (returned == "x, y, x, y")


def test_a_users_function_gets_the_path_relative_to_the_configuration(tmp_path: Path, module) -> None:
    name = module(
        "import numpy as np\ndef f(path):\n n = int(path.read_text())\n return np.ones((n, 2)), np.zeros(n, int)\n"
    )
    (tmp_path / "n.txt").write_text("6")
    assert len(load(Data(source=f"{name}:f", path="n.txt"), tmp_path)[0]) == 6


def test_a_users_exception_is_shown_with_its_line(tmp_path: Path, module) -> None:
    name = module("def f():\n\n raise KeyError('age')\n")
    with pytest.raises(DataError, match="KeyError: 'age'") as caught:
        load(Data(source=f"{name}:f"), tmp_path)
    assert f"{name}.py:3, in f" in caught.value.where


def test_a_function_that_returns_something_else_is_refused(tmp_path: Path, module) -> None:
    with pytest.raises(DataError, match="NoneType"):
        load(Data(source=f"{module('def f(): pass')}:f"), tmp_path)


def test_missing_modules_and_attributes_are_told_apart(tmp_path: Path, module) -> None:
    with pytest.raises(ConfigError, match="no module 'nosuchmodule'"):
        load_symbol("nosuchmodule:f", tmp_path)
    with pytest.raises(ConfigError, match="has no 'g'"):
        load_symbol(f"{module('')}:g", tmp_path)
    with pytest.raises(ConfigError, match=r"importing .* No module named 'nosuchhelper'"):
        load_symbol(f"{module('import nosuchhelper')}:g", tmp_path)
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        load_symbol(f"{module('1 / 0')}:g", tmp_path)


def test_a_namesake_of_a_package_is_never_taken_silently(tmp_path: Path, module) -> None:
    module("")
    (tmp_path / "json.py").write_text("dumps = None")
    with pytest.raises(ConfigError, match="already"):
        load_symbol("json:dumps", tmp_path)
