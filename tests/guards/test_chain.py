"""A ledger that was edited, rolled back or continued twice is found out, and what was lost can be charged."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedkd.privacy.verification
from fedkd import wire
from fedkd.coordinator import Coordinator, RunState
from fedkd.errors import LedgerError
from fedkd.privacy.chain import COMMIT, RECOVER, RESERVE, SIGNATURE, START, TABLES, after, branch_after
from fedkd.privacy.contract import Refused
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.filters import RenyiFilter
from fedkd.privacy.identity import Head, HeadFile, Identity, Position
from fedkd.privacy.ledger import Ledger
from fedkd.wire import Agreement, Answers, Code, Refusal
from tests import builders

SEED = bytes(range(32))
BARE = PrivacyEvent("none", 0.0, 1.0, 1)  # costs no accountant any time
MOST = PrivacyEvent("dp_sgd", 2.0, 1.0, 3)
PLAN, DATA = "a" * 64, "d" * 64
OPEN: list[Ledger] = []


@pytest.fixture(autouse=True)
def ledgers_are_closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def opened(folder: Path, **how: Any) -> Ledger:
    OPEN.append(Ledger(folder / "ledger.sqlite", "alice", SEED, **how))
    return OPEN[-1]


def agree(ledger: Ledger, run: str = "run-1", server: str = "server") -> None:
    ledger.register(builders.contract(BARE, run=run, server=server, rounds=100_000))


def reserve(ledger: Ledger, round: int, run: str = "run-1", key: bytes | None = None) -> Any:
    return ledger.reserve(run, round, PLAN, DATA, lambda: key or os.urandom(32))


def answer(ledger: Ledger, round: int, run: str = "run-1", key: bytes | None = None) -> str:
    """One round; the head that goes with the answer."""
    reservation = reserve(ledger, round, run, key)
    head = ledger.head(ledger.contract(run).server)
    ledger.commit(reservation, f"{run} {round}".encode(), {"student": f"after {round}"})
    return head


def charged(ledger: Ledger) -> int:
    return sum(event.steps for event in ledger.history())


def refused(work: Callable[[], object]) -> Code:
    with pytest.raises(Refused) as caught:
        work()
    return caught.value.code


# -- edits ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a client that has answered two servers."""
    folder = tmp_path_factory.mktemp("state")
    ledger = opened(folder)
    for run, server in (("run-1", "north"), ("run-2", "south")):
        agree(ledger, run, server)
        for round in (1, 2):
            answer(ledger, round, run)
    ledger.close()
    return folder


COLUMNS = ("seq", "body", "prev", "charges", "hash", "counter", "branch_charges", "branch")


@contextmanager
def edit(folder: Path) -> Iterator[sqlite3.Connection]:
    """The database for somebody who can write the file and knows the program, but has not the key."""
    db = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    triggers = [statement for statement in TABLES if "TRIGGER" in statement]
    for name in ("entries_keep", "entries_stay"):
        db.execute(f"DROP TRIGGER {name}")
    yield db
    for statement in triggers:
        db.execute(statement)
    db.close()


