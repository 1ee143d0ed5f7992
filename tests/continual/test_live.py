"""Each record is taken into one block exactly once, whenever the process is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import warnings
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.config import Live
from fedkd.continual.live import Block, LiveStream, Record, Taken
from fedkd.data import proxy
from fedkd.data.proxy import ProxySet
from fedkd.errors import DataError
from fedkd.locks import hold
from tests.journeys.conftest import fedkd

__all__ = ["fedkd"]

DAY = 86_400
PUBLIC = proxy.build(np.zeros((2, 3), np.float32), None, 4, {"kind": "none"}, {}, {"source": "made"})


def write(folder: Path, name: str, n: int = 3, seed: int = 0, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    arrays = {"x": random.random((n, 3), np.float32), "y": random.integers(0, 4, n), "time": random.random(n) * 5 * DAY}
    np.savez(folder / name, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})  # type: ignore[arg-type]
    return folder / name


def opened(folder: Path, told: list[str] | None = None, **keys: object) -> LiveStream:
    live = Live.model_validate({"source": "inbox", "held_out": 0, **keys})
    console = (told if told is not None else []).append
    return LiveStream(folder / "stream.sqlite", live, folder, PUBLIC, console)


# -- once, in one block ------------------------------------------------------------------------------------------------


def test_a_record_is_in_the_block_of_its_time(tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz", 4, time=np.array([0.0, DAY - 1, DAY, 5.5 * DAY]))
    with closing(opened(tmp_path)) as stream:
        assert stream.ingest() == Taken(new=4)
        assert stream.blocks() == [Block("time-0", 2, False), Block("time-1", 1, False), Block("time-5", 1, False)]
        assert len(stream.examples("time-0")) == 2 and len(stream.examples("time-2")) == 0


def test_looking_again_takes_nothing_twice(tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz")
    with closing(opened(tmp_path)) as stream:
        assert stream.ingest() == Taken(new=3) and stream.ingest() == Taken()
        write(tmp_path / "inbox", "b.npz", seed=1)
        assert stream.ingest() == Taken(new=3)


def test_the_same_record_under_another_name_is_the_same_record(tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz")
    write(tmp_path / "inbox", "copy.npz")
    with closing(opened(tmp_path)) as stream:
        assert stream.ingest() == Taken(new=3, known=3)
        assert sum(block.records for block in stream.blocks()) == 3


def test_a_file_that_was_changed_after_it_was_taken_is_ignored(tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz")
    told: list[str] = []
    with closing(opened(tmp_path, told)) as stream:
        stream.ingest()
        before = [stream.examples(block.name).x for block in stream.blocks()]
        write(tmp_path / "inbox", "a.npz", seed=9)
        assert stream.ingest() == Taken(refused=1) and "a.npz" in told[0]
        (tmp_path / "inbox" / "a.npz").unlink()
        assert stream.ingest() == Taken()
        after = [stream.examples(block.name).x for block in stream.blocks()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 5))
def test_blocks_do_not_depend_on_the_order_of_arrival_or_on_other_records(order: list[int], left_out: int) -> None:
    import tempfile

    def content(names: list[int]) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as name, closing(opened(Path(name), by="hash", blocks=3)) as stream:
            for number in names:
                write(Path(name) / "inbox", f"{number}.npz", 1, seed=number, time=None)
                stream.ingest()
            return {block.name: stream.examples(block.name).x.tobytes() for block in stream.blocks()}

    assert content(order) == content(sorted(order))
    whole, rest = content(order), content([number for number in order if number != left_out])
    alone = content([left_out])
    (block,) = alone
    assert {name: value for name, value in whole.items() if name != block} == {
        name: value for name, value in rest.items() if name != block
    }
    assert len(rest.get(block, b"")) + len(alone[block]) == len(whole[block])


@pytest.mark.parametrize("keys", [{"by": "time"}, {"by": "hash", "blocks": 3}])
def test_leaving_a_record_out_moves_no_other_one(keys: dict[str, object], tmp_path: Path) -> None:
    """The demand of parallel composition: membership by time or by hash, whatever else is there."""

    def members(folder: Path, left_out: int | None) -> dict[bytes, str]:
        for number in (n for n in range(12) if n != left_out):
            write(folder / "inbox", f"{number:02}.npz", 1, seed=number)
        with closing(opened(folder, **keys)) as stream:
            stream.ingest()
            return {x.tobytes(): block.name for block in stream.blocks() for x in stream.examples(block.name).x}

    whole = members(tmp_path / "whole", None)
    assert len(whole) == 12 and len(set(whole.values())) > 1
    for number in range(12):
        rest = members(tmp_path / str(number), number)
        assert len(rest) == 11 and all(whole[record] == block for record, block in rest.items())


def test_the_list_of_labels_is_the_proxy_sets_whatever_labels_have_come(tmp_path: Path) -> None:
    """A list that grew would tell which labels a device has seen, by the width of its answers."""
    told: list[str] = []
    write(tmp_path / "inbox", "a.npz", 2, y=np.array([0, 1]), time=np.zeros(2))
    with closing(opened(tmp_path, told)) as stream:
        stream.ingest()
        assert stream.examples("time-0").classes == stream.examples("time-9").classes == PUBLIC.classes
        write(tmp_path / "inbox", "b.npz", 1, y=np.array([PUBLIC.classes]), time=np.zeros(1))
        assert stream.ingest() == Taken(refused=1) and "labels" in told[-1]
        assert stream.examples("time-0").classes == PUBLIC.classes and len(stream.examples("time-0")) == 2


def test_a_record_that_comes_after_its_block_was_sealed_is_never_learned(tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz", 2, time=np.array([1.0, 2.0]))
    with closing(opened(tmp_path)) as stream:
        stream.ingest()
        stream.seal("time-0")
        before = stream.examples("time-0").x
        write(tmp_path / "inbox", "late.npz", 2, seed=1, time=np.array([3.0, DAY + 1.0]))
        assert stream.ingest() == Taken(new=1, late=1)
        assert np.array_equal(stream.examples("time-0").x, before)
        assert stream.blocks() == [Block("time-0", 2, True), Block("time-1", 1, False)]


def test_the_rule_of_the_blocks_never_changes(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    opened(tmp_path).close()
    with pytest.raises(DataError, match="blocks by"):
        opened(tmp_path, period=3600)
    with pytest.raises(DataError, match="blocks by"):
        opened(tmp_path, by="hash")
    opened(tmp_path).close()


def test_a_row_of_eight_bits_beside_floats_is_in_the_same_scale(tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz", 1, x=np.full((1, 3), 255, np.uint8), time=np.array([1.0]))
    write(tmp_path / "inbox", "b.npz", 1, x=np.full((1, 3), 0.5, np.float32), time=np.array([2.0]))
    with closing(opened(tmp_path)) as stream:
        stream.ingest()
        assert sorted(stream.examples("time-0").x.max(axis=1).tolist()) == [0.5, 1.0]


# -- what a device may write ------------------------------------------------------------------------------------------


def _huge() -> bytes:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000), }"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


STRANGE: dict[str, Callable[[Path], object]] = {
    "a time beyond all blocks": lambda path: write(path.parent, path.name, 1, time=np.array([1e300])),
    "texts": lambda path: write(path.parent, path.name, 1, x=np.array([["a", "b", "c"]])),
    "records of fields": lambda path: write(path.parent, path.name, 1, x=np.zeros((1, 3), [("a", "f4")])),
    "complex numbers": lambda path: write(path.parent, path.name, 1, x=np.zeros((1, 3), np.complex64)),
    "a folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "half a zip": lambda path: path.write_bytes(b"PK\x03\x04garbage"),
    "an array alone": lambda path: path.write_bytes(_huge()),
    "a member that is no array": lambda path: zipped(path, b"text"),
    "a header that is no header": lambda path: zipped(path, _huge().replace(b"'descr'", b"'descr")),
    "a shape larger than any memory": lambda path: zipped(path, _huge()),
}


def zipped(path: Path, x: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", x)
        for name in ("y", "time"):
            buffer = io.BytesIO()
            np.save(buffer, np.zeros(1, int))
            file.writestr(f"{name}.npy", buffer.getvalue())


@pytest.mark.parametrize("what", STRANGE)
def test_whatever_a_source_holds_is_refused_and_stops_no_other(what: str, tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz")
    write(tmp_path / "inbox", "c.npz", seed=1)
    STRANGE[what](tmp_path / "inbox" / "b.npz")
    told: list[str] = []
    with closing(opened(tmp_path, told)) as stream:
        assert stream.ingest() == Taken(new=6, refused=1)
    assert "b.npz" in told[0]


@pytest.mark.parametrize("x", [b"PK\x03\x04garbage", b"", "text", None, 3, _huge()])
def test_whatever_a_row_holds_is_refused_and_stops_no_other(x: object, tmp_path: Path) -> None:
    good = io.BytesIO()
    np.save(good, np.zeros(3, np.float32))
    with closing(sqlite3.connect(tmp_path / "inbox")) as device:
        device.execute("CREATE TABLE records (id, time, x, y)")
        rows = [
            (1, 0.0, good.getvalue(), 0),
            (2, 1.0, x, 0),
            (3, 2.0, good.getvalue(), 0),
            (4, 1e300, good.getvalue(), 0),
        ]
        device.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", rows)
        device.commit()
    with closing(opened(tmp_path)) as stream:
        assert stream.ingest() == Taken(new=2, refused=2)


@pytest.mark.parametrize("name", ["foo", "time-", "hash-7", "time-9999999999999999999", "time-1.5"])
def test_what_is_no_block_cannot_be_closed(name: str, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    with closing(opened(tmp_path)) as stream, pytest.raises(DataError, match="no block"):
        stream.seal(name)


# -- held out, and forgotten -------------------------------------------------------------------------------------------


def test_whether_a_record_is_held_out_depends_on_it_alone_and_nothing_learns_it(tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz", 400, time=np.ones(400))
    with closing(opened(tmp_path, held_out=0.25)) as whole:
        whole.ingest()
        learned, held = whole.examples("time-0").x, whole.held_out().x
        assert len(learned) + len(held) == 400 and 70 < len(held) < 130
        assert not {row.tobytes() for row in learned} & {row.tobytes() for row in held}
    with np.load(tmp_path / "inbox" / "a.npz") as file:
        write(tmp_path / "some" / "inbox", "b.npz", 50, **{key: file[key][:50] for key in ("x", "y", "time")})
    with closing(opened(tmp_path / "some", held_out=0.25)) as some:
        some.ingest()
        assert {row.tobytes() for row in some.held_out().x} <= {row.tobytes() for row in held}


def test_what_can_never_be_learned_again_is_forgotten_and_comes_too_late(tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz", 600, time=np.arange(600) * DAY / 200)
    with closing(opened(tmp_path, held_out=0.9)) as stream:
        stream.ingest()
        assert stream.enter("run", 1, "time-0", again=False) == "time-0"
        stream.forget("time-2")
        assert len(stream.examples("time-0")) and not len(stream.examples("time-1")), "the one that was entered stays"
        stream.enter("run", 2, "time-2", again=False)
        stream.forget("time-2")
        assert not len(stream.examples("time-0")) and len(stream.examples("time-2"))
        old = (
            len(stream.held_out())
            - stream._db.execute("SELECT COUNT(*) FROM records WHERE held_out = 1 AND block = 2").fetchone()[0]
        )
        assert 0 < old < 4 * 100
        write(tmp_path / "inbox", "late.npz", 2, seed=1, time=np.array([1.0, DAY * 3.5]))
        assert stream.ingest() == Taken(new=1, late=1)
        stream.forget("time-1")  # a clock that was set back opens nothing again
        write(tmp_path / "inbox", "later.npz", 1, seed=2, time=np.array([1.5 * DAY]))
        assert stream.ingest() == Taken(late=1)


def test_a_round_that_is_entered_again_has_the_block_that_it_had(tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz", 2, time=np.array([1.0, DAY]))
    with closing(opened(tmp_path, delay=10)) as stream:
        assert stream.current(DAY + 9) == "time--1" and stream.current(DAY + 10) == "time-0"
        stream.ingest()
        assert stream.enter("run", 1, "time-0", again=False) == "time-0"
        assert stream.enter("run", 1, "time-1", again=True) == "time-0"
        assert stream.enter("run", 1, "time-1", again=False) == "time-1", "nothing was charged: it begins anew"


def test_a_name_is_free_again_once_its_file_was_removed(tmp_path: Path) -> None:
    with closing(opened(tmp_path, delete=True)) as stream:
        for seed in range(3):
            write(tmp_path / "inbox", "new.npz", seed=seed)
            assert stream.ingest() == Taken(new=3)


def test_a_file_that_takes_the_name_while_it_is_read_is_not_removed_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "inbox", "new.npz")
    newer = write(tmp_path, "newer.npz", seed=1)
    with closing(opened(tmp_path, delete=True)) as stream:
        straight = stream._insert

        def replaced(*record: Any) -> str:
            if newer.exists():
                newer.rename(path)
            return straight(*record)

        monkeypatch.setattr(stream, "_insert", replaced)
        assert stream.ingest() == Taken(new=3) and path.exists()
        assert stream.ingest() == Taken(new=3) and not path.exists()


def test_files_that_are_not_whole_yet_are_not_looked_at(tmp_path: Path) -> None:
    for name in ("a.tmp.npz", ".b.npz"):
        write(tmp_path / "inbox", name)
    with closing(opened(tmp_path, delete=True)) as stream:
        assert stream.ingest() == Taken()
    assert len(list((tmp_path / "inbox").iterdir())) == 2


def test_a_file_is_removed_once_its_records_are_in(tmp_path: Path) -> None:
    write(tmp_path / "inbox", "a.npz")
    (tmp_path / "inbox" / "half.npz").write_bytes(b"half")
    with closing(opened(tmp_path, delete=True)) as stream:
        assert stream.ingest() == Taken(new=3, refused=1)
        assert [path.name for path in (tmp_path / "inbox").iterdir()] == ["half.npz"]
        stream.ingest()
        assert not stream._db.execute("SELECT * FROM sources").fetchall()
        write(tmp_path / "inbox", "b.npz")
        assert stream.ingest() == Taken(known=3, refused=1)


# -- what a device may do wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"y": np.array([0, 1, 4])}, "label"),
        ({"x": np.full((3, 3), np.nan, np.float32)}, "NaN"),
        ({"x": np.zeros((3, 5), np.float32)}, "shape"),
        ({"time": None}, "no times"),
        ({"time": np.array([0.0, np.inf, 1.0])}, "time"),
        ({"y": None}, "y [n]"),
    ],
)
def test_records_that_cannot_be_used_are_told_of_and_left(
    tmp_path: Path, changes: dict[str, object], word: str
) -> None:
    write(tmp_path / "inbox", "bad.npz", **changes)
    write(tmp_path / "inbox", "good.npz", seed=1)
    told: list[str] = []
    with closing(opened(tmp_path, told)) as stream:
        assert stream.ingest() == Taken(new=3, refused=1)
    assert word in told[0] and "bad.npz" in told[0]


def test_a_half_written_file_is_taken_once_it_is_whole(tmp_path: Path) -> None:
    whole = write(tmp_path / "inbox", "a.npz").read_bytes()
    (tmp_path / "inbox" / "a.npz").write_bytes(whole[: len(whole) // 2])
    with closing(opened(tmp_path)) as stream:
        assert stream.ingest() == Taken(refused=1)
        (tmp_path / "inbox" / "a.npz").write_bytes(whole)
        assert stream.ingest() == Taken(new=3)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as stream, pytest.raises(DataError, match="no folder") as caught:
        stream.ingest()
    assert "inbox" in caught.value.where


# -- rows of SQLite ----------------------------------------------------------------------------------------------------


def device_database(path: Path, rows: int) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY, time REAL, x BLOB, y INTEGER)")
        for number in range(rows):
            buffer = io.BytesIO()
            np.save(buffer, np.full(3, number / 7, np.float32))
            values = (number, number * DAY / 2, buffer.getvalue(), number % 4)
            db.execute("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?)", values)


def test_rows_of_a_database_are_records_too(tmp_path: Path) -> None:
    device_database(tmp_path / "app.sqlite", 5)
    with closing(opened(tmp_path, source="app.sqlite")) as stream:
        assert stream.ingest() == Taken(new=5) and stream.ingest() == Taken()
        device_database(tmp_path / "app.sqlite", 7)
        assert stream.ingest() == Taken(new=2)
        assert [block.records for block in stream.blocks()] == [2, 2, 2, 1]
    with closing(sqlite3.connect(tmp_path / "app.sqlite")) as db, db:
        db.execute("UPDATE records SET y = 3 WHERE id = 0")
        db.execute("INSERT INTO records VALUES (99, 0, 'not an array', 0)")
    told: list[str] = []
    with closing(opened(tmp_path, told, source="app.sqlite")) as stream:
        assert stream.ingest() == Taken(refused=2)
    assert any("changed" in text for text in told) and any(".npy" in text for text in told)


# -- crashes -----------------------------------------------------------------------------------------------------------


def killed_at(moment: int, folder: Path) -> bool:
    """Ingest in a process that is killed (SIGKILL) right before its ``moment``-th SQL statement; whether it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: the child only touches files
        child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = moment

    def step(statement: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        stream = opened(folder)
        stream._db.set_trace_callback(step)
        stream.ingest()
    finally:
        os._exit(0)


def test_killed_at_any_statement_each_record_is_taken_exactly_once(tmp_path: Path) -> None:
    def fill(folder: Path) -> Path:
        for number in range(3):
            write(folder / "inbox", f"{number}.npz", seed=number)
        return folder

    with closing(opened(fill(tmp_path / "whole"))) as stream:
        stream.ingest()
        expected = {block.name: stream.examples(block.name).x.tobytes() for block in stream.blocks()}
    moment, crashed = 0, True
    while crashed:
        folder = fill(tmp_path / str(moment))
        crashed = killed_at(moment, folder)
        killed_at(moment // 2, folder)  # and once more on the way
        with closing(opened(folder)) as stream:
            stream.ingest()
            assert {block.name: stream.examples(block.name).x.tobytes() for block in stream.blocks()} == expected
        moment += 1
    assert moment > 20


# -- the command -------------------------------------------------------------------------------------------------------


def test_ingest_on_the_command_line(tmp_path: Path, fedkd: Callable[..., tuple[int, str, str]]) -> None:
    public: ProxySet = PUBLIC
    public.save(tmp_path / "proxy.safetensors")
    (tmp_path / "live.yaml").write_text("source: inbox\nby: hash\nblocks: 2\nheld_out: 0\n")
    write(tmp_path / "inbox", "a.npz", 8, time=None)
    command = (
        "device",
        "ingest",
        tmp_path / "live.yaml",
        "--state",
        tmp_path / "state",
        "--proxy",
        tmp_path / "proxy.safetensors",
    )
    code, out, err = fedkd(*command, "--json")
    told = json.loads(out)
    assert code == 0 and told["taken"]["new"] == 8 and sum(block["records"] for block in told["blocks"]) == 8, err
    code, out, err = fedkd(*command, "--seal", "hash-0")
    assert code == 0 and "0 new" in out and "sealed" in out, err
    with closing(hold(tmp_path / "state", "taken")):
        code, _, err = fedkd(*command)
        assert code == 1 and "an agent uses this state directory" in err


def test_a_records_identity_is_all_of_it() -> None:
    one = Record(np.zeros(3, np.float32), 1, 5.0)
    others = [
        Record(np.ones(3, np.float32), 1, 5.0),
        Record(np.zeros(3, np.float32), 2, 5.0),
        Record(np.zeros(3, np.float32), 1, 6.0),
        Record(np.zeros((1, 3), np.float32), 1, 5.0),
    ]
    assert len({record.identity for record in [one, *others]}) == 5
