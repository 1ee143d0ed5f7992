import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from fedkd.config import Data
from fedkd.data.sources import load
from fedkd.errors import DataError

pillow = pytest.importorskip("PIL.Image")


def write(file: Path, array: np.ndarray, **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(array).save(file, **options)
    return file


def animals(labels: tuple[str, ...] = ("cat", "dog"), colour: str = "grey", side: int = 4) -> Data:
    return Data(source="folder", path=".", labels=labels, image={"height": side, "width": side, "colour": colour})


def test_images_are_read_in_the_order_of_labels_and_names(tmp_path: Path) -> None:
    for name, level in (("dog/a.png", 1), ("dog/b.PNG", 2), ("cat/z.png", 3)):
        write(tmp_path / name, np.full((4, 4), level, np.uint8))
    train, test = load(animals(), tmp_path)
    assert test is None and (train.x.shape, train.x.dtype) == ((3, 1, 4, 4), np.uint8)
    assert train.x[:, 0, 0, 0].tolist() == [3, 1, 2]
    assert (train.y.tolist(), train.classes) == ([0, 1, 1], 2)
    assert load(animals(("dog", "cat")), tmp_path)[0].y.tolist() == [0, 0, 1]


def test_colours_and_sizes_are_the_configurations(tmp_path: Path) -> None:
    rgb = np.zeros((8, 6, 3), np.uint8)
    rgb[..., 0] = 200
    write(tmp_path / "cat" / "a.png", rgb)
    write(tmp_path / "cat" / "b.jpg", np.full((30, 20), 100, np.uint8), quality=95)
    train, _ = load(animals(colour="rgb"), tmp_path)
    assert train.x.shape == (2, 3, 4, 4)
    assert train.x[0, :, 0, 0].tolist() == [200, 0, 0]
    assert np.abs(train.x[1].astype(int) - 100).max() <= 2
    assert load(animals(), tmp_path)[0].x[0, 0, 0, 0] == 60  # luma of that red


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = pillow.Exif()
    exif[0x0112] = 3  # upside down
    array = np.zeros((4, 4), np.uint8)
    array[0] = 255
    write(tmp_path / "cat" / "a.png", array, exif=exif)
    assert load(animals(), tmp_path)[0].x[0, 0, :, 0].tolist() == [0, 0, 0, 255]


def test_a_folder_may_have_a_part_to_test_on(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "a.png", np.zeros((4, 4), np.uint8))
    write(tmp_path / "test" / "dog" / "a.png", np.zeros((4, 4), np.uint8))
    train, test = load(animals(), tmp_path)
    assert test is not None and (train.y.tolist(), test.y.tolist()) == ([0], [1])


def test_a_client_without_images_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / ".hidden").mkdir()
    train, _ = load(animals(), tmp_path)
    assert train.x.shape == (0, 1, 4, 4) and train.classes == 2


def damaged(file: Path) -> None:
    file.write_bytes(write(file, np.random.default_rng(0).integers(0, 256, (9, 9), np.uint8)).read_bytes()[:-40])


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("cat/a.png", damaged, "cannot be read"),
        ("cat/a.jpg", damaged, "cannot be read"),
        ("cat/a.png", lambda file: file.write_bytes(b"text"), "cannot be read"),
        ("cat/a.txt", lambda file: file.write_bytes(b"text"), "not a PNG or JPEG"),
        ("cat/a.png", lambda file: file.mkdir(), "not a PNG or JPEG"),
        ("cat/a.png", lambda file: write(file, np.zeros((4, 4), np.uint16)), "more than 8 bits"),
        ("bird/a.png", lambda file: write(file, np.zeros((4, 4), np.uint8)), "'bird' is not in the list of labels"),
        ("a.png", lambda file: write(file, np.zeros((4, 4), np.uint8)), "'a.png' is not in the list of labels"),
    ],
)
def test_what_does_not_belong_is_named(tmp_path: Path, name: str, make, what: str) -> None:
    write(tmp_path / "cat" / "0.png", np.zeros((4, 4), np.uint8))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)
    with pytest.raises(DataError, match=what) as caught:
        load(animals(), tmp_path)
    assert str(tmp_path / name.split("/")[0]) in caught.value.where


def test_a_small_file_of_absurdly_many_pixels_is_not_unpacked(tmp_path: Path) -> None:
    file = write(tmp_path / "cat" / "bomb.png", np.zeros((4, 4), np.uint8))
    content = bytearray(file.read_bytes())
    content[16:24] = (20_000).to_bytes(4, "big") * 2  # width and height in the header
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    file.write_bytes(content)
    with pytest.raises(DataError, match="bomb") as caught:
        load(animals(), tmp_path)
    assert str(file) in caught.value.where


def test_a_missing_folder_or_library_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load(animals(), tmp_path / "nowhere")
    write(tmp_path / "cat" / "a.png", np.zeros((4, 4), np.uint8))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match="needs Pillow") as caught:
        load(animals(), tmp_path)
    assert "fedkd[images]" in caught.value.fix
