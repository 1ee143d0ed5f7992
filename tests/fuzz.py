"""Messages that are almost valid: bits flipped, parts cut and doubled, fields and arrays of other types and sizes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from fedkd.tensors import pack, unpack

SEVERAL = 4
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**200, 0.0, -1.5, 1e308, 1e-320, "", "a", "../../etc/passwd", "\x1b[2J",
    "x" * 5000, "0" * 64, "\u202e", [], [[]], {}, {"a": {}}, ["run-1"], "hello", "plan", "answers", "run-1", "server",
)  # fmt: skip
ARRAYS: tuple[Any, ...] = (
    np.zeros(0, np.uint32), np.zeros((0, 2), np.float32), np.full((6, 2), np.nan, np.float32),
    np.ones((6, 2), np.int32),
    np.full((6, 2), np.inf, np.float16), np.arange(6, dtype=np.uint32), np.full(6, 2**32 - 1, np.uint32), np.float32(1),
    np.zeros((1, 1, 1, 1)), np.full((6, 2), -1e30, np.float32), np.zeros((1000, 1000), np.uint8), np.zeros(3, np.bool_),
)  # fmt: skip


def mutated(valid: bytes, chance: random.Random) -> bytes:
    """One mutation, or a few on top of each other."""
    data = valid
    for _ in range(chance.randint(1, SEVERAL)):
        data = chance.choice((_flip, _cut, _double, _insert, _field, _field, _array))(data, chance)
    return data


def _flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8) if data else 0):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(data: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randint(0, len(data)) for _ in range(2))
    return chance.choice((data[:start], data[start:], data[:start] + data[end:]))


def _double(data: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randint(0, len(data)) for _ in range(2))
    return data[:end] + data[start:]


def _insert(data: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + chance.randbytes(chance.randint(1, 64)) + data[at:]


def _field(data: bytes, chance: random.Random) -> bytes:
    """Another value of a field, a field too many, or one too few; of a blob that is still one."""
    try:
        arrays, header = unpack(data)
    except Exception:
        return data
    name = chance.choice([*sorted(header), "weights", "losses"])
    if chance.random() < 0.2:
        header.pop(name, None)
    else:
        header[name] = chance.choice(VALUES)
    return pack(arrays, header)


def _array(data: bytes, chance: random.Random) -> bytes:
    try:
        arrays, header = unpack(data)
    except Exception:
        return data
    arrays[chance.choice([*sorted(arrays), "weights", "rows"])] = np.asarray(chance.choice(ARRAYS))
    return pack(arrays, header)
