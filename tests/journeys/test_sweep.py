from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedkd.cli import main
from fedkd.errors import ConfigError
from fedkd.report import comparisons
from simulations import sweep as sweeps
from tests.journeys.conftest import sets

Run = Callable[..., tuple[int, str, str]]
QUICK = sets("rounds=1", "clients=2", "privacy.steps=1", "features.components=4", "training.distil_steps=0")
GRID = ["--set", "privacy.epsilon=[1, 3]", "--set", "baselines=[[fedavg_dp_sgd]]", "--seeds", "0,1"]


def quick(*arguments: object) -> list[object]:
    return ["sweep", "--workers", 1, *QUICK, *arguments]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two budgets by two seeds."""
    out = tmp_path_factory.mktemp("sweeps") / "grid"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fedkd", *map(str, quick(*GRID, "--out", out))])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return out


def runs(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob("*/summary.json"))


def test_every_combination_is_run_and_a_second_sweep_runs_none_again(swept: Path, fedkd: Run) -> None:
    before = {run: (run / "summary.json").stat().st_mtime_ns for run in runs(swept)}
    assert len(before) == 4
    code, out, err = fedkd(*quick(*GRID, "--out", swept))
    assert code == 0 and err.count("skipped") == 4 and "FedAvg of DP-SGD silos" in out
    assert {run: (run / "summary.json").stat().st_mtime_ns for run in runs(swept)} == before


def test_a_run_that_has_another_configuration_is_not_taken_for_a_cell(swept: Path, tmp_path: Path) -> None:
    settings = [word for word in QUICK if word != "--set"] + ["privacy.epsilon=1", "baselines=[[fedavg_dp_sgd]]"]
    (cell,) = sweeps.cells(None, sweeps.grid(settings, None, [0]), tmp_path)
    shutil.copytree(next(run for run in runs(swept) if cell.folder.name == run.name), cell.folder)
    assert cell.done
    config = cell.folder / "config.yaml"
    config.write_text(config.read_text().replace("epsilon: 1.0", "epsilon: 2.0"))
    assert not cell.done


def test_runs_that_differ_in_the_seed_alone_are_one_row_with_its_spread(swept: Path, fedkd: Run) -> None:
    code, out, _ = fedkd("compare", swept, "--json")
    groups = sorted(json.loads(out), key=lambda group: str(group["label"]))
    assert code == 0 and [group["label"] for group in groups] == ["privacy.epsilon=1.0", "privacy.epsilon=3.0"]
    for group in groups:
        summaries = [json.loads((Path(run) / "summary.json").read_text()) for run in group["runs"]]
        assert group["seeds"] == [0, 1] == [one["seed"] for one in summaries]
        found = [one["teacher_accuracy"] for one in summaries]
        told = group["methods"]["teacher"]["accuracy"]
        assert (told["min"], told["max"]) == (min(found), max(found)) and told["mean"] == pytest.approx(sum(found) / 2)
        worst = [one["student_accuracy"]["min"] for one in summaries]
        assert group["methods"]["teacher"]["worst"]["min"] == min(worst)
        bytes_up = [one["baselines"]["fedavg_dp_sgd"]["bytes_up"] for one in summaries]
        assert group["methods"]["fedavg_dp_sgd"]["bytes_up"]["mean"] == sum(bytes_up) / 2


def test_compare_writes_a_table_and_plots(swept: Path, tmp_path: Path, fedkd: Run) -> None:
    code, out, _ = fedkd("compare", swept, "--out", tmp_path / "table")
    assert code == 0 and "ε an example" in out and "ε a client" not in out
    assert {file.name for file in (tmp_path / "table").iterdir()} == {
        f"comparison.{kind}" for kind in ("json", "md", "svg", "png")
    }
    assert (tmp_path / "table" / "comparison.md").read_text().count("\n| ") == 5  # a rule, and two models of two groups
    again = tmp_path / "again"
    assert fedkd("compare", *runs(swept), "--out", again)[0] == 0
    assert (again / "comparison.svg").read_bytes() == (tmp_path / "table" / "comparison.svg").read_bytes()


def test_plots_need_no_colour(swept: Path, tmp_path: Path, fedkd: Run) -> None:
    import matplotlib.image

    fedkd("compare", swept, "--out", tmp_path)
    picture = matplotlib.image.imread(tmp_path / "comparison.png")
    assert (picture[..., 0] == picture[..., 1]).all() and (picture[..., 1] == picture[..., 2]).all()


def test_one_result_is_not_counted_twice(swept: Path, tmp_path: Path, fedkd: Run) -> None:
    copy = shutil.copytree(runs(swept)[0], tmp_path / "copy")
    code, _, err = fedkd("compare", runs(swept)[0], copy)
    assert code == 1 and "same run" in err
    assert fedkd("compare", runs(swept)[0], runs(swept)[0])[0] == 0  # one folder, named twice


@pytest.mark.parametrize(("spoil", "told"), [(None, "no run has ended here"), ("{}", "not the files of a run")])
def test_what_is_no_run_is_not_compared(spoil: str | None, told: str, tmp_path: Path, fedkd: Run) -> None:
    if spoil is not None:
        (tmp_path / "summary.json").write_text(spoil)
    code, _, err = fedkd("compare", tmp_path)
    assert code == 1 and told in err and "fix" in err


def test_two_units_are_never_in_one_column() -> None:
    from fedkd.report.comparison_table import table

    measured: dict[str, Any] = dict.fromkeys(comparisons.MEASURED, 1.0)
    config = {"name": "a", "seed": 0}
    made = [
        comparisons.Run(Path(unit), {**config, "mechanism": unit}, {"teacher": {**measured, "unit": unit}})
        for unit in ("example", "client", "none")
    ]
    head, example, client, none, *_ = (
        table(comparisons.grouped(made), markdown=True).splitlines()[:1]
        + table(comparisons.grouped(made), markdown=True).splitlines()[2:]
    )
    columns = [cell.strip() for cell in head.split("|")]
    at = columns.index("ε an example"), columns.index("ε a client")
    cells = [[row.split("|")[column].strip() for column in at] for row in (example, client, none)]
    assert cells == [["1.000", "–"], ["–", "1.000"], ["1.000", "1.000"]]


def test_a_cell_that_fails_does_not_take_the_others_with_it(tmp_path: Path, fedkd: Run) -> None:
    (tmp_path / "fragile.py").write_text(
        "from torch import nn\n\nclass Fragile(nn.Linear):\n    def __init__(self, shape, classes):\n"
        "        super().__init__(shape[0], classes)\n"
        "    def forward(self, x):\n        assert len(x) != 60\n        return super().forward(x)\n"
    )
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("privacy: {mechanism: none}\nbaselines: []\n")
    axis = "students=[[linear], ['fragile:Fragile']]"
    code, out, err = fedkd(*quick("--set", axis, "--set", "proxy.size=60", "--out", tmp_path / "out"), scenario)
    assert code == 1 and "1 of 2 runs failed" in err and "teacher" in out
    assert len(runs(tmp_path / "out")) == 1 and len(list((tmp_path / "out").glob("*/error.txt"))) == 1


def test_ctrl_c_ends_a_sweep_that_the_same_command_continues(
    tmp_path: Path, fedkd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedkd.cli.sweep import _Progress

    def interrupt(self: _Progress, row: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    arguments = quick("--set", "baselines=false", "--seeds", "0 1", "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(_Progress, "on_row", interrupt)
        code, _, err = fedkd(*arguments)
    assert code == 130 and "of 2 runs have ended" in err and len(runs(tmp_path)) < 2
    assert fedkd(*arguments)[0] == 0 and len(runs(tmp_path)) == 2


def test_tuning_looks_at_the_public_split_alone(swept: Path, tmp_path: Path, fedkd: Run) -> None:
    copy = shutil.copytree(swept, tmp_path / "copy")
    for run in runs(copy):
        summary = json.loads((run / "summary.json").read_text())
        low = "epsilon: 1.0" in (run / "config.yaml").read_text()
        summary["tune_accuracy"], summary["teacher_accuracy"] = (0.9, 0.1) if low else (0.5, 0.99)
        summary["baselines"]["fedavg_dp_sgd"]["tune_accuracy"] = 0.2 if low else 0.3
        (run / "summary.json").write_text(json.dumps(summary))
    code, out, _ = fedkd(*quick(*GRID, "--out", copy, "--tune"))
    assert code == 0 and "*  90.0%  privacy.epsilon=1" in out and "99" not in out
    code, out, _ = fedkd(*quick(*GRID, "--out", copy, "--tune", "--of", "fedavg_dp_sgd", "--json"))
    assert code == 0 and json.loads(out)["chosen"] == {"privacy.epsilon": 3.0}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "proxy.tune_size=0", "--tune"], "tuning split"),
        (["--tune", "--of", "fedavg"], "no model 'fedavg'"),
        (["--tune", "--of", "local"], "no model 'local'"),
        (["--set", "privacy.epsilon=[1, -1]"], "privacy.epsilon"),
        (["--set", "privacy.epsilon=[]"], "no values"),
        (["--seeds", "one"], "whole numbers"),
        (["--grid", "missing.yaml"], "does not exist"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_its_first_run(
    arguments: list[str], told: str, tmp_path: Path, fedkd: Run
) -> None:
    code, _, err = fedkd(*quick("--out", tmp_path / "out", *arguments))
    assert code == 1 and told in err and not (tmp_path / "out").exists()


def test_axes_come_from_a_file_settings_and_seeds(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("privacy.steps: [1, 2]\nstudents: [[linear], [mlp, linear]]\nclients: 3\n")
    axes = sweeps.grid(["privacy.steps=[5, 6, 7]"], file, [4, 5])
    assert axes["privacy.steps"] == [5, 6, 7] and axes["clients"] == [3]
    cells = sweeps.cells(None, axes, tmp_path)
    assert len(cells) == 3 * 2 * 2 and len({cell.folder for cell in cells}) == 12
    assert {len(cell.scenario.students) for cell in cells} == {1, 2} and {c.scenario.clients for c in cells} == {3}
    assert [cell.scenario.seed for cell in cells][:4] == [4, 5, 4, 5]  # the last axis is the fastest


def test_a_setting_that_names_one_value_is_no_axis(tmp_path: Path) -> None:
    (cell,) = sweeps.cells(None, sweeps.grid(["name=once"], None, []), tmp_path)
    assert cell.label == "once"
    with pytest.raises(ConfigError, match="key=value"):
        sweeps.grid(["name"], None, [])
