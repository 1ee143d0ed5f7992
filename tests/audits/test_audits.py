"""Audits of the code as it is stay below their claims; planted mistakes are found, by the audits that can see them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedkd import config
from fedkd.config import Scenario
from fedkd.errors import PrivacyError
from fedkd.privacy.audit import Evidence, judge
from fedkd.privacy.dp_sgd import clipper_for
from simulations.audits import noise, paired
from simulations.audits.answers import answer_evidence
from simulations.audits.canaries import canary_evidence
from simulations.audits.setting import Setting, Sizes, claimed
from simulations.audits.suite import OF_ALL, OF_TRAINING

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "audit_power.py"
_spec = importlib.util.spec_from_file_location("fedkd_audit_power", FILE)
assert _spec is not None and _spec.loader is not None
power = importlib.util.module_from_spec(_spec)
sys.modules["fedkd_audit_power"] = power  # dataclasses look their module up
_spec.loader.exec_module(power)

CONFIDENCE = 0.999999  # of all bounds here together: keys of the operating system are not reproducible
SMALL = (
    "rounds=2", "privacy.steps=2", "clients=2", "proxy.size=60", "proxy.tune_size=20", "features.components=8"
)  # fmt: skip


def setting(*overrides: str, **sizes: int) -> Setting:
    small = {"trials": 50, "canaries": 100, "draws": 2000, "runs": 3, "targets": 20}
    return Setting(
        config.load(Scenario, None, [*SMALL, *overrides]), Path.cwd(), Sizes(**{**small, **sizes}), lambda text: None
    )


def refuted(evidence: Iterator[Evidence]) -> list[str]:
    return [found.audit for found in judge([*evidence], CONFIDENCE) if found.refutes]


# -- the code as it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", [*OF_ALL, *OF_TRAINING], ids=lambda experiment: experiment.__name__)
def test_no_audit_of_the_code_as_it_is_exceeds_its_claim(experiment: Callable[[Setting], Iterator[Evidence]]) -> None:
    assert refuted(experiment(setting())) == []


@pytest.mark.long
@pytest.mark.parametrize("change", ["privacy.sample_rate=0.5", "students=mlp", "privacy.clip=0.3"])
def test_nor_of_other_settings(change: str) -> None:
    assert refuted(noise.update_evidence(setting(change))) == []
    assert refuted(canary_evidence(setting(change, canaries=30))) == []


def test_every_mechanism_is_played_for_its_own_unit_at_the_policys_epsilon() -> None:
    audited = setting("privacy.epsilon=2")
    games = {name: make(audited) for name, make in paired.GAMES.items()}
    units = {game.contract.mechanism: game.contract.events[0].unit for game in games.values()}
    assert units == {"dp_sgd": "example", "gaussian": "client", "sum": "client", "votes": "client"}
    for game in games.values():
        assert 1.9 < claimed(game.contract, audited.delta) <= 2.0


def test_paired_releases_of_discrete_noise_come_close_to_the_claim() -> None:
    """An audit that shows nothing would not find a mistake either."""
    found = {e.audit: e for e in _only("gaussian", "sum", trials=250)}
    for name in ("gaussian", "sum"):
        bound = found[f"paired releases of {name}, for Gaussian differential privacy"].bound(1e-4)
        assert 2.0 < bound <= 3.0


@pytest.mark.long
def test_bare_answers_give_away_more_than_noised_ones() -> None:
    dp_sgd, none = answer_evidence(setting("rounds=3", "privacy.steps=8", runs=4, targets=30))
    assert none.claim == np.inf and dp_sgd.claim < 5
    assert none.observed["auc"] > 0.65 > dp_sgd.observed["auc"]


def test_a_mechanism_that_promises_nothing_is_not_audited() -> None:
    with pytest.raises(PrivacyError, match="promises nothing"):
        setting("privacy.mechanism=none")


# -- planted mistakes --------------------------------------------------------------------------------------------------


def _only(*names: str, **sizes: int) -> Iterator[Evidence]:
    with power.games(lambda name: name in names):
        yield from paired.paired_evidence(setting(**sizes))


def with_bug(name: str, evidence: Callable[[], Iterator[Evidence]]) -> list[str]:
    with power.ExitStack() as stack:
        power.BUGS[name].plant(stack)
        return refuted(evidence())


def test_each_game_is_played_with_the_clipper_that_it_names() -> None:
    assert clipper_for(paired._zeroed(8)) == "ghost"
    assert clipper_for(paired._Outside(8)) == "hooks"
    assert clipper_for(paired._convolved(8)) == "single_pass"


@pytest.mark.parametrize("clipper", ["with ghost clipping", "with hooks", "in a single pass"])
@pytest.mark.parametrize(
    ("bug", "game"),
    [
        ("clip forgotten", "one or two records"),
        ("private count as divisor", "one or two records"),
        ("joint backward pass of private and public loss", "beside soft labels"),
    ],
)
def test_paired_releases_find_a_step_that_is_not_as_it_should_be(bug: str, game: str, clipper: str) -> None:
    assert with_bug(bug, lambda: _only(f"dp_sgd {clipper}, {game}", trials=200))


@pytest.mark.parametrize(
    ("bug", "trials"),
    [
        ("√q forgotten in gaussian, sum and votes", 40),
        pytest.param("√2 forgotten in gaussian, sum and votes", 600, marks=pytest.mark.long),
    ],
)
def test_paired_releases_find_noise_that_is_sized_for_less(bug: str, trials: int) -> None:
    found = with_bug(bug, lambda: _only("gaussian", "sum", trials=trials))
    assert {name.split()[3].rstrip(",") for name in found} == {"gaussian", "sum"}


@pytest.mark.parametrize(
    ("bug", "audit"),
    [
        ("noise √2 too small in DP-SGD", "size"),
        ("no noise in DP-SGD", "size"),
        ("empty sample skipped", "size"),
        ("noise shared by clients", "dependence"),
        ("noise shared by rounds", "dependence"),
    ],
)
def test_the_noise_in_the_weights_finds_noise_that_is_too_small_or_shared(bug: str, audit: str) -> None:
    assert any(audit in name for name in with_bug(bug, lambda: noise.update_evidence(setting())))


@pytest.mark.parametrize("bug", ["clip forgotten", "no noise in DP-SGD", "noise shared by clients"])
def test_canaries_find_gross_mistakes(bug: str) -> None:
    assert with_bug(bug, lambda: canary_evidence(setting("privacy.epsilon=1", canaries=400)))
