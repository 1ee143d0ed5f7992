"""Folders of PNG and JPEG images, one subfolder a label, brought to one size. Needs Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.config import Data, Image
from fedkd.errors import DataError, FedkdError

_FORMATS = ("PNG", "JPEG")
_SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits at most; deeper ones would be cut off


def read_folder(folder: Path, data: Data) -> dict[str, Any]:
    """Images uint8 [n, channels, height, width], labels and number of classes, in the order of labels, then of names.

    ``folder/LABEL/*.png`` for labels of the fixed list, or ``folder/train/LABEL`` and perhaps ``folder/test/LABEL``. A
    label without a subfolder has no examples. Names that begin with a dot are passed over. Raises DataError naming
    the file that is damaged or is no image, and the subfolder that is no label.
    """
    if not folder.is_dir():
        raise DataError("the folder does not exist", where=str(folder), fix="check 'path'")
    if "train" in data.labels or not (folder / "train").is_dir():
        x, y = _part(folder, data)
        return {"x": x, "y": y, "classes": len(data.labels)}
    (x, y), found = _part(folder / "train", data), {"classes": len(data.labels)}
    if (folder / "test").is_dir():
        x_test, y_test = _part(folder / "test", data)
        return {**found, "x": x, "y": y, "x_test": x_test, "y_test": y_test}
    return {**found, "x": x, "y": y}


def _part(folder: Path, data: Data) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    assert data.image is not None
    present = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    for name in sorted(present - set(data.labels)):
        fix = "the list of labels is fixed and public: move this away, or correct 'labels'"
        raise DataError(f"{name!r} is not in the list of labels", where=str(folder / name), fix=fix)
    images: list[NDArray[np.uint8]] = []
    y: list[int] = []
    for number, label in enumerate(data.labels):
        for file in _files(folder / label) if label in present else []:
            images.append(_read(file, data.image))
            y.append(number)
    empty = np.zeros((0, *shape(data.image)), np.uint8)
    return np.stack(images) if images else empty, np.array(y, np.int64)


def _files(folder: Path) -> list[Path]:
    files = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for file in files:
        if not file.is_file() or file.suffix.lower() not in _SUFFIXES:
            raise DataError("not a PNG or JPEG image", where=str(file), fix="move it out of the folder")
    return files


def _read(file: Path, image: Image) -> NDArray[np.uint8]:
    pillow = library()
    try:
        with warnings.catch_warnings():
            # Pillow only warns of small files that unpack to absurd sizes
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(file, formats=_FORMATS) as opened:
                return pixels(opened, image, str(file))
    except FedkdError:
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise DataError(f"the image cannot be read: {error}", where=str(file)) from None


def pixels(opened: Any, image: Image, where: str) -> NDArray[np.uint8]:
    """A Pillow image, upright, in the wanted colours and size: uint8 [channels, height, width]. Raises DataError."""
    from PIL import ImageOps

    if opened.mode not in _MODES:
        raise DataError(f"an image of kind {opened.mode} has more than 8 bits a colour", where=where, fix="convert it")
    upright = ImageOps.exif_transpose(opened).convert("L" if image.colour == "grey" else "RGB")
    if upright.size != (image.width, image.height):
        upright = upright.resize((image.width, image.height), library().Resampling.BILINEAR)
    return np.asarray(upright, np.uint8).reshape(image.height, image.width, -1).transpose(2, 0, 1)


def shape(image: Image) -> tuple[int, int, int]:
    """Channels, height and width."""
    return (1 if image.colour == "grey" else 3), image.height, image.width


def library() -> Any:
    """Pillow's module Image. Raises DataError where it is not installed."""
    try:
        from PIL import Image as pillow
    except ImportError:
        raise DataError("reading images needs Pillow", fix="pip install 'fedkd[images]'") from None
    return pillow
