"""Own data from the command line: what a scenario of tables or images does, and what ``fedkd data show`` says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.journeys.conftest import sets, summary_of
from tests.journeys.test_bad_input import refused

Run = Callable[..., tuple[int, str, str]]
TABLE = {
    "source": "csv",
    "path": "patients.csv",
    "label": "outcome",
    "labels": ["ill", "well"],
    "columns": ["age", {"name": "sex", "categories": ["f", "m"]}, {"name": "weight", "fill": 80}],
}
SMALL = sets("features.kind=none", "baselines=false", "privacy.sample_rate=0.5")


def scenario(folder: Path, **changes: object) -> Path:
    """A scenario of patients in four hospitals, with a table that says who is ill by age."""
    random = np.random.default_rng(0)
    lines = ["hospital,age,sex,weight,outcome"]
    for row in range(300):
        age = random.normal(50, 15)
        weight = "" if row % 10 == 0 else f"{random.normal(80, 10):.2f}"
        lines.append(f"h{row % 4},{age:.3f},{'fm'[row % 2]},{weight},{'ill' if age > 50 else 'well'}")
    (folder / "patients.csv").write_text("\n".join(lines))
    file = folder / "scenario.yaml"
    file.write_text(yaml.safe_dump({"name": "patients", "data": {**TABLE, **changes}}, sort_keys=False))
    return file


def test_a_federation_learns_from_tables(tmp_path: Path, fedkd: Run) -> None:
    natural = ["--set", "partition.kind=natural_id", "--set", "partition.column=hospital", "--set", "clients=4"]
    code, out, err = fedkd("simulate", scenario(tmp_path), "--workers", 1, "--json", "--out", tmp_path / "run",
                           *SMALL, *natural, "--set", "privacy.epsilon=20")  # fmt: skip
    assert code == 0, err
    assert summary_of(out)["teacher_accuracy"] > 0.7
    code, out, err = fedkd("proxy", "verify", tmp_path / "run" / "proxy.safetensors")
    assert code == 0 and "'labels': ['ill', 'well']" in out and "'sd':" in out, err


def test_a_federation_learns_from_folders_of_images(tmp_path: Path, fedkd: Run) -> None:
    pillow = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for label, slope in (("left", -1), ("right", 1)):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(60):
            level = 128 + slope * np.linspace(-60, 60, 8)[None].repeat(8, 0) + random.normal(0, 20, (8, 8))
            file = tmp_path / "pictures" / label / f"{number}.png"
            pillow.fromarray(level.clip(0, 255).astype(np.uint8)).save(file)
    data = "data={source: folder, path: %s, labels: [left, right], image: {height: 8, width: 8}}"
    arguments = sets("proxy.size=30", "proxy.tune_size=10", "baselines=false", data % (tmp_path / "pictures"))
    code, out, err = fedkd("simulate", "--workers", 1, "--json", "--out", tmp_path / "run", *arguments)
    assert code == 0, err
    assert summary_of(out)["teacher_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text.replace("hospital,age", "hospital,agee"), ("patients.csv", "no column 'age'", "agee")),
        (lambda text: text + "\nh0,60,d,80,ill", ("patients.csv:302", "column 'sex'", "category 'd'")),
        (lambda text: text + "\nh0,60,f,80", ("patients.csv:302", "4 cells")),
        (lambda text: text + "\nh0,nan,f,80,ill", ("patients.csv:302", "column 'age'", "nan")),
        (lambda text: text + "\nh0,60,f,80,dead", ("patients.csv:302", "column 'outcome'", "label 'dead'")),
    ],
)
def test_a_faulty_table_is_refused_with_its_line(
    tmp_path: Path, fedkd: Run, edit: Callable[[str], str], words: tuple[str, ...]
) -> None:
    file, table = scenario(tmp_path), tmp_path / "patients.csv"
    table.write_text(edit(table.read_text()))
    refused(fedkd("simulate", file, "--out", tmp_path / "run", *SMALL), *words)


def test_an_image_that_is_damaged_or_in_no_class(tmp_path: Path, fedkd: Run) -> None:
    pytest.importorskip("PIL.Image")
    (tmp_path / "pictures" / "left").mkdir(parents=True)
    (tmp_path / "pictures" / "left" / "a.png").write_bytes(b"\x89PNG damaged")
    data = f"data={{source: folder, path: {tmp_path}/pictures, labels: [left], image: {{height: 8, width: 8}}}}"
    refused(fedkd("simulate", "--out", tmp_path / "run", *sets(data)), "a.png", "cannot be read")
    (tmp_path / "pictures" / "up").mkdir()
    refused(fedkd("simulate", "--out", tmp_path / "run", *sets(data)), "'up'", "list of labels")


def test_ids_that_nobody_has(tmp_path: Path, fedkd: Run) -> None:
    refused(fedkd("data", "show", "--set", "partition.kind=natural_id"), "'ids'", "digits")
    arguments = sets("partition.kind=natural_id", "partition.column=hospital", "clients=9")
    refused(fedkd("data", "show", scenario(tmp_path), *arguments), "4 ids", "9 clients")


def test_a_test_part_without_examples_measures_nothing_and_is_refused(tmp_path: Path, fedkd: Run) -> None:
    x, y = np.random.default_rng(0).random((300, 4)), np.arange(300) % 3
    np.savez(tmp_path / "d.npz", x=x, y=y, x_test=x[:0], y_test=y[:0], classes=3)
    settings = sets("data.source=npz", f"data.path={tmp_path / 'd.npz'}", "proxy.size=50")
    code, _, err = fedkd("data", "show", *settings)
    assert code == 1 and "test part" in err and "no examples" in err


def test_show_counts_every_example_once(fedkd: Run) -> None:
    code, out, _ = fedkd("data", "show", "--json", "--set", "partition.kind=dirichlet", "--set", "clients=7")
    shown = json.loads(out)
    assert code == 0 and "simulation only" in shown["note"]
    held = np.array([*shown["public"].values(), *shown["clients"].values()])
    assert held.shape == (3 + 7, 10) and held.sum() == 1797
    assert [sum(shown["public"][name]) for name in ("proxy", "tune", "test")] == [400, 100, 359]


def test_show_counts_what_simulate_deals(tmp_path: Path, fedkd: Run) -> None:
    arguments = sets("partition.kind=pathological", "clients=8", "privacy.nominal_examples=100")
    shown = json.loads(fedkd("data", "show", "--json", *arguments)[1])
    assert fedkd("prepare", "--out", tmp_path / "run", *arguments)[0] == 0
    for name, counts in shown["clients"].items():
        y = np.load(tmp_path / "run" / "clients" / name / "data.npz")["y"]
        assert np.bincount(y, minlength=10).tolist() == counts


def test_show_names_classes_and_says_that_it_is_a_simulation(tmp_path: Path, fedkd: Run) -> None:
    code, out, err = fedkd("data", "show", scenario(tmp_path), "--set", "proxy.size=50", "--set", "proxy.tune_size=0")
    assert code == 0, err
    assert "simulation only" in out and "ill" in out and "client-4" in out


@pytest.mark.parametrize("settings", [[], ["--set", "partition.kind=dirichlet", "--set", "clients=300"]])
def test_the_plot_is_black_on_white_and_always_the_same(tmp_path: Path, fedkd: Run, settings: list[str]) -> None:
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    for file in (one, two):
        assert fedkd("data", "show", "--out", file, *settings)[0] == 0
    assert one.read_bytes() == two.read_bytes()
    text = one.read_text()
    colours = {part[:6] for part in text.split("#")[1:] if all(c in "0123456789abcdef" for c in part[:6])}
    assert colours <= {"000000", "ffffff"}
    assert "client" in text and "simulated" in text
    assert ("first 50 of 300 clients" in text) == bool(settings)
    assert fedkd("data", "show", "--out", tmp_path / "plot.png", *settings)[0] == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_another_kind_of_plot_is_refused(tmp_path: Path, fedkd: Run) -> None:
    refused(fedkd("data", "show", "--out", tmp_path / "plot.pdf"), "plot.pdf", ".svg")
