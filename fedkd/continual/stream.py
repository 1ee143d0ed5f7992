"""Streams made of any data: a party's examples, one experience after another.

Which experience an example is in is fixed by its label (which stands for its time) or by a hash of its content, never
by a count: leaving one example out moves no other one, as parallel composition over experiences demands. Experiences
are disjoint, and together they are all examples. Their lists of classes are public: they come from the configuration.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedkd.config import Stream
from fedkd.data.partition import fingerprints
from fedkd.data.sources import Examples, Pixels, as_float
from fedkd.errors import ConfigError
from fedkd.rng import derive_bytes, generator

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Experience:
    """One step of a stream. ``classes`` are those that it may hold; ``told`` says that a test names them too."""

    number: int
    classes: tuple[int, ...]
    told: bool
    train: Examples
    test: Examples

    @property
    def block(self) -> str:
        """Name of the data block that its training examples are."""
        return block_name(self.number)


def block_name(number: int) -> str:
    """Of the experience with this number, from 0."""
    return f"experience-{number + 1}"


def make(stream: Stream, train: Examples, test: Examples, seed: int, client: str = "") -> list[Experience]:
    """The experiences of one client, a pure function of the seed, the client's name and its examples.

    Raises ConfigError where the stream does not suit the examples.
    """
    members = assign(stream, train, seed, client)
    return [
        Experience(
            number,
            classes,
            stream.kind == "task",
            _seen(stream, train.take(np.flatnonzero(members == number)), number, seed),
            _tested(stream, test, classes, number, seed),
        )
        for number, classes in enumerate(class_lists(stream, train.classes, seed, client))
    ]


def class_lists(stream: Stream, classes: int, seed: int, client: str = "") -> list[tuple[int, ...]]:
    """The public classes of each experience. Raises ConfigError for too few classes, or an order that is not theirs."""
    if stream.kind in ("domain", "data"):
        return [tuple(range(classes))] * stream.experiences
    if stream.experiences > classes:
        raise ConfigError(
            f"{classes} classes are too few for {stream.experiences} experiences", where="key 'stream.experiences'"
        )
    order = np.array(stream.order or range(classes))
    if sorted(order) != list(range(classes)):
        raise ConfigError(f"the order must name each of the labels 0 to {classes - 1} once", where="key 'stream.order'")
    if stream.own_order:
        order = generator(seed, "stream", "order", client).permutation(classes)
    return [tuple(int(label) for label in part) for part in np.array_split(order, stream.experiences)]


def assign(stream: Stream, examples: Examples, seed: int, client: str = "") -> Indices:
    """The number of every example's experience [n], each a function of that example alone."""
    if stream.kind in ("class", "task"):
        of_class = np.empty(examples.classes, np.int64)
        for number, labels in enumerate(class_lists(stream, examples.classes, seed, client)):
            of_class[list(labels)] = number
        return of_class[examples.y]
    return by_hash(examples, stream.experiences, derive_bytes(seed, "stream", "hash"))


def by_hash(examples: Examples, blocks: int, key: bytes) -> Indices:
    """A block from 0 to blocks - 1 for every example [n]: a keyed hash of its content and label."""
    marks = fingerprints(examples.x)
    return np.array([_block(mark, label, blocks, key) for mark, label in zip(marks, examples.y, strict=True)], np.int64)


def _block(mark: bytes, label: int, blocks: int, key: bytes) -> int:
    content = hashlib.blake2b(mark + int(label).to_bytes(8, "little"), digest_size=8, key=key).digest()
    return int.from_bytes(content, "little") % blocks


def public(stream: Stream, proxies: Examples, seed: int) -> Examples:
    """Proxies as the stream's parties may meet them: a domain's by a hash of each, so that all domains are covered."""
    if stream.kind != "domain" or stream.proxies == "first":
        return proxies
    members = by_hash(proxies, stream.experiences, derive_bytes(seed, "stream", "proxies"))
    x = np.empty_like(proxies.x)
    for number in range(stream.experiences):
        inside = np.flatnonzero(members == number)
        x[inside] = _seen(stream, proxies.take(inside), number, seed).x
    return Examples(x, proxies.y, proxies.classes, proxies.ids)


def looks(stream: Stream, test: Examples, seed: int) -> list[Examples]:
    """The test examples as each experience shows them: one for each of a domain's, else one for all."""
    return [_seen(stream, test, number, seed) for number in range(stream.experiences if stream.kind == "domain" else 1)]


def _tested(stream: Stream, test: Examples, classes: Sequence[int], number: int, seed: int) -> Examples:
    if stream.kind in ("class", "task"):
        return test.take(np.flatnonzero(np.isin(test.y, classes)))
    return _seen(stream, test, number, seed)


# -- domains -----------------------------------------------------------------------------------------------------------


def _seen(stream: Stream, examples: Examples, number: int, seed: int) -> Examples:
    """As they look in an experience; in the first one as they are."""
    if stream.kind != "domain" or number == 0:
        return examples
    x, share = examples.x, stream.strength * number / max(1, stream.experiences - 1)
    if stream.transform == "permuted":
        size = math.prod(x.shape[1:])
        order = generator(seed, "stream", "domain", number).permutation(size)
        changed: Pixels = x.reshape(len(x), size)[:, order].reshape(x.shape)
    elif stream.transform == "rotated":
        changed = _like(x, _rotated(as_float(x), 180 * share))
    else:
        changed = _like(x, as_float(x) * np.float32(1 - share) + np.float32(share / 2))
    return Examples(changed, examples.y, examples.classes, examples.ids)


def _rotated(x: NDArray[np.float32], angle: float) -> NDArray[np.float32]:
    if x.ndim < 3:
        raise ConfigError(f"examples of shape {list(x.shape[1:])} cannot be rotated", where="key 'stream.transform'")
    turned = ndimage.rotate(x, angle, axes=(x.ndim - 2, x.ndim - 1), reshape=False, order=1)
    return cast(NDArray[np.float32], turned)


def _like(x: Pixels, values: NDArray[np.float32]) -> Pixels:
    """In the type that the examples have."""
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8) if x.dtype == np.uint8 else values.astype(np.float32)


# -- clients -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timetable:
    """When a client is there, and how long it stays in an experience."""

    joins: int
    leaves: int | None
    pace: int

    @classmethod
    def of(cls, stream: Stream, client: int) -> Timetable:
        """Of the client with this number: each list of the stream is dealt in turn."""
        joins, leaves, pace = (some[client % len(some)] for some in (stream.joins, stream.leaves, stream.pace))
        return cls(joins, leaves or None, pace)

    def experience(self, period: int, experiences: int) -> int | None:
        """The number of the experience that it is in; after the last one it stays there. None while it is away."""
        if period < self.joins or (self.leaves is not None and period > self.leaves):
            return None
        return min((period - self.joins) // self.pace, experiences - 1)

    def periods(self, experiences: int) -> int:
        """The period in which it is done with its last experience, or leaves."""
        done = self.joins - 1 + self.pace * experiences
        return done if self.leaves is None else min(done, self.leaves)
