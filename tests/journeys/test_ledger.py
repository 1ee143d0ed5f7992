"""A client's ledger on the command line: what it says, whether it can be trusted, and how it is mended."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd import config
from fedkd.config import ClientConfig, Data, Policy
from fedkd.data import proxy
from fedkd.distill import features
from fedkd.errors import BudgetExceeded
from fedkd.locks import hold
from fedkd.privacy.contract import Refused, draw_up
from fedkd.privacy.events import PrivacyEvent
from fedkd.privacy.identity import Identity, Position
from fedkd.privacy.ledger import Ledger
from fedkd.privacy.limits import Past
from tests import builders
from tests.journeys.conftest import summary_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> proxy.ProxySet:
    x = np.random.default_rng(0).normal(size=(6, 1, 2, 2)).astype(np.float32)
    fitted = features.fit_features("none", x, components=1)
    return proxy.build(x, None, 2, fitted.spec, features.arrays(fitted), {"source": "made up"})


class Client:
    """A client's folder, whose ledger has answered two rounds of three."""

    def __init__(self, folder: Path, public: proxy.ProxySet) -> None:
        self.folder, self._public = folder, public
        folder.mkdir()
        public.save(folder / "proxy.safetensors")
        self.decide()
        about = ClientConfig(name="alice", data=Data(source="npz", path="data.npz"), proxy="proxy.safetensors")
        (folder / "client.yaml").write_text(config.dump(about))
        with_two = self.open()
        with_two.register(draw_up(self.policy, self.offer(), Past()))
        self.answer(with_two, 1)
        self.keep()
        self.seen = self.answer(with_two, 2)
        with_two.close()

    def decide(self, **changes: Any) -> None:
        settings = {"epsilon": 8.0, "steps": 2, "nominal_examples": 20, "min_noise": 1.2, "proxies": self._public.hash}
        self.policy = Policy.model_validate({**settings, **changes})
        (self.folder / "policy.yaml").write_text(config.dump(self.policy))

    def offer(self) -> Any:
        return builders.offer(proxy=self._public.hash, examples=6, queries=6)

    def open(self) -> Ledger:
        return Ledger(self.folder / "state" / "ledger.sqlite", "alice")

    def answer(self, ledger: Ledger, round: int) -> str:
        reservation = ledger.reserve("run-1", round, "plan", "data", lambda: bytes([round]) * 32)
        head = ledger.head("server")
        ledger.commit(reservation, b"answer %d" % round, {})
        return head

    @property
    def backup(self) -> Path:
        return self.folder.with_name("backup")

    def keep(self) -> None:
        self.checkpoint()
        shutil.copytree(self.folder / "state", self.backup)

    def checkpoint(self) -> None:
        with sqlite3.connect(self.folder / "state" / "ledger.sqlite") as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()

    def restore(self) -> None:
        """The whole folder, as from a backup."""
        shutil.rmtree(self.folder / "state")
        shutil.copytree(self.backup, self.folder / "state")


@pytest.fixture
def alice(tmp_path: Path, public: proxy.ProxySet) -> Client:
    return Client(tmp_path / "alice", public)


def lock(alice: Client) -> None:
    """As an agent does that is shown a newer head than its own."""
    ledger = alice.open()
    with pytest.raises(Refused):
        ledger.check_seen("server", alice.seen)
    ledger.close()


# -- show and verify --------------------------------------------------------------------------------------------------


def test_a_ledger_at_a_glance(alice: Client, fedkd: Run) -> None:
    code, out, err = fedkd("ledger", "show", alice.folder)
    assert (code, err) == (0, "")
    assert "alice: 5 entries, 2 charges" in out
    assert "run run-1 of server server: dp_sgd, 2 of 3 rounds charged, 2 released, in force" in out
    assert "not locked" in out and "epsilon of one client: ∞" in out and " of 8 at delta 1e-05" in out
    (found,) = summary_of(fedkd("ledger", "show", alice.folder, "--json")[1])
    assert found["spent"]["client"] == "inf" and 0 < found["spent"]["example"] < found["limits"]["example"] == 8
    assert (found["open"], found["locked"], found["servers"]) == (None, None, {"server": 2})
    assert found["head"] in out and found["key"] in out


