from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.config import Scenario, load
from fedkd.errors import ConfigError, FedkdError
from fedkd.privacy.contract import Contract
from fedkd.privacy.events import PrivacyEvent
from simulations.baselines import Baselines
from simulations.prepare import prepare
from simulations.silos import Proximal, Update, averaged
from tests.journeys.conftest import fingerprint, sets, summary_of

Run = Callable[..., tuple[int, str, str]]
ALL = ["local", "central", "central_dp_sgd", "fedavg", "fedprox", "fedavg_dp_sgd"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every comparison, by two workers."""
    from fedkd.cli import main

    out = tmp_path_factory.mktemp("runs") / "all"
    with pytest.MonkeyPatch.context() as patch:
        names = f"baselines=[{', '.join(ALL)}]"
        patch.setattr("sys.argv", ["fedkd", "simulate", "--out", str(out), "--workers", "2", *sets(names)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    return out


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())["baselines"]
    return {name: {key: value for key, value in one.items() if key != "seconds"} for name, one in found.items()}


def test_a_summary_has_every_comparison_with_its_accuracy_epsilon_and_bytes(compared: Path) -> None:
    found = results(compared)
    assert list(found) == ALL
    for name, one in found.items():
        assert 0.1 < one["worst"] <= one["accuracy"] <= 1, name
        assert (one["unit"], one["epsilon"] == "inf") == (("example", False) if one["delta"] else ("none", True))
    assert {name for name, one in found.items() if one["delta"]} == {"local", "central_dp_sgd", "fedavg_dp_sgd"}


def test_private_comparisons_are_calibrated_to_the_epsilon_of_the_run(compared: Path) -> None:
    from fedkd.privacy.accounting import epsilon

    for name, steps in (("central_dp_sgd", 6), ("fedavg_dp_sgd", 6)):
        found = results(compared)[name]
        charged = PrivacyEvent("dp_sgd", found["noise_multiplier"], 1.0, steps)
        assert found["epsilon"] == pytest.approx(epsilon([charged], 1e-5), abs=1e-4)
        assert 2.99 < found["epsilon"] <= 3


def test_weights_are_counted_up_and_down_in_every_round_and_down_once_more(compared: Path) -> None:
    found = results(compared)
    size = found["fedavg"]["bytes_up"] / 2
    assert size > 4 * (10 * 10 + 10)  # ten components, ten classes, float32
    for name in ("fedavg", "fedprox", "fedavg_dp_sgd"):
        assert (found[name]["bytes_up"], found[name]["bytes_down"]) == (2 * size, 3 * size)
        assert len(found[name]["accuracy_by_round"]) == 2
        assert found[name]["accuracy_by_round"][-1] == found[name]["accuracy"]


def test_the_privacy_report_says_that_no_ledger_has_the_comparisons(compared: Path, fedkd: Run) -> None:
    code, out, _ = fedkd("report", compared)
    told = json.loads((compared / "report.json").read_text())["outputs_not_covered"][-1]
    assert (
        code == 0
        and told in " ".join(out.split())
        and "in no ledger" in told
        and "FedAvg of DP-SGD silos" in told
        and "local" not in told
    )


def test_comparisons_do_not_depend_on_the_number_of_workers(compared: Path, tmp_path: Path, fedkd: Run) -> None:
    arguments = sets(f"baselines=[{', '.join(ALL)}]")
    code, out, _ = fedkd("simulate", "--out", tmp_path / "run", "--workers", 1, *arguments)
    assert code == 0 and "FedAvg of DP-SGD silos" in out and "no message for them" in out
    assert results(tmp_path / "run") == results(compared)
    assert fingerprint(tmp_path / "run") == fingerprint(compared)


def test_a_comparison_that_has_ended_is_not_trained_again(compared: Path, fedkd: Run) -> None:
    before = {file: file.stat().st_mtime_ns for file in (compared / "baselines").iterdir()}
    (compared / "baselines" / "fedprox.json").unlink()
    told = results(compared)
    code, _, err = fedkd("simulate", "--resume", "--out", compared, "--workers", 1)
    assert code == 0 and err.count("to compare with") == 1 and "FedProx" in err
    after = {file: file.stat().st_mtime_ns for file in (compared / "baselines").iterdir()}
    assert {file.stem for file in before if before[file] != after[file]} == {"fedprox"}
    assert results(compared) == told


def test_ctrl_c_between_comparisons_keeps_those_that_have_ended(tmp_path: Path) -> None:
    scenario = load(Scenario, None, [word for word in sets("baselines=[local, fedavg]") if word != "--set"])
    prepare(scenario, tmp_path, Path.cwd())
    asked: list[str] = []
    both = Baselines(scenario, tmp_path, Path.cwd(), asked.append, lambda: len(asked) > 1)
    from simulations.engine import Engine

    engine = Engine({n.name: n for n in sorted((tmp_path / "clients").iterdir())}, tmp_path / "test.npz", 1)
    try:
        assert both.run(engine, 3.0) is None
    finally:
        engine.close()
    assert [file.name for file in (tmp_path / "baselines").iterdir()] == ["local.json"]


# -- what they are made of -------------------------------------------------------------------------------------------


def test_the_average_weighs_silos_by_their_examples_only_where_these_may_be_known() -> None:
    updates = {
        "a": Update({"w": np.array([0.0, 4.0], np.float32)}, 1),
        "b": Update({"w": np.array([4.0, 0.0], np.float32)}, 3),
    }
    assert averaged(updates, by_size=True)["w"].tolist() == [3.0, 1.0]
    assert averaged(updates, by_size=False)["w"].tolist() == [2.0, 2.0]
    assert averaged({**updates, "b": Update(updates["b"].weights, 0)}, by_size=True)["w"].tolist() == [0.0, 4.0]


def test_weights_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(FedkdError, match="diverged"):
        averaged({"a": Update({"w": np.array([np.nan], np.float32)}, 1)}, by_size=False)


def test_the_proximal_terms_gradient_is_mu_times_the_way_from_the_start() -> None:
    network = nn.Linear(3, 2)
    near = Proximal(network, 0.5)
    with torch.no_grad():
        network.weight += 2.0
    (gradient,) = torch.autograd.grad(near.batch(network, 8), [network.weight])
    assert torch.allclose(gradient, torch.full((2, 3), 1.0))


def test_dp_silos_are_never_weighed_by_their_private_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two silos of very different sizes: the shared weights are the plain mean of theirs."""
    seen: dict[str, bool] = {}

    def spy(updates: Any, *, by_size: bool) -> Any:
        seen[names[len(seen)]] = by_size
        return averaged(updates, by_size=by_size)

    from simulations import baselines
    from simulations.engine import Engine

    names = ["fedavg", "fedavg_dp_sgd"]
    monkeypatch.setattr(baselines, "averaged", spy)
    settings = sets(f"baselines=[{', '.join(names)}]", "rounds=1", "partition.kind=size")
    scenario = load(Scenario, None, [word for word in settings if word != "--set"])
    prepare(scenario, tmp_path, Path.cwd())
    engine = Engine({n.name: n for n in sorted((tmp_path / "clients").iterdir())}, tmp_path / "test.npz", 1)
    try:
        Baselines(scenario, tmp_path, Path.cwd(), print, lambda: False).run(engine, 3.0)
    finally:
        engine.close()
    assert seen == {"fedavg": True, "fedavg_dp_sgd": False}


def test_a_contract_of_silos_has_the_noise_of_all_their_rounds(tmp_path: Path) -> None:
    scenario = load(Scenario, None, [w for w in sets("baselines.fedavg_dp_sgd.rounds=8") if w != "--set"])
    prepare(scenario, tmp_path, Path.cwd())
    (plan,) = Baselines(scenario, tmp_path, Path.cwd(), print, lambda: False)._plans.values()
    contract: Contract = plan.contract
    assert (contract.rounds, contract.training.steps, contract.limits.epsilon) == (8, 3, 3.0)
    mu = math.sqrt(8 * 3) / contract.events[0].noise_multiplier
    from fedkd.privacy.accounting import gaussian_epsilon

    assert 2.99 < gaussian_epsilon(mu, 1e-5) <= 3


# -- how they are named ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("baselines=true", ["local", "central"]),
        ("baselines=false", []),
        ("baselines=fedavg", ["fedavg"]),
        ("baselines=local,fedprox", ["local", "fedprox"]),
        ("baselines=[central_dp_sgd]", ["central_dp_sgd"]),
        ("baselines.fedprox.mu=0.3", ["fedprox"]),
        ("baselines={fedavg: {rounds: 9}, local: }", ["fedavg", "local"]),
    ],
)
def test_comparisons_are_named_in_every_usual_way(text: str, names: list[str]) -> None:
    assert list(load(Scenario, None, [text]).baselines) == names


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("baselines=fedsgd", "fedavg"),
        ("baselines=[local, local]", "named twice: local"),
        ("baselines.fedavg.mu=0.3", "fedavg does not read 'mu'"),
        ("baselines.local.rounds=3", "local does not read 'rounds'"),
        ("baselines.fedavg.round=3", "baselines"),
        ("baselines=7", "baselines"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(Scenario, None, [text])


def test_a_network_that_dp_sgd_cannot_train_is_refused_before_the_first_round(tmp_path: Path, fedkd: Run) -> None:
    (tmp_path / "normed.py").write_text(
        "from torch import nn\n\nclass Batch(nn.Sequential):\n    def __init__(self, shape, classes):\n"
        "        super().__init__(nn.BatchNorm1d(shape[0]), nn.Linear(shape[0], classes))\n"
    )
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("students: ['normed:Batch']\nprivacy: {mechanism: none}\nbaselines: [fedavg_dp_sgd]\n")
    code, out, err = fedkd("simulate", scenario, "--out", tmp_path / "run", "--workers", 1, *sets())
    assert code == 1 and "BatchNorm" in err and "round" not in out


def test_mixed_students_are_compared_with_silos_of_the_first_kind(tmp_path: Path, fedkd: Run) -> None:
    cnn = "students=[{kind: cnn, channels: [4]}, linear]"
    arguments = sets(cnn, "clients=2", "baselines=fedavg", "rounds=1", "privacy.sample_rate=0.1")
    code, out, err = fedkd("simulate", "--out", tmp_path / "run", "--json", "--workers", 1, *arguments)
    assert code == 0, err
    assert summary_of(out)["baselines"]["fedavg"]["bytes_up"] > 4 * 64 * 10  # its last layer alone
