"""How a matrix of probabilities travels: a pure function of rows that may leave already, and its inverse.

What is packed has been released: nothing here is a privacy mechanism, and nothing here knows private data. The size of
what is packed is known beforehand, or bounded where it is compressed; bytes of another size, or that stand for no rows
of probabilities, are refused.
"""

from __future__ import annotations

import zlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import WireError

FLOATS = {"float16": np.float16, "float32": np.float32}
LEVELS = 255
"""What an 8-bit number divides one by."""

Bytes = NDArray[np.uint8]


def pack(rows: NDArray[Any], codec: str) -> NDArray[Any]:
    """Probabilities [n, k] as ``codec`` carries them: a matrix of floats, or a vector of bytes."""
    name, _, zipped = codec.partition("+")
    if not zipped and name in FLOATS:
        return np.ascontiguousarray(rows, dtype=FLOATS[name])
    packed = _form(name).pack(rows)
    return np.frombuffer(zlib.compress(packed.tobytes(), 9), np.uint8) if zipped else packed


def unpack(carried: NDArray[Any], codec: str, rows: int, classes: int) -> NDArray[Any]:
    """Rows [rows, classes] that ``carried`` stands for: of float16 and float32 as they are, of other codecs float32
    probabilities. Raises WireError for what the codec does not give."""
    name, _, zipped = codec.partition("+")
    if not zipped and name in FLOATS:
        if carried.shape != (rows, classes) or carried.dtype != FLOATS[name]:
            raise WireError(f"rows are {carried.dtype} {carried.shape}, not {name} {(rows, classes)}")
        return carried
    if carried.ndim != 1 or carried.dtype != np.uint8:
        raise WireError(f"rows are not packed as {codec}")
    form = _form(name)
    size = form.size(rows, classes)
    data = _unzip(carried.tobytes(), size) if zipped else carried
    if len(data) != size:
        raise WireError(f"{len(data)} bytes where {codec} has {size}")
    return form.unpack(data, rows, classes)


def of_soft_labels(codec: str) -> str:
    """How the teacher's soft labels travel: as floats, since students learn from them again and again."""
    return "float32" if codec.startswith("float32") else "float16"


class _Form(Protocol):
    def size(self, rows: int, classes: int) -> int: ...
    def pack(self, rows: NDArray[Any]) -> Bytes: ...
    def unpack(self, data: Bytes, rows: int, classes: int) -> NDArray[Any]: ...


class _Floats:
    """Floats with all their first bytes together, then all their second ones: alike bytes lie side by side."""

    def __init__(self, name: str) -> None:
        self._type = np.dtype(FLOATS[name]).newbyteorder("<")

    def size(self, rows: int, classes: int) -> int:
        return rows * classes * self._type.itemsize

    def pack(self, rows: NDArray[Any]) -> Bytes:
        flat = np.ascontiguousarray(rows, self._type).reshape(-1)
        return np.ascontiguousarray(flat.view(np.uint8).reshape(-1, self._type.itemsize).T).reshape(-1)

    def unpack(self, data: Bytes, rows: int, classes: int) -> NDArray[Any]:
        bytes_ = np.ascontiguousarray(data.reshape(self._type.itemsize, -1).T)
        return bytes_.view(self._type).reshape(rows, classes).astype(np.float32)


class _Int8:
    """Affine per row, with offset 0: a row over its largest entry, in steps of 1/255. The scale need not travel, as a
    row of probabilities sums to one."""

    def size(self, rows: int, classes: int) -> int:
        return rows * classes

    def pack(self, rows: NDArray[Any]) -> Bytes:
        wide = rows.astype(np.float64)
        steps: Bytes = np.rint(wide / wide.max(axis=1, keepdims=True) * LEVELS).astype(np.uint8)
        return steps.reshape(-1)

    def unpack(self, data: Bytes, rows: int, classes: int) -> NDArray[Any]:
        steps = data.reshape(rows, classes).astype(np.float32)
        if (steps.max(axis=1) != LEVELS).any():
            raise WireError("a row of int8 has no largest entry")
        scaled: NDArray[np.float32] = steps / steps.sum(axis=1, keepdims=True)
        return scaled


class _Top:
    """The ``most`` largest entries of a row: their classes, rising, in as few bits as name them, and their values in
    steps of 1/255. What they leave of one is shared equally by the other classes."""

    def __init__(self, most: int) -> None:
        self._most = most

    def _kept(self, classes: int) -> int:
        return min(self._most, classes - 1)

    def size(self, rows: int, classes: int) -> int:
        return self._kept(classes) * (-(-rows * _bits(classes) // 8) + rows)

    def pack(self, rows: NDArray[Any]) -> Bytes:
        wide = rows.astype(np.float64)
        kept = self._kept(wide.shape[1])
        classes = np.sort(np.argsort(-wide, axis=1, kind="stable")[:, :kept], axis=1)
        steps = np.rint(np.take_along_axis(wide, classes, axis=1) * LEVELS).astype(np.uint8)
        names = [_pack_bits(column, _bits(wide.shape[1])) for column in classes.T]
        return np.concatenate([*names, *steps.T])

    def unpack(self, data: Bytes, rows: int, classes: int) -> NDArray[Any]:
        kept, width = self._kept(classes), _bits(classes)
        names, values = np.split(data, [len(data) - kept * rows])
        which = np.stack([_unpack_bits(plane, width, rows) for plane in names.reshape(kept, -1)], axis=1)
        steps = values.reshape(kept, rows).T.astype(np.float32)
        total = steps.sum(axis=1, keepdims=True)
        if (which >= classes).any() or (np.diff(which, axis=1) <= 0).any() or (total > LEVELS + kept / 2).any():
            raise WireError("a row names no such classes, or more than the whole of them")
        whole = np.maximum(total, LEVELS)
        result = np.repeat((whole - total) / whole / np.float32(classes - kept), classes, axis=1).astype(np.float32)
        np.put_along_axis(result, which, steps / whole, axis=1)
        return result


def _form(name: str) -> _Form:
    if name in FLOATS:
        return _Floats(name)
    return _Int8() if name == "int8" else _Top(1 if name == "label" else int(name.removeprefix("top")))


def _bits(classes: int) -> int:
    """How many bits name a class."""
    return max(1, (classes - 1).bit_length())


def _pack_bits(numbers: NDArray[Any], width: int) -> Bytes:
    bits = (numbers[:, None] >> np.arange(width - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1))


def _unpack_bits(plane: Bytes, width: int, count: int) -> NDArray[np.int64]:
    bits = np.unpackbits(plane)
    if bits[count * width :].any():
        raise WireError("the last byte of a row of classes is not filled up with zeros")
    return bits[: count * width].reshape(count, width).astype(np.int64) @ (1 << np.arange(width - 1, -1, -1))


def _unzip(data: bytes, size: int) -> Bytes:
    """Never more than one byte too many: a few bytes may stand for gigabytes. Raises WireError."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, size + 1)
    except zlib.error:
        raise WireError("rows are not compressed as zlib does") from None
    if not stream.eof or stream.unused_data:
        raise WireError(f"compressed rows that are not {size} bytes")
    return np.frombuffer(plain, np.uint8)