def test_an_open_reservation_is_shown(alice: Client, fedkd: Run) -> None:
    ledger = alice.open()
    ledger.reserve("run-1", 3, "plan", "data", lambda: bytes(32))
    ledger.close()
    assert "open: round 3 of run run-1 is charged and not answered" in fedkd("ledger", "show", alice.folder)[1]


def test_verify_says_what_it_has_verified(alice: Client, fedkd: Run) -> None:
    code, out, _ = fedkd("ledger", "verify", alice.folder)
    assert code == 0
    for said in ("5 entries, 2 charges, chain intact", "branch of server: intact", "signature: of the head, by key "):
        assert said in out
    assert "head file: names this head" in out
    (alice.folder / "state" / "head").unlink()
    assert "head file: none" in fedkd("ledger", "verify", alice.folder)[1]


def test_verify_fails_for_an_older_database_and_for_an_edited_one(alice: Client, fedkd: Run) -> None:
    file = alice.folder / "state" / "ledger.sqlite"
    newest = file.read_bytes()
    shutil.copy(alice.backup / "ledger.sqlite", file)
    code, out, err = fedkd("ledger", "verify", alice.folder)
    assert (code, out) == (1, "") and "rolled back" in err and "fedkd ledger recover" in err
    file.write_bytes(newest.replace(b'"steps":2', b'"steps":1', 1))
    for command in ("verify", "show", "export"):
        code, _, err = fedkd("ledger", command, alice.folder)
        assert code == 1 and "altered" in err and "newest intact copy" in err


# -- recover ----------------------------------------------------------------------------------------------------------


def test_a_state_that_was_set_back_is_charged_at_the_policys_maximum(alice: Client, fedkd: Run) -> None:
    alice.restore()
    lock(alice)
    assert "LOCKED: server server has seen up to 2 rounds" in fedkd("ledger", "show", alice.folder)[1]
    code, out, err = fedkd("ledger", "recover", alice.folder / "client.yaml", "--yes")
    assert (code, err) == (0, "") and "2 lost rounds charged" in out and "epsilon of one example is now " in out
    ledger = alice.open()
    agreed, most = ledger.history()
    assert most == PrivacyEvent("dp_sgd", 1.2, 1.0, 4) and agreed.noise_multiplier > 1.2
    ledger.check_seen("server", alice.seen)
    ledger.close()
    assert "not locked" in fedkd("ledger", "show", alice.folder)[1]
    assert fedkd("ledger", "verify", alice.folder)[0] == 0
    code, out, _ = fedkd("ledger", "recover", alice.folder)
    assert code == 0 and "nothing is missing" in out


def test_an_older_or_deleted_database_is_recovered_by_the_head_file(alice: Client, fedkd: Run) -> None:
    file = alice.folder / "state" / "ledger.sqlite"
    for lost in (1, 2):
        file.unlink()
        if lost == 1:
            shutil.copy(alice.backup / "ledger.sqlite", file)
        code, out, _ = fedkd("ledger", "recover", alice.folder, "--yes")
        assert code == 0 and f"{lost} lost rounds charged" in out
    assert fedkd("ledger", "verify", alice.folder)[0] == 0


def test_recover_asks_first(alice: Client, fedkd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    alice.restore()
    lock(alice)
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("n\n"))
    code, out, _ = fedkd("ledger", "recover", alice.folder)
    assert code == 1 and "2 rounds will be charged" in out and "noise multiplier 1.2" in out
    ledger = alice.open()
    assert ledger.missing() is not None and len(ledger.history()) == 1
    ledger.close()


def test_without_a_least_noise_nothing_can_be_charged(alice: Client, fedkd: Run) -> None:
    alice.restore()
    lock(alice)
    alice.decide(min_noise=0.0)
    code, out, err = fedkd("ledger", "recover", alice.folder, "--yes")
    assert (code, out) == (1, "") and "set 'min_noise' to the least" in err and "stays locked" in err


