"""Tensors and JSON as bytes: one canonical form, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedkd.errors import DataError

Arrays = dict[str, NDArray[Any]]


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def pack(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    """Arrays and a JSON-able description as one safetensors blob, the same bytes for the same content.

    The description is one metadata entry because safetensors does not fix the order of several.
    """
    ready = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return bytes(save(ready, {"fedkd": canonical(meta).decode()}))


def unpack(data: bytes) -> tuple[Arrays, dict[str, Any]]:
    """Inverse of pack. Raises DataError for anything that is not such a blob."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        meta = json.loads(header["__metadata__"]["fedkd"])
        arrays: Arrays = load(data)
    except (ValueError, KeyError, TypeError, SafetensorError, RecursionError) as error:
        raise DataError(f"not a fedkd tensor file ({type(error).__name__})") from None
    if not isinstance(meta, dict):
        raise DataError("not a fedkd tensor file (no description)")
    return arrays, meta


def unpack_plain(data: bytes) -> Arrays:
    """Arrays by name of a safetensors blob without a description, as other tools write it. Raises DataError."""
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        fix = "convert it: pickles are not read"
        raise DataError(f"not a safetensors file ({type(error).__name__})", fix=fix) from None


def below(prefix: str, content: Arrays) -> Arrays:
    """The arrays whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): array for name, array in content.items() if name.startswith(prefix)}
