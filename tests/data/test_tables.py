import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.config import Column, Data
from fedkd.data.sources import load
from fedkd.data.tables import Table, encode
from fedkd.errors import DataError

COLUMNS = (
    Column(name="age", mean=50, sd=10),
    Column(name="sex", categories=("f", "m")),
    Column(name="weight", fill="80"),
)
TEXT = "id,age,sex,weight,outcome\n7,60, f ,70.5,well\n\n8,45,m,,ill\n7,50,f,1e2,well\n"


def patients(path: Path, text: str, **changes) -> Data:
    (path / "patients.csv").write_bytes(text.encode())
    settings = {"label": "outcome", "labels": ("ill", "well"), "columns": COLUMNS, **changes}
    return Data(source="csv", path="patients.csv", **settings)


def test_columns_become_numbers_as_the_configuration_says(tmp_path: Path) -> None:
    train, test = load(patients(tmp_path, TEXT), tmp_path)
    assert test is None
    assert train.x.dtype == np.float32
    assert train.x.tolist() == [[1, 1, 0, 70.5], [-0.5, 0, 1, 80], [0, 1, 0, 100]]
    assert (train.y.tolist(), train.classes, train.ids) == ([1, 0, 1], 2, None)


def test_the_configuration_orders_columns_and_numbers_labels(tmp_path: Path) -> None:
    data = patients(tmp_path, TEXT, labels=("well", "ill"), columns=COLUMNS[::-1])
    train, _ = load(data, tmp_path)
    assert train.x[0].tolist() == [70.5, 1, 0, 1]
    assert train.y.tolist() == [0, 1, 0]


def test_ids_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    train, _ = load(patients(tmp_path, TEXT), tmp_path, "id")
    assert train.ids is not None and train.ids.tolist() == [0, 1, 0]
    assert train.take(np.array([1])).ids.tolist() == [1]


def test_ids_may_be_in_a_column_of_any_name(tmp_path: Path) -> None:
    data = Data(source="csv", path="t.csv", label="y", labels=("0", "1"), columns=("x",))
    (tmp_path / "t.csv").write_text("x,y\n5,1\n6,0\n")
    train, _ = load(data, tmp_path, "x")
    assert (train.x.tolist(), train.y.tolist(), train.ids.tolist()) == ([[5], [6]], [1, 0], [0, 1])
    train, _ = load(data, tmp_path, "y")
    assert (train.y.tolist(), train.ids.tolist()) == ([1, 0], [1, 0])


def test_quotes_lines_within_cells_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    text = '\ufeffage,sex,weight,outcome,note\r\n60,f,70,"well","two\r\nlines, one cell"\r\n45,x,70,ill,\r\n'
    with pytest.raises(DataError, match="category 'x'") as caught:
        load(patients(tmp_path, text), tmp_path)
    assert "patients.csv:4, column 'sex'" in caught.value.where


def test_a_client_without_rows_is_allowed(tmp_path: Path) -> None:
    train, _ = load(patients(tmp_path, TEXT.splitlines()[0]), tmp_path)
    assert train.x.shape == (0, 4) and train.classes == 2


def test_a_list_has_room_for_labels_that_nobody_holds(tmp_path: Path) -> None:
    train, _ = load(patients(tmp_path, TEXT, labels=("ill", "well", "unknown")), tmp_path)
    assert train.classes == 3


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        (TEXT + "9,x,f,80,ill\n", "'x' is not a number", ":6, column 'age'"),
        (TEXT + "9,nan,f,80,ill\n", "'nan' is not a finite number", ":6, column 'age'"),
        (TEXT + "9,1_0,f,80,ill\n", "'1_0' is not a finite number", ":6, column 'age'"),
        (TEXT + "9,1e60,f,80,ill\n", "too large", ":6, column 'age'"),
        (TEXT + "9,,f,80,ill\n", "the cell is missing", ":6, column 'age'"),
        (TEXT + "9,50,d,80,ill\n", "category 'd' is not in the list", ":6, column 'sex'"),
        (TEXT + "9,50,,80,ill\n", "the cell is missing", ":6, column 'sex'"),
        (TEXT + "9,50,f,80,dead\n", "label 'dead' is not in the list", ":6, column 'outcome'"),
        (TEXT + "9,50,f,80,\n", "the label is missing", ":6, column 'outcome'"),
        (TEXT + "9,50,f\n", "the row has 3 cells, the header 5", ":6"),
        (TEXT + "9,50,f,80,ill,9\n", "the row has 6 cells, the header 5", ":6"),
        (TEXT + '9,50,"f"f,80,ill\n', "not a CSV file", ":6"),
        (TEXT.replace("weight", "wieght"), "no column 'weight'", "patients.csv"),
        (TEXT.replace("id,age", "age,age"), "two columns 'age'", "patients.csv"),
        ("", "no column 'outcome'", "patients.csv"),
    ],
)
def test_a_faulty_table_names_file_line_and_column(tmp_path: Path, text: str, what: str, place: str) -> None:
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        load(patients(tmp_path, text), tmp_path)
    assert caught.value.where.endswith(place)
    assert str(tmp_path / "patients.csv") in caught.value.where


def test_a_misspelt_column_is_told_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(patients(tmp_path, TEXT.replace("weight", "wieght")), tmp_path)
    assert "did you mean 'wieght'" in caught.value.fix


def test_what_means_missing_is_configured(tmp_path: Path) -> None:
    train, _ = load(patients(tmp_path, TEXT + "9,50,f,NA,ill\n", missing=("", "NA")), tmp_path)
    assert train.x[-1, -1] == 80


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    data = patients(tmp_path, TEXT)
    (tmp_path / "patients.csv").write_bytes(TEXT.encode() + b"\xff\xfe")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        load(data, tmp_path)
    (tmp_path / "patients.csv").unlink()
    with pytest.raises(DataError, match="does not exist") as caught:
        load(data, tmp_path)
    assert caught.value.where == str(tmp_path / "patients.csv")


@given(st.lists(st.tuples(st.floats(-1e30, 1e30), st.sampled_from("fm"), st.sampled_from(["ill", "well"]))))
def test_a_rows_numbers_depend_on_no_other_row(rows: list[tuple[float, str, str]]) -> None:
    """The encoding is a map of single records: under add/remove adjacency it changes no sensitivity."""
    data = Data(source="csv", path="-", label="outcome", labels=("ill", "well"), columns=COLUMNS[:2])

    def encoded(some: list[tuple[float, str, str]]) -> np.ndarray:
        cells = dict(zip(("age", "sex", "outcome"), ([row[i] for row in some] for i in range(3)), strict=True))
        found = encode(Table(cells, str), data)
        return np.column_stack([found["x"], found["y"]])

    together = encoded(rows)
    assert together.shape == (len(rows), 4)
    assert all((encoded([row])[0] == together[at]).all() for at, row in enumerate(rows))