def test_a_fork_is_not_recovered(alice: Client, fedkd: Run) -> None:
    alice.restore()
    ledger = alice.open()
    ledger.reserve("run-1", 2, "plan", "data", lambda: bytes(32))  # under another key than the round that was lost
    ledger.close()
    lock(alice)
    code, _, err = fedkd("ledger", "recover", alice.folder, "--yes")
    assert code == 1 and "fork" in err and "another client name" in err
    assert "LOCKED: server server has seen another continuation" in fedkd("ledger", "show", alice.folder)[1]


def test_recover_leaves_a_running_agent_alone(alice: Client, fedkd: Run) -> None:
    with hold(alice.folder / "state", "another agent uses this state directory"):
        code, _, err = fedkd("ledger", "recover", alice.folder, "--yes")
    assert code == 1 and "another agent uses this state directory" in err


def test_recover_of_a_client_without_state_makes_none(tmp_path: Path, public: proxy.ProxySet, fedkd: Run) -> None:
    alice = Client(tmp_path / "alice", public)
    shutil.rmtree(alice.folder / "state")
    code, _, err = fedkd("ledger", "recover", alice.folder)
    assert code == 1 and "no state yet" in err and not (alice.folder / "state").exists()


def test_a_copy_signed_by_somebody_else_shows_whose_key_it_is(alice: Client, fedkd: Run) -> None:
    """What verify cannot know without the client's identity beside it, it names."""
    thief = Identity(bytes(32))
    folder = alice.folder / "copy"
    folder.mkdir()
    shutil.copy(alice.folder / "state" / "ledger.sqlite", folder)
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        at = Position(*db.execute("SELECT seq, charges, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone())
        db.execute("UPDATE meta SET value = ? WHERE key = 'key'", (thief.public,))
        db.execute("UPDATE state SET value = ? WHERE key LIKE 'signature%'", (thief.sign("alice", "", at).signature,))
    db.close()
    code, out, _ = fedkd("ledger", "verify", folder)
    assert code == 0 and f"by key {thief.public}" in out and "head file: none" in out


@pytest.mark.parametrize("also", [[], ["sum"], ["sum", "votes"]])
def test_a_lost_round_may_have_been_of_any_mechanism(also: list[str], alice: Client, fedkd: Run) -> None:
    alice.restore()
    lock(alice)
    alice.decide(also=also)
    assert fedkd("ledger", "recover", alice.folder, "--yes")[0] == 0
    ledger = alice.open()
    kinds = {event.mechanism for event in ledger.history()[1:]}
    ledger.close()
    assert kinds == {"dp_sgd", *also}


def test_a_lost_round_may_have_been_of_an_earlier_contract(alice: Client, fedkd: Run) -> None:
    charged = json.loads(fedkd("ledger", "export", alice.folder, "--json")[1])[0]
    alice.restore()
    lock(alice)
    alice.decide(steps=1)
    assert fedkd("ledger", "recover", alice.folder, "--yes")[0] == 0
    ledger = alice.open()
    lost = ledger.history()[1:]
    ledger.close()
    assert max(event.steps for event in lost) >= charged["steps"] > 1


def test_what_is_charged_counts_towards_the_limit(alice: Client, fedkd: Run) -> None:
    alice.restore()
    lock(alice)
    before = json.loads(fedkd("ledger", "show", alice.folder, "--json")[1])[0]["spent"]["example"]
    fedkd("ledger", "recover", alice.folder, "--yes")
    after = json.loads(fedkd("ledger", "show", alice.folder, "--json")[1])[0]["spent"]["example"]
    assert after > before
    alice.decide(epsilon=after)
    ledger = alice.open()
    with pytest.raises((Refused, BudgetExceeded)):
        ledger.reserve("run-1", 3, "plan", "data", lambda: bytes(32))
        draw_up(alice.policy, alice.offer(), ledger.past())
    ledger.close()
