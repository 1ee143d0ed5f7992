"""IDX files, the format of MNIST and of its successors (http://yann.lecun.com/exdb/mnist), plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import DataError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
_INSTALL = "check 'path', or install Fashion-MNIST (apt install dataset-fashion-mnist) and leave 'path' out"
_BYTES = b"\0\0\x08"  # two zeros, then the code of unsigned bytes

Part = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def read_folder(folder: Path) -> tuple[Part, Part | None]:
    """Training and test part of a folder; the test part may be missing.

    Images are uint8 [n, 1, height, width] (or [n, channels, height, width] where the file has four axes),
    labels uint8 [n]. Raises DataError naming the file that is missing or damaged.
    """
    train = _part(folder, "train")
    return train, _part(folder, "t10k") if any(folder.glob("t10k-*")) else None


def _part(folder: Path, name: str) -> Part:
    images = read(_find(folder, f"{name}-images-idx3-ubyte"))
    file = _find(folder, f"{name}-labels-idx1-ubyte")
    labels = read(file)
    if images.ndim not in (3, 4) or labels.ndim != 1:
        raise DataError(f"images of shape {images.shape} and labels of shape {labels.shape}", where=str(file.parent))
    if len(images) != len(labels):
        raise DataError(f"{len(images)} images, but {len(labels)} labels", where=str(file))
    return (images[:, None] if images.ndim == 3 else images), labels


def _find(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise DataError(f"there is no {name} or {name}.gz", where=str(folder), fix=_INSTALL)


def read(file: Path) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes. Raises DataError when it is damaged, or holds another type."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the file cannot be read: {error}", where=str(file)) from None
    if len(data) < 4 or not data.startswith(_BYTES):
        raise DataError(f"not an IDX file of unsigned bytes: it begins with {data[:4].hex()}", where=str(file))
    start = 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    if len(data) != start + _size(shape):
        raise DataError(f"{len(data)} bytes do not hold an array of shape {shape}", where=str(file))
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:  # Python's integers: a damaged header must not overflow
        size *= axis
    return size
