"""Seeds: every random choice outside the privacy mechanism is a pure function of the run's seed and a name."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_bytes(seed: int, *names: object) -> bytes:
    """32 bytes that depend on the seed and the path of names, and on nothing else."""
    text = "\x1f".join([str(int(seed)), *(str(name) for name in names)])
    return hashlib.sha256(text.encode()).digest()


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream called ``names``."""
    return int.from_bytes(derive_bytes(seed, *names)[:8], "little") >> 1


def generator(seed: int, *names: object) -> np.random.Generator:
    """A numpy generator for the stream called ``names``."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))
