from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedkd.config import Scenario, load
from tests.journeys.conftest import sets, summary_of

FOLDER = Path(__file__).parents[2] / "simulations"
SCENARIOS = sorted(FOLDER.glob("*.yaml"))


def test_the_default_run_is_the_digits_scenario() -> None:
    assert load(Scenario, FOLDER / "digits.yaml") == Scenario()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_runs_in_a_reduced_form(
    path: Path, tmp_path: Path, fedkd: Callable[..., tuple[int, str, str]]
) -> None:
    small = sets("privacy.nominal_examples=400", "privacy.sample_rate=0.05", "baselines=false")
    scenario = load(Scenario, path)
    # files of IDX are not everywhere
    small += ["--set", "data.source=digits"] if scenario.data.source == "idx" else []
    if scenario.data.source == "mnist1d":
        small += ["--set", "data.size=2000"]
    # a sum of fewer votes is refused
    small += ["--set", "clients=20"] if scenario.privacy.mechanism == "sum" else []
    code, out, err = fedkd("simulate", path, "--json", "--workers", 1, "--out", tmp_path / "run", *small)
    assert code == 0, err
    assert summary_of(out)["rounds"] == 2
