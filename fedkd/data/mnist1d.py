"""MNIST-1D: ten one-dimensional "digits" of 40 numbers, made on the spot (Greydanus & Kobak 2024, arXiv:2011.14439).

The procedure and its constants are the published ones; the random numbers are our own, so that examples have the
published distribution but are not those of the published file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from fedkd.rng import generator

Floats = NDArray[np.float64]

LENGTH = 40
CLASSES = 10
_PADDING = (36, 60)  # zeros behind a template
_LONGEST = 12 + _PADDING[1]
_SCALE = 0.4  # all strengths are full widths of a uniform draw around zero
_SHEAR = 0.75
_TRANSLATION = 48
_CORRELATED = 0.25  # standard deviation before smoothing
_SMOOTHING = 2.0
_INDEPENDENT = 0.02
_TRAIN = 0.8
# Twelve heights of each digit's stroke, as the paper draws them.
_STROKES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)


def make(size: int, seed: int) -> dict[str, NDArray[np.float32] | NDArray[np.int64] | int]:
    """``size`` examples, a pure function of ``seed``: arrays x float32 [4/5 size, 1, 40], y, and x_test, y_test.

    Classes are equally frequent in the whole. Mean and standard deviation of all numbers are 0 and 1, as published.
    """
    random = generator(seed, "data", "mnist1d")
    y = random.permutation(np.arange(size) % CLASSES)
    x = _transformed(templates()[y], random)
    x = ((x - x.mean()) / x.std()).astype(np.float32)[:, None]
    end = int(size * _TRAIN)
    return {"x": x[:end], "y": y[:end], "x_test": x[end:], "y_test": y[end:], "classes": CLASSES}


def templates() -> Floats:
    """The ten strokes [10, 12], standardised, moved to begin at zero, and made six times smaller."""
    strokes = np.array(_STROKES)
    strokes = (strokes - strokes.mean(axis=1, keepdims=True)) / strokes.std(axis=1, keepdims=True)
    return np.asarray((strokes - strokes[:, :1]) / 6)


def _transformed(strokes: Floats, random: np.random.Generator) -> Floats:
    """Strokes [n, 12] to examples [n, 40]: pad, stretch, scale, translate, add noise, shear, subsample."""
    n = len(strokes)
    at = _stretched_positions(n, random)
    x, drawn = _heights(strokes, at), at < strokes.shape[1]
    x *= 1 + _SCALE * _uniform(n, random)
    shift = random.integers(_TRANSLATION, size=(n, 1))
    places = (np.arange(_LONGEST) - shift) % _LONGEST
    x, drawn = np.take_along_axis(x, places, axis=1), np.take_along_axis(drawn, places, axis=1)
    # where nothing is drawn there is a smooth wander instead of zeros
    wander = gaussian_filter1d(_CORRELATED * random.standard_normal(x.shape), _SMOOTHING, axis=1)
    x = np.where(drawn, x, wander) + _INDEPENDENT * random.standard_normal(x.shape)
    x -= _SHEAR * _uniform(n, random) * np.linspace(-0.5, 0.5, _LONGEST)
    return _heights(x, np.broadcast_to(np.linspace(0, _LONGEST - 1, LENGTH), (n, LENGTH)))


def _stretched_positions(n: int, random: np.random.Generator) -> Floats:
    """Where on its padded stroke each of 72 numbers of an example lies: [n, 72], from 0 to the padded stroke's end."""
    padding = random.integers(_PADDING[0], _PADDING[1], size=(n, 1), endpoint=True)
    return np.asarray(np.linspace(0, 1, _LONGEST) * (len(_STROKES[0]) + padding - 1))


def _heights(lines: Floats, at: Floats) -> Floats:
    """Lines [n, m] at the positions [n, k], straight between the points and falling to zero behind the last one."""
    padded = np.pad(lines, ((0, 0), (0, 2)))
    left = np.minimum(np.floor(at), lines.shape[1]).astype(np.int64)
    share = np.minimum(at - left, 1)
    ends = (np.take_along_axis(padded, left + step, axis=1) for step in (0, 1))
    return np.asarray(next(ends) * (1 - share) + next(ends) * share)


def _uniform(n: int, random: np.random.Generator) -> Floats:
    """One draw for each example [n, 1], from -0.5 to 0.5."""
    return random.random((n, 1)) - 0.5
