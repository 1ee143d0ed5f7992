"""Codecs: what arrives is what was sent but for the codec's own rounding, and no bytes do harm."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.codecs import pack, unpack
from fedkd.config import Scenario, load
from fedkd.errors import ConfigError, WireError
from fedkd.wire import check_rows

PLAIN = ("float32", "float16", "int8", "label", "top2", "top3", "top99")
CODECS = [codec + zipped for codec in PLAIN for zipped in ("", "+zlib")]
PACKED = [codec for codec in CODECS if codec not in ("float32", "float16")]
SEEDS = st.integers(0, 2**32 - 1)


def rows(n: int = 20, k: int = 10, seed: int = 0, alpha: float = 0.3) -> Any:
    return np.random.default_rng(seed).dirichlet(np.full(k, alpha), size=n)


@pytest.mark.parametrize("codec", CODECS)
@given(st.integers(0, 40), st.integers(2, 40), SEEDS, st.floats(0.05, 5))
@settings(max_examples=25, deadline=None)
def test_what_arrives_are_probabilities_near_those_that_were_sent(
    codec: str, n: int, k: int, seed: int, alpha: float
) -> None:
    sent = rows(n, k, seed, alpha)
    carried = pack(sent, codec)
    found = unpack(carried, codec, n, k)
    check_rows(found, n, k)
    assert (pack(sent, codec) == carried).all()  # the same bytes for the same rows
    if codec.startswith("float"):
        assert np.allclose(found, sent, atol=1e-3)
    if codec.startswith("int8"):
        # a step is 1/255 of the largest entry; the k half steps lost to rounding move the scale
        assert (np.abs(found - sent) <= sent.max(axis=1, keepdims=True) * (1 + k) / 500).all()


@pytest.mark.parametrize("most", [1, 2, 3])
@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_the_largest_entries_arrive_and_the_others_share_the_rest(most: int, seed: int) -> None:
    sent = rows(seed=seed)
    found = unpack(pack(sent, "label" if most == 1 else f"top{most}"), "label" if most == 1 else f"top{most}", 20, 10)
    for row, arrived in zip(sent, found, strict=True):
        kept = np.argsort(-row, kind="stable")[:most]
        assert np.allclose(arrived[kept], row[kept], atol=most / 255)
        others = np.delete(arrived, kept)
        assert np.allclose(others, others[0]) and others.sum() == pytest.approx(1 - row[kept].sum(), abs=most / 255)


def test_a_first_choice_and_its_probability_take_a_byte_and_a_half() -> None:
    assert len(pack(rows(4000), "label")) == 6000
    assert len(pack(rows(4000), "top3")) == 18000
    assert len(pack(rows(4000), "int8")) == 40000
    assert pack(rows(4000), "float16").nbytes == 80000


@pytest.mark.parametrize("codec", ["float16", "int8", "label", "top3"])
def test_compression_is_lossless_and_saves_bytes(codec: str) -> None:
    sent = rows(4000, alpha=0.05)
    plain, zipped = pack(sent, codec), pack(sent, f"{codec}+zlib")
    assert zipped.nbytes < plain.nbytes
    assert (unpack(zipped, f"{codec}+zlib", 4000, 10) == unpack(plain, codec, 4000, 10)).all()


@pytest.mark.parametrize("codec", PACKED)
@given(st.data(), st.integers(1, 9), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_no_bytes_give_anything_but_probabilities_or_a_wire_error(
    codec: str, data: st.DataObject, n: int, k: int
) -> None:
    good = pack(rows(n, k, alpha=1.0), codec)
    size = st.sampled_from([len(good), len(good), len(good) + 1, max(len(good) - 1, 0), 0])
    made = data.draw(size.flatmap(lambda s: st.binary(min_size=s, max_size=s)))
    plain = zlib.compress(made) if codec.endswith("+zlib") and data.draw(st.booleans()) else made
    try:
        found = unpack(np.frombuffer(plain, np.uint8), codec, n, k)
        if not codec.startswith("float"):  # of floats the rule checks that they are probabilities
            check_rows(found, n, k)
    except WireError:
        pass


@pytest.mark.parametrize("codec", PACKED)
@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=40, deadline=None)
def test_a_changed_byte_gives_probabilities_or_a_wire_error(codec: str, position: int, change: int) -> None:
    carried = pack(rows(), codec).copy()
    carried[position % len(carried)] ^= change
    try:
        found = unpack(carried, codec, 20, 10)
        if not codec.startswith("float"):
            check_rows(found, 20, 10)
    except WireError:
        pass


@pytest.mark.parametrize("codec", CODECS)
def test_another_shape_or_type_is_refused(codec: str) -> None:
    carried = pack(rows(), codec)
    for n, k in ((19, 10), (21, 10), (20, 300)):
        with pytest.raises(WireError):
            unpack(carried, codec, n, k)
    for bad in (carried.astype(np.int64), carried[..., None], carried[:-1]):
        with pytest.raises(WireError):
            unpack(bad, codec, 20, 10)


def test_rows_that_name_no_class_or_no_largest_entry_are_refused() -> None:
    with pytest.raises(WireError, match="no such classes"):
        unpack(np.array([0xF0, 9], np.uint8), "label", 1, 10)  # class 15 of ten
    with pytest.raises(WireError, match="no such classes"):
        unpack(np.array([0x10, 0x10, 9, 9], np.uint8), "top2", 1, 10)  # class 1 twice
    with pytest.raises(WireError, match="no such classes"):
        unpack(np.array([0x10, 0x20, 200, 200], np.uint8), "top2", 1, 10)  # adds up to 400/255
    with pytest.raises(WireError, match="not filled up"):
        unpack(np.array([0x11, 9], np.uint8), "label", 1, 10)
    with pytest.raises(WireError, match="no largest"):
        unpack(np.array([254, 0, 0], np.uint8), "int8", 1, 3)


def test_a_few_bytes_that_stand_for_many_are_not_blown_up() -> None:
    bomb = np.frombuffer(zlib.compress(bytes(10**7)), np.uint8)
    with pytest.raises(WireError, match="not 200 bytes"):
        unpack(bomb, "int8+zlib", 20, 10)
    trailing = np.concatenate([pack(rows(), "int8+zlib"), np.zeros(3, np.uint8)])
    with pytest.raises(WireError, match="not 200 bytes"):
        unpack(trailing, "int8+zlib", 20, 10)


@pytest.mark.parametrize("codec", ["int4", "top1", "top0", "top100", "label+gzip", "+zlib", "int8\n"])
def test_a_codec_that_is_not_there_is_refused(codec: str) -> None:
    with pytest.raises(ConfigError, match="codec"):
        load(Scenario, None, [f"codec={codec!r}"])