def entries(db: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY seq").fetchall()
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def mend(db: sqlite3.Connection, bodies: list[str]) -> Position:
    """Write these entries, with every number and hash as it should be. The head that only the key could sign."""
    db.execute("DELETE FROM entries")
    head, branches = START, dict[str, Position]()
    for text in bodies:
        body = json.loads(text)
        old, head = head, after(head, body, text)
        at = branches[body["server"]] = branch_after(branches.get(body["server"], START), body, text)
        row = (head.counter, text, old.hash, head.charges, head.hash, at.counter, at.charges, at.hash)
        db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    return head


def copy(state: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return shutil.copytree(state, to)


def assert_found_out(folder: Path, match: str = "altered") -> None:
    with pytest.raises(LedgerError, match=match):
        Ledger.read(folder / "ledger.sqlite")
    with pytest.raises(LedgerError, match=match):
        opened(folder)
    with pytest.raises(LedgerError, match=match):
        opened(folder, damaged=True)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Another value of the same kind; of a mapping or a list, with one member changed."""
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: draw(changed(value[key]))}
    if isinstance(value, list) and value:
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(changed(value[at])), *value[at + 1 :]]
    if isinstance(value, str):
        return draw(st.text("0123456789abcdef.-", max_size=70).filter(lambda text: text != value))
    if isinstance(value, int | float):
        return draw(st.integers(0, 10**6).filter(lambda number: number != value))
    return draw(st.sampled_from([1, "1"]))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("edited") / "state"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_edit_of_an_entry_is_detected(data: st.DataObject, state: Path, scratch: Path) -> None:
    folder = copy(state, scratch)
    with edit(folder) as db:
        entry = data.draw(st.sampled_from(entries(db)))
        column = data.draw(st.sampled_from(COLUMNS))
        if column == "body":
            new: Any = json.dumps(data.draw(changed(json.loads(entry["body"]))))
        else:
            new = data.draw(st.integers(100, 999) if column == "seq" else changed(entry[column]))
        db.execute(f"UPDATE entries SET {column} = ? WHERE seq = ?", (new, entry["seq"]))
    assert_found_out(folder)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nobody_without_the_key_can_edit_entries_and_mend_the_chain(
    data: st.DataObject, state: Path, scratch: Path
) -> None:
    folder = copy(state, scratch)
    with edit(folder) as db:
        bodies = [entry["body"] for entry in entries(db)]
        at, other = (data.draw(st.integers(0, len(bodies) - 1)) for _ in "ab")
        how = data.draw(st.sampled_from(["change", "drop", "cut off", "twice", "swap"]))
        if how == "change":
            body = json.loads(bodies[at])
            key = data.draw(st.sampled_from(sorted(set(body) - {"kind"})))
            bodies[at] = json.dumps({**body, key: data.draw(changed(body[key]))})
        elif how == "drop":
            del bodies[at]
        elif how == "cut off":
            del bodies[at:]
        elif how == "twice":
            bodies.insert(other, bodies[at])
        else:
            bodies[at], bodies[other] = bodies[other], bodies[at]
        untouched = Position(*db.execute("SELECT seq, charges, hash FROM entries ORDER BY seq DESC").fetchone())
        if mend(db, bodies) == untouched:
            return
    if bodies:
        assert_found_out(folder, "not signed by this client")
    else:
        assert_found_out_as_rolled_back(folder)


def assert_found_out_as_rolled_back(folder: Path) -> None:
    with pytest.raises(LedgerError, match="rolled back"):
        Ledger.read(folder / "ledger.sqlite")
    with pytest.raises(LedgerError, match="rolled back"):
        opened(folder)


def test_a_chain_that_is_signed_with_another_key_is_found_out(state: Path, tmp_path: Path) -> None:
    folder, thief = copy(state, tmp_path / "state"), Identity(bytes(32))
    with edit(folder) as db:
        head = mend(db, [entry["body"] for entry in entries(db)][:3])
        signature = thief.sign("alice", "", head).signature
        db.execute("UPDATE state SET value = ? WHERE key = ?", (signature, SIGNATURE))
        db.execute("UPDATE meta SET value = ? WHERE key = 'key'", (thief.public,))
    with pytest.raises(LedgerError, match="not signed with the ledger's key"):
        Ledger.read(folder / "ledger.sqlite")
    HeadFile(folder / "head").write(thief.sign("alice", "", head))
    assert_found_out(folder, "another identity key")
    (folder / "identity").unlink()  # a copy without it can be read, and names the key that signed it
    assert Ledger.read(folder / "ledger.sqlite")["key"] == thief.public != Ledger.read(state / "ledger.sqlite")["key"]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_changed_byte_of_the_file_is_detected_or_changes_nothing(
    data: st.DataObject, state: Path, scratch: Path
) -> None:
    folder = copy(state, scratch)
    content = bytearray((folder / "ledger.sqlite").read_bytes())
    expected = Ledger.read(state / "ledger.sqlite")
    used = [at for at, byte in enumerate(content) if byte]
    at = data.draw(st.sampled_from(used))
    content[at] ^= data.draw(st.integers(1, 255))
    (folder / "ledger.sqlite").write_bytes(bytes(content))
    with suppress(LedgerError):
        assert Ledger.read(folder / "ledger.sqlite") == expected


@pytest.mark.parametrize(
    "statements",
    [
        ["DELETE FROM entries WHERE seq = 1"],
        ["DELETE FROM entries WHERE seq = 3"],
        ["UPDATE entries SET seq = 90 + seq WHERE seq > 2"],
        ["UPDATE entries SET seq = seq - 90 WHERE seq < 3"],
        ["INSERT INTO entries SELECT 11, body, hash, 9, 'x', 9, 9, 'y' FROM entries WHERE seq = 10"],
        ["DROP INDEX entries_by_round", "CREATE INDEX entries_by_round ON entries (kind, run, round) WHERE seq > 9"],
        ["DROP INDEX entries_by_branch"],
        ["CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM state; END"],
        ["DELETE FROM state WHERE key = 'signature of the head'"],
    ],
)
def test_entries_and_tables_cannot_be_taken_out_moved_or_forged(
    statements: list[str], state: Path, tmp_path: Path
) -> None:
    folder = copy(state, tmp_path / "state")
    with edit(folder) as db:
        for statement in statements:
            db.execute(statement)
    assert_found_out(folder)


def test_charges_cannot_be_hidden_from_the_queries_that_add_them_up(state: Path, tmp_path: Path) -> None:
    """With every entry and every hash untouched, but a column that says that a charge is something else."""
    folder = copy(state, tmp_path / "state")
    with edit(folder) as db:
        rows = db.execute("SELECT *, 'nothing', server, run, round FROM entries").fetchall()
        plain = TABLES[1].replace("kind TEXT GENERATED ALWAYS AS (json_extract(body, '$.kind')) VIRTUAL", "kind TEXT")
        db.execute("DROP TABLE entries")
        db.execute(plain)
        names = ", ".join([*COLUMNS, "kind"])
        for row in rows:
            db.execute(f"INSERT INTO entries ({names}) VALUES ({', '.join('?' * 9)})", (*row[:8], "nothing"))
        for statement in TABLES:
            if "INDEX" in statement:
                db.execute(statement)
    assert_found_out(folder, "not as they were made")


def test_an_index_that_leaves_an_entry_out_is_found_out(state: Path, tmp_path: Path) -> None:
    folder = copy(state, tmp_path / "state")
    with edit(folder) as db:
        db.execute("PRAGMA writable_schema=ON")
        hide = "UPDATE sqlite_master SET sql = sql || ' WHERE seq > 9' WHERE name = 'entries_by_round'"
        db.execute(hide)
        db.execute("PRAGMA writable_schema=RESET")
        db.execute("REINDEX entries_by_round")
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, ' WHERE seq > 9', '') WHERE name = 'entries_by_round'")
        db.execute("PRAGMA writable_schema=RESET")
    assert_found_out(folder, "contradict each other")


# -- older copies -----------------------------------------------------------------------------------------------------


@dataclass
class Life:
    """A ledger's state directory as it was after each step, and the head that its server saw last."""

    copies: list[Path]
    seen: list[str]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Three rounds: nothing, then after each charge and after each commit."""
    base = tmp_path_factory.mktemp("life")
    lived = Life([], [])
    ledger = Ledger(base / "now" / "ledger.sqlite", "alice", SEED)

    def keep(seen: str) -> None:
        ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        lived.copies.append(shutil.copytree(base / "now", base / str(len(lived.copies))))
        lived.seen.append(seen)

    agree(ledger)
    keep("")
    for round in (1, 2, 3):
        ledger.check_seen("server", lived.seen[-1])
        reservation = reserve(ledger, round)
        head = ledger.head("server")
        keep(head)
        ledger.commit(reservation, b"answer %d" % round, {})
        keep(head)
    ledger.close()
    return lived


STEPS = range(7)


@pytest.mark.parametrize(("old", "new"), [(old, new) for new in STEPS for old in range(new)])
def test_an_older_copy_of_the_database_alone_is_found_out(old: int, new: int, life: Life, tmp_path: Path) -> None:
    folder = copy(life.copies[new], tmp_path / "state")
    shutil.copy(life.copies[old] / "ledger.sqlite", folder)
    assert_found_out_as_rolled_back(folder)


@pytest.mark.parametrize("new", STEPS[1:])
def test_a_deleted_database_is_found_out(new: int, life: Life, tmp_path: Path) -> None:
    folder = copy(life.copies[new], tmp_path / "state")
    (folder / "ledger.sqlite").unlink()
    with pytest.raises(LedgerError, match="rolled back"):
        opened(folder)


@pytest.mark.parametrize(("old", "new"), [(old, new) for new in STEPS for old in range(new)])
def test_an_older_copy_of_the_whole_state_is_found_out_by_what_the_server_has_seen(
    old: int, new: int, life: Life, tmp_path: Path
) -> None:
    folder = copy(life.copies[old], tmp_path / "state")
    ledger = opened(folder)
    if life.seen[old] == life.seen[new]:  # a commit that no server knows of: its charge is in the copy
        return ledger.check_seen("server", life.seen[new])
    assert refused(lambda: ledger.check_seen("server", life.seen[new])) is Code.ROLLED_BACK
    for again in (ledger, opened(folder)):  # from now on, whatever a server shows
        assert refused(lambda again=again: again.check_seen("server", "")) is Code.ROLLED_BACK
        assert refused(lambda again=again: reserve(again, 9)) is Code.ROLLED_BACK
        assert refused(lambda again=again: agree(again, "run-9")) is Code.ROLLED_BACK


def test_without_database_and_head_file_the_server_still_knows(life: Life, tmp_path: Path) -> None:
    folder = copy(life.copies[4], tmp_path / "state")
    for name in ("ledger.sqlite", "head"):
        (folder / name).unlink()
    assert refused(lambda: opened(folder).check_seen("server", life.seen[4])) is Code.ROLLED_BACK


def test_a_ledger_without_its_identity_is_not_given_another(life: Life, tmp_path: Path) -> None:
    folder = copy(life.copies[4], tmp_path / "state")
    (folder / "identity").unlink()
    with pytest.raises(LedgerError, match="identity key of this ledger is missing"):
        opened(folder)
    assert not (folder / "identity").exists()


@pytest.mark.parametrize("content", ["", "garbage", "5.2.x.y", "{other}"])
def test_a_head_file_that_the_client_has_not_signed_is_an_error(content: str, life: Life, tmp_path: Path) -> None:
    folder = copy(life.copies[4], tmp_path / "state")
    other = Identity(bytes(32)).sign("alice", "", Position(1, 1, "0" * 64)).text
    (folder / "head").write_text(content.replace("{other}", other))
    for look in (opened, lambda folder: Ledger.read(folder / "ledger.sqlite")):
        with pytest.raises(LedgerError, match="damaged, or was not signed"):
            look(folder)


def test_a_crash_before_the_head_file_is_written_is_no_rollback(life: Life, tmp_path: Path) -> None:
    whole = opened(copy(life.copies[-1], tmp_path / "whole"))
    for old in STEPS:
        folder = copy(life.copies[-1], tmp_path / str(old))
        if (life.copies[old] / "head").exists():
            shutil.copy(life.copies[old] / "head", folder)
        else:
            (folder / "head").unlink()
        ledger = opened(folder)
        assert ledger.export() == whole.export()
        ledger.close()
    whole.close()


# -- what servers hand back -------------------------------------------------------------------------------------------


def test_every_head_that_a_server_has_ever_seen_is_accepted(life: Life, tmp_path: Path) -> None:
    ledger = opened(copy(life.copies[-1], tmp_path / "state"))
    for head in life.seen:
        ledger.check_seen("server", head)
    answer(ledger, 4)


def foreign_heads(life: Life) -> dict[str, str]:
    head = Head.parse(life.seen[-1])
    other, far = Identity(bytes(32)), replace(head.position, counter=99, charges=99)
    forged = replace(head, position=replace(head.position, charges=head.position.charges + 1))
    return {
        "another client's": other.sign("bob", "server", head.position).text,
        "another key under this name": other.sign("alice", "server", far).text,
        "this key under another name": Identity(SEED).sign("bob", "server", far).text,
        "another server's branch": Identity(SEED).sign("alice", "south", far).text,
        "the whole chain's": Identity(SEED).sign("alice", "", far).text,
        "a number that was changed": forged.text,
        "zeros": f"9.9.{'0' * 64}.{'0' * 128}",
    }


@pytest.mark.parametrize("whose", ["another client's", "another key under this name", "this key under another name",
                                   "another server's branch", "the whole chain's", "a number that was changed",
                                   "zeros"])  # fmt: skip
def test_a_head_that_is_not_of_this_branch_says_nothing_about_it(whose: str, life: Life, tmp_path: Path) -> None:
    ledger = opened(copy(life.copies[-1], tmp_path / "state"))
    head = foreign_heads(life)[whose]
    assert wire.HEAD.fullmatch(head)
    assert refused(lambda: ledger.check_seen("server", head)) is Code.MALFORMED
    ledger.check_seen("server", life.seen[-1])
    answer(ledger, 4)


@settings(max_examples=12, deadline=None)
@given(calls=st.lists(st.sampled_from(["north", "south"]), max_size=6))
def test_a_servers_heads_say_nothing_about_other_servers(
    calls: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The heads of north are the same bytes, whatever the client does with south between."""

    def heads(of: list[str], folder: Path) -> list[str]:
        with closing(Ledger(folder / "ledger.sqlite", "alice", SEED)) as ledger:
            found, rounds = [], {"north": 0, "south": 0}
            for server in of:
                run = f"of-{server}-{rounds[server]}"  # a contract each, since a newer one closes an older one
                rounds[server] += 1
                agree(ledger, run, server)
                head = answer(ledger, 1, run, SEED)
                if server == "north":
                    found.append(head)
            return found

    base = tmp_path_factory.mktemp("branches")
    alone = [server for server in calls if server == "north"]
    assert heads(calls, base / "both") == heads(alone, base / "alone")


# -- recovery ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(old, new) for new in STEPS for old in range(new)])
def test_recovery_charges_what_the_head_file_shows_to_be_missing(
    old: int, new: int, life: Life, tmp_path: Path
) -> None:
    folder = copy(life.copies[new], tmp_path / "state")
    shutil.copy(life.copies[old] / "ledger.sqlite", folder)
    before, lost = (old + 1) // 2, (new + 1) // 2 - (old + 1) // 2
    ledger = opened(folder, damaged=True)
    assert ledger.recover([MOST]) == lost
    ledger.close()
    ledger = opened(folder)
    assert [(event.mechanism, event.steps) for event in ledger.history()] == [
        *([("none", before)] if before else []),
        *([("dp_sgd", 3 * lost)] if lost else []),
    ]
    if old:
        answer(ledger, 9)
    assert ledger.verify() == len(list(ledger._chain.bodies("contract", RESERVE, COMMIT, RECOVER)))
    with pytest.raises(LedgerError, match="nothing is missing"):
        ledger.recover([MOST])


@pytest.mark.parametrize("new", [1, 3, 5])
@pytest.mark.parametrize("old", STEPS)
def test_recovery_charges_what_the_server_has_seen_and_the_life_goes_on(
    old: int, new: int, life: Life, tmp_path: Path
) -> None:
    if life.seen[old] == life.seen[new] or old > new:
        return
    folder = copy(life.copies[old], tmp_path / "state")
    ledger = opened(folder)
    held, lost = charged(ledger), (new + 1) // 2
    assert refused(lambda: ledger.check_seen("server", life.seen[new])) is Code.ROLLED_BACK
    # a round that the server is not known to have seen may have been answered beside the lost ones: it counts again
    acknowledged = max(0, (old + 1) // 2 - 1)
    assert ledger.recover([MOST]) == lost - acknowledged >= lost - held
    ledger.check_seen("server", life.seen[new])
    agree(ledger, "run-2")
    head = answer(ledger, 1, "run-2")
    assert Head.parse(head).position.counter > Head.parse(life.seen[new]).position.counter
    for known in (*life.seen[: old + 1], life.seen[new], head):
        ledger.check_seen("server", known)
    ledger.close()
    ledger = opened(folder)
    assert charged(ledger) == held + 3 * (lost - acknowledged) + 1
    assert ledger.missing() is None and ledger.verify()


def test_a_recovery_that_is_itself_rolled_back_is_charged_again(life: Life, tmp_path: Path) -> None:
    old = life.copies[2] / "ledger.sqlite"  # one round of three
    folder = copy(life.copies[6], tmp_path / "state")
    for _ in range(3):
        shutil.copy(old, folder)
        ledger = opened(folder, damaged=True)
        assert ledger.recover([MOST]) == 2
        ledger.close()
    shutil.copy(old, folder)
    (folder / "head").unlink()
    ledger = opened(folder)
    assert refused(lambda: ledger.check_seen("server", life.seen[6])) is Code.ROLLED_BACK
    assert ledger.recover([MOST]) == 3
    newest = ledger.head("server")
    ledger.close()
    (folder / "head").unlink()
    shutil.copy(old, folder)
    ledger = opened(folder)
    assert refused(lambda: ledger.check_seen("server", newest)) is Code.ROLLED_BACK
    assert ledger.recover([MOST]) == 3


def test_a_crash_between_the_recovery_and_its_head_file_costs_nothing_more(life: Life, tmp_path: Path) -> None:
    folder = copy(life.copies[6], tmp_path / "state")
    noted = (folder / "head").read_bytes()
    for old in (5, 2):  # a commit, two rounds
        shutil.copy(life.copies[old] / "ledger.sqlite", folder)
        (folder / "head").write_bytes(noted)
        ledger = opened(folder, damaged=True)
        ledger.recover([MOST])
        ledger.close()
        (folder / "head").write_bytes(noted)
        ledger = opened(folder)
        assert ledger.missing() is None
        ledger.close()


def test_after_a_recovery_sampled_rounds_are_limited_by_a_filter(life: Life, tmp_path: Path) -> None:
    """The lost rounds may have been of another contract, chosen after answers."""
    sampled = replace(MOST, sample_rate=0.5)
    for old in (0, 2):
        folder = copy(life.copies[6], tmp_path / str(old))
        shutil.copy(life.copies[old] / "ledger.sqlite", folder)
        ledger = opened(folder, damaged=True)
        ledger.recover([sampled])
        past, alone = ledger.past(), replace(ledger.past(), events=())
        assert isinstance(
            replace(past, contracts=past.contracts).accountant([sampled], 1e-5, another=True), RenyiFilter
        )
        assert (past.contracts, past.first) == ((1, (sampled,)) if old == 0 else (2, past.first))
        assert alone.first and Ledger.read(folder / "ledger.sqlite")["begun"] == past.contracts


# -- forks ------------------------------------------------------------------------------------------------------------


def test_two_devices_that_continue_one_ledger_are_found_out_and_cannot_be_recovered(life: Life, tmp_path: Path) -> None:
    one, two = (opened(copy(life.copies[4], tmp_path / name)) for name in "ab")
    heads = [answer(ledger, 3) for ledger in (one, two)]
    assert heads[0] != heads[1]
    ahead = answer(one, 4)
    for ledger, head in ((one, heads[1]), (two, heads[0])):
        assert refused(lambda ledger=ledger, head=head: ledger.check_seen("server", head)) is Code.ROLLED_BACK
        with pytest.raises(LedgerError, match="fork"):
            ledger.recover([MOST])
    # also when the other one has come further meanwhile, so that it looks like a gap
    assert refused(lambda: two.check_seen("server", ahead)) is Code.ROLLED_BACK
    with pytest.raises(LedgerError, match="fork"):
        two.recover([MOST])


def test_a_fork_that_looks_like_a_gap_is_charged_from_where_both_are_known_to_be_one(
    life: Life, tmp_path: Path
) -> None:
    one, two = (opened(copy(life.copies[4], tmp_path / name)) for name in "ab")
    answer(two, 3)
    for round in (3, 4, 5):
        head = answer(one, round)
    assert refused(lambda: two.check_seen("server", head)) is Code.ROLLED_BACK
    # life[4] has answered rounds 1 and 2, of which the server is known to have seen the first
    assert two.recover([MOST]) == charged(one) - 1


def test_a_smaller_gap_does_not_take_the_place_of_a_larger_one(life: Life, tmp_path: Path) -> None:
    ledger = opened(copy(life.copies[0], tmp_path / "state"))
    for seen in (life.seen[5], life.seen[1]):
        assert refused(lambda seen=seen: ledger.check_seen("server", seen)) is Code.ROLLED_BACK
    assert ledger.recover([MOST]) == 3


class Server:
    """Asks one round after the other, and keeps the heads as the coordinator does."""

    def __init__(self) -> None:
        self._coordinator = Coordinator.__new__(Coordinator)
        self._coordinator.state = RunState()
        self.received: set[bytes] = set()

    @property
    def plan(self) -> tuple[int, str]:
        """Round, and what the server has seen."""
        return len(self.received) + 1, self._coordinator.state.heads.get("alice", "")

    def receive(self, answer: bytes, head: str) -> None:
        self.received.add(answer)
        self._coordinator.take_head("alice", head)


def reply(ledger: Ledger, round: int) -> tuple[bytes, str]:
    """What an agent sends: bytes that its key decides, and a head; again the same when it is asked again."""
    stored = ledger.released("run-1", round, PLAN)
    if stored is None:
        reservation = reserve(ledger, round)
        stored = reservation.key.hex().encode() + b" " + ledger.head("server").encode()
        ledger.commit(reservation, stored, {})
    return stored, stored.split()[1].decode()


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.sampled_from(["answer", "answer that is lost", "backup", "restore"]), max_size=12))
def test_whoever_is_shown_the_servers_newest_head_has_charged_all_that_the_server_has_received(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One device, set back to a backup at any time; an honest server."""
    base, server = tmp_path_factory.mktemp("device"), Server()
    ledger = Ledger(base / "now" / "ledger.sqlite", "alice", SEED)
    agree(ledger)
    for step in ["backup", *steps, "answer"]:
        if step == "backup":
            ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            copy(base / "now", base / "backup")
        elif step == "restore":
            ledger.close()
            ledger = Ledger(copy(base / "backup", base / "now") / "ledger.sqlite", "alice", SEED)
        else:
            round, seen = server.plan
            try:
                ledger.check_seen("server", seen)
            except Refused:
                ledger.recover([BARE])
                ledger.check_seen("server", seen)
            assert charged(ledger) >= len(server.received)
            sent = reply(ledger, round)
            if step == "answer":
                server.receive(*sent)
    ledger.close()


def test_two_answers_to_one_plan_have_two_heads(life: Life, tmp_path: Path) -> None:
    """Else two releases under two noises would be one charge, and no head would ever show it."""
    one, two = (opened(copy(life.copies[4], tmp_path / name)) for name in "ab")
    (first, head), (second, other) = (reply(ledger, 3) for ledger in (one, two))
    assert first != second and head != other
    assert refused(lambda: two.check_seen("server", head)) is Code.ROLLED_BACK


# -- readers ----------------------------------------------------------------------------------------------------------


def test_a_reader_is_not_misled_by_a_writer(life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a reader compares is of one moment, but for the head file, which it reads first."""
    folder = copy(life.copies[4], tmp_path / "state")
    writer, rounds = opened(folder), iter(range(3, 99))
    before = Ledger.read(folder / "ledger.sqlite")
    for name in ("_check_tables", "_check_links", "_check_signature", "_check_branches"):
        original = getattr(fedkd.privacy.verification, name)

        def meanwhile(*arguments: Any, original: Any = original) -> Any:
            found = original(*arguments)
            answer(writer, next(rounds))
            return found

        monkeypatch.setattr(fedkd.privacy.verification, name, meanwhile)
    first = Ledger.read(folder / "ledger.sqlite")
    assert len(first["events"]) == len(before["events"])
    assert len(Ledger.read(folder / "ledger.sqlite")["events"]) == len(before["events"]) + 4


# -- the agent --------------------------------------------------------------------------------------------------------


def code(reply: bytes) -> Code:
    return wire.decode(reply, Agreement, Answers, Refusal).code  # type: ignore[union-attr]


def test_an_agent_that_was_set_back_answers_no_more_and_tells_its_owner(new_device: Any, tmp_path: Path) -> None:
    device = new_device()
    agent = device.start()
    device.agree(agent)
    shutil.copytree(device.base / "state", tmp_path / "backup")
    seen = wire.decode(device.ask(agent, device.plan(1)), Answers).head
    agent.close()
    shutil.rmtree(device.base / "state")
    shutil.copytree(tmp_path / "backup", device.base / "state")
    agent = device.start()
    assert code(device.ask(agent, device.plan(2, seen=seen))) is Code.ROLLED_BACK
    assert agent.learner.save() == agent.lineage.fresh and not agent.ledger.history()
    assert code(device.ask(agent, device.plan(2))) is Code.ROLLED_BACK
    assert code(agent.handle("agree", wire.encode(device.offer(seen=seen)))) is Code.ROLLED_BACK
    assert any("fedkd ledger recover" in line for line in device.console)
    agent.close()
    ledger = Ledger(device.ledger, "alice", damaged=True)
    assert ledger.recover([MOST]) == 1
    ledger.close()
    agent = device.start()
    assert [event.steps for event in agent.ledger.history()] == [3]
    reply = device.ask(agent, device.plan(2, seen=seen))
    if isinstance(wire.decode(reply, Answers, Refusal), Refusal):  # the contract's noise was for what is spent now
        assert code(reply) is Code.EXHAUSTED


def test_an_offer_too_shows_what_the_server_has_seen(new_device: Any) -> None:
    device, twin = new_device(), new_device()
    agent = device.start()
    device.agree(agent)
    seen = wire.decode(device.ask(agent, device.plan(1)), Answers).head
    assert device.agree(twin.start(), seen=seen) == Refusal("alice", Code.ROLLED_BACK)


def test_an_agent_with_a_new_identity_says_why_it_refuses(new_device: Any) -> None:
    device = new_device()
    agent = device.start()
    foreign = Identity(os.urandom(32)).sign("alice", "server", Position(5, 2, "0" * 64)).text
    assert device.agree(agent, seen=foreign) == Refusal("alice", Code.MALFORMED)
    assert any("another identity key" in line for line in device.console)


def test_the_server_keeps_the_head_that_it_saw_first_of_two_equally_long_ones() -> None:
    """The second one would hide that the ledger was set back."""
    identity, server = Identity(SEED), Server()
    first, second, longer = (
        identity.sign("alice", "server", Position(counter, 2, mark * 64)).text
        for counter, mark in ((4, "a"), (4, "b"), (5, "c"))
    )
    for head, kept in ((first, first), (second, first), (longer, longer), (first, longer), ("", longer)):
        server.receive(b"", head)
        assert server.plan[1] == kept


def test_numbers_of_a_head_are_part_of_what_is_signed() -> None:
    head = Identity(SEED).sign("alice", "server", Position(4, 2, "a" * 64))
    assert Head.parse(head.text) == head
    assert np.unique([head.text, *foreign_texts(head)]).size == 4


def foreign_texts(head: Head) -> list[str]:
    at = head.position
    moved = (replace(at, counter=5), replace(at, charges=3), replace(at, hash="b" * 64))
    return [Identity(SEED).sign("alice", "server", one).text for one in moved]
