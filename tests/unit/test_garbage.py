"""Clients that send anything at all: the server goes on with the others, and asks no more who sends only garbage."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import server.tally
from client.app import app as relay
from client.channel import register_local, unregister_local
from fedkd import wire
from fedkd.config import Scenario
from fedkd.distill.model import ProxyView
from fedkd.errors import DataError
from fedkd.flower import LocalGrid
from fedkd.wire import Agreement, Answers, Hello, Offer, Plan, Released
from server.loop import Loop
from server.run import RunDirectory
from server.setting import Setting
from simulations.prepare import prepare
from tests.fuzz import mutated
from tests.guards.test_disk_full import full

PROXIES, CLASSES = 40, 10
PREVIOUS = "run/checkpoint.safetensors.previous"
VALID = {"describe": 0.5, "agree": 0.7, "answer": 0.02}  # so that most come to the answers
Liar = Callable[[str, str, bytes], bytes]


def scenario(clients: int, rounds: int) -> Scenario:
    return Scenario.model_validate(
        {
            "clients": clients, "rounds": rounds, "quorum": 0.0001, "proxy": {"size": PROXIES, "tune_size": 0},
            "features": {"components": 5}, "privacy": {"steps": 1, "mechanism": "none"}, "teacher": {"steps": 2},
        }
    )  # fmt: skip


def honest(name: str, method: str, payload: bytes) -> bytes:
    """What an agent would send, without training: the server sees no difference."""
    if method == "describe":
        return wire.encode(Hello(name))
    if method == "agree":
        run = wire.decode(payload, Offer).run
        return wire.encode(Agreement(run, name, "0" * 64, np.zeros(0, np.uint64), 1, "simulation", ""))
    plan = wire.decode(payload, Plan)
    rows = np.full((PROXIES, CLASSES), 1 / CLASSES, np.float16)
    return wire.encode(Answers(plan.run, name, plan.round, plan.identity, Released(rows, ""), ""))


@contextmanager
def federation(folder: Path, config: Scenario, liar: Liar, told: list[str]) -> Iterator[Loop]:
    """One honest client, and so many liars that there are as many as are expected."""
    prepare(scenario(1, 1), folder / "data", folder)
    names = [f"client-{number}" for number in range(config.clients)]
    nodes = {number + 1: {"agent": f"local:{folder.name} {name}"} for number, name in enumerate(names)}
    with ExitStack() as stack:
        for name in names:
            register_local(f"{folder.name} {name}", partial(honest if name == "client-0" else liar, name))
            stack.callback(unregister_local, f"{folder.name} {name}")
        grid = stack.enter_context(LocalGrid(relay, nodes))
        view = ProxyView.load(folder / "data/proxy.safetensors", folder)
        setting = Setting(config, config.clients, attempts=1, tell=told.append)
        yield Loop(grid, setting, view, RunDirectory(folder / "run", "run-1"), None)


@pytest.mark.parametrize(("liars", "rounds"), [(20, 5), pytest.param(120, 85, marks=pytest.mark.long)])
def test_a_server_takes_any_replies_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, liars: int, rounds: int
) -> None:
    monkeypatch.setattr(server.tally, "STRIKES", 10**9)  # or there would soon be nobody left to send any
    chance, sent, told = random.Random(liars), 0, list[str]()

    def liar(name: str, method: str, payload: bytes) -> bytes:
        nonlocal sent
        sent += 1
        valid = honest(name, method, payload)
        return valid if chance.random() < VALID[method] else mutated(valid, chance)

    with federation(tmp_path, scenario(liars + 1, rounds), liar, told) as loop:
        assert loop.run()
        assert len(loop.rows) == rounds and sent >= liars * rounds
        assert all(row["answered"] >= 1 for row in loop.rows)
        assert all(np.isfinite(array).all() for array in loop.teacher.predict(np.zeros((1, 1, 8, 8), np.float32)))
    assert told and all(line.isprintable() and len(line) < 500 for line in told), told
    print(f"{sent} messages")


def test_who_sends_only_garbage_is_asked_no_more_and_has_no_influence(tmp_path: Path) -> None:
    asked, told = list[str](), list[str]()

    def liar(name: str, method: str, payload: bytes) -> bytes:
        asked.append(method)
        return b"garbage" if method == "answer" else honest(name, method, payload)

    with federation(tmp_path, scenario(2, 8), liar, told) as loop:
        assert loop.run()
        teacher = (tmp_path / "run/teacher.safetensors").read_bytes()
        assert [row["failed"] for row in loop.rows] == [1, 1, 1, 0, 0, 0, 0, 0]
        assert [row["refused"] for row in loop.rows] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert asked.count("answer") == server.tally.STRIKES
    assert sum("is left out of this run from now on" in line for line in told) == 1
    alone = tmp_path / "alone"
    alone.mkdir()
    with federation(alone, scenario(2, 8), lambda *_: b"", told) as loop:
        assert loop.run()
    assert (alone / "run/teacher.safetensors").read_bytes() == teacher


def test_a_resumed_run_remembers_whom_it_has_left_out(tmp_path: Path) -> None:
    def liar(name: str, method: str, payload: bytes) -> bytes:
        return b"garbage" if method == "answer" else honest(name, method, payload)

    with federation(tmp_path, scenario(2, 4), liar, []) as loop:
        assert loop.run()
    meta = RunDirectory(tmp_path / "run").load(again=True)
    assert meta is not None and meta[1]["strikes"] == {"client-1": server.tally.STRIKES}
    (tmp_path / "run/checkpoint.safetensors").write_bytes((tmp_path / PREVIOUS).read_bytes())  # before the farewell
    with federation(tmp_path, scenario(2, 6), honest, []) as loop:
        assert loop.run()
        assert [row["answered"] for row in loop.rows] == [1] * 6


def test_a_damaged_checkpoint_costs_a_round_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with federation(tmp_path, scenario(1, 3), honest, []) as loop:
        assert loop.run()
        teacher = (tmp_path / "run/teacher.safetensors").read_bytes()
    whole = bytearray((tmp_path / "run/checkpoint.safetensors").read_bytes())
    whole[-5] ^= 1  # one bit of an array: the file still looks well
    (tmp_path / "run/checkpoint.safetensors").write_bytes(whole)
    (tmp_path / "run/teacher.safetensors").unlink()
    with federation(tmp_path, scenario(1, 3), honest, []) as loop:
        assert loop.run()
    assert (tmp_path / "run/teacher.safetensors").read_bytes() == teacher
    assert "a round is played again" in caplog.text
    for name in ("checkpoint.safetensors", "checkpoint.safetensors.previous"):
        (tmp_path / "run" / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged, or of another kind"):
        RunDirectory(tmp_path / "run").load(again=True)


@pytest.mark.parametrize("of", ["an earlier round", "another client"])
def test_a_replayed_reply_is_refused_and_told(tmp_path: Path, of: str) -> None:
    kept, told = dict[str, bytes](), list[str]()

    def replaying(name: str, method: str, payload: bytes) -> bytes:
        reply = honest("client-0" if of == "another client" and method == "answer" else name, method, payload)
        return kept.setdefault(method, reply)

    with federation(tmp_path, scenario(2, 3), replaying, told) as loop:
        assert loop.run()
        assert [row["answered"] for row in loop.rows] == ([2, 1, 1] if of == "an earlier round" else [1, 1, 1])
    assert any(line.endswith("answers to another plan, or of another client") for line in told), told


def test_a_server_on_a_full_disk_stops_and_goes_on_later_from_its_checkpoint(tmp_path: Path) -> None:
    with (
        federation(tmp_path, scenario(1, 3), honest, []) as loop,
        full(20),
        pytest.raises(OSError, match="File too large"),
    ):
        loop.run()
    with federation(tmp_path, scenario(1, 3), honest, []) as loop:
        assert loop.run()
        assert [row["round"] for row in loop.rows] == [1, 2, 3]
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_what_the_server_has_noised_is_never_gone_back_to(tmp_path: Path) -> None:
    """A total that has left would get other noise on the same votes."""
    run = RunDirectory(tmp_path / "run")
    for round in (1, 2):
        run.save({"rows": np.zeros(2, np.float32)}, {"rows": [], "round": round})
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-1])
    before = run.load(again=True)
    assert before is not None and before[1]["round"] == 1
    with pytest.raises(DataError):
        run.load(again=False)
