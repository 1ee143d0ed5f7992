import json
from pathlib import Path

import pytest

from fedkd.config import KINDS, Policy, Scenario, dump, keys, load
from fedkd.errors import ConfigError


def write(path: Path, text: str) -> Path:
    file = path / "scenario.yaml"
    file.write_text(text)
    return file


def test_an_unknown_key_names_file_line_and_the_nearest_right_one(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 1\nprivacy:\n  epsilo: 3\n")
    with pytest.raises(ConfigError) as caught:
        load(Scenario, file)
    assert "did you mean 'privacy.epsilon'" in caught.value.what
    assert f"{file}:3" in caught.value.where


def test_a_wrong_value_names_its_key(tmp_path: Path) -> None:
    file = write(tmp_path, "clients: many\n")
    with pytest.raises(ConfigError) as caught:
        load(Scenario, file)
    assert "clients" in caught.value.what and f"{file}:1" in caught.value.where


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "\tx: 1"])
def test_what_is_no_mapping_in_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load(Scenario, write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Scenario, tmp_path / "nowhere.yaml")
    assert "nowhere.yaml" in caught.value.where


def test_set_overrides_the_file_and_takes_numbers_lists_and_names(tmp_path: Path) -> None:
    file = write(tmp_path, "privacy: {epsilon: 1}\n")
    changes = ["privacy.epsilon=8", "privacy.delta=1e-6", "students=linear,mlp", "teacher.hidden=[8, 8]"]
    scenario = load(Scenario, file, changes)
    assert (scenario.privacy.epsilon, scenario.privacy.delta) == (8, 1e-6)
    assert [student.kind for student in scenario.students] == ["linear", "mlp"]
    assert scenario.teacher.hidden == (8, 8)


@pytest.mark.parametrize("bad", ["seed", "=3", "seed.deep=3", "students=nonsense", "privacy.epsilon=-1", "rounds=0",
                                 "privacy.epsilon=nan", "privacy.sample_rate=2"])  # fmt: skip
def test_a_bad_override_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError):
        load(Scenario, None, [bad])


def test_a_chosen_noise_seed_is_refused_outside_simulation() -> None:
    common = ["epsilon=1", "nominal_examples=10", "proxies=" + "a" * 64]
    with pytest.raises(ConfigError, match="noise seed gives no privacy"):
        load(Policy, None, [*common, "seed=1"])
    assert load(Policy, None, common).noise == "os"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_a_json_schema(kind: str) -> None:
    assert json.dumps(KINDS[kind].model_json_schema())


def test_a_resolved_configuration_loads_as_itself(tmp_path: Path) -> None:
    scenario = load(Scenario, None, ["students=mlp,cnn", "privacy.delta=1e-7"])
    assert load(Scenario, write(tmp_path, dump(scenario))) == scenario


TABLE = "data={source: csv, path: a.csv, label: y, labels: [a, b], columns: %s}"


def test_bare_names_and_whole_numbers_are_columns_and_labels(tmp_path: Path) -> None:
    block = "{source: csv, path: a, label: 0, labels: [0, 1], columns: [7, {name: s, categories: [1, 2], fill: 1}]}"
    scenario = load(Scenario, None, [f"data={block}"])
    assert (scenario.data.label, scenario.data.labels) == ("0", ("0", "1"))
    assert [column.name for column in scenario.data.columns] == ["7", "s"]
    assert scenario.data.columns[1].fill == "1"
    assert load(Scenario, write(tmp_path, dump(scenario))) == scenario


@pytest.mark.parametrize(
    ("block", "what"),
    [
        ("data={source: nonsense}", "unknown source 'nonsense'"),
        ("data={source: csv, path: a.csv}", "needs 'label'"),
        ("data={source: folder, path: a, labels: [x]}", "needs 'image'"),
        ("data={source: digits, size: 9000}", "does not read 'size'"),
        ("data={source: npz, path: a, labels: [x]}", "does not read 'labels'"),
        ("data={source: csv, path: a, label: y, labels: [yes, no], columns: [a]}", "put it in quotes"),
        ("data={source: csv, path: a, label: y, labels: [0.5], columns: [a]}", "put it in quotes"),
        ("data={source: csv, path: a, label: y, labels: [x, x], columns: [a]}", "labels named twice: x"),
        ("data={source: hf, path: a, label: y, labels: [x]}", "either 'columns' or 'image'"),
        (TABLE % "[y]", "cannot be an input too"),
        (TABLE % "[x, x]", "columns named twice"),
        (TABLE % "[{name: x, categories: [u, u]}]", "categories named twice"),
        (TABLE % "[{name: x, mean: 3}]", "come together"),
        (TABLE % "[{name: x, mean: 3, sd: 0}]", "greater than 0"),
        (TABLE % "[{name: x, categories: [u], mean: 3, sd: 1}]", "no mean and sd"),
        (TABLE % "[{name: x, categories: [u], fill: v}]", "one of the categories"),
        (TABLE % "[{name: x, fill: .nan}]", "must be a number"),
    ],
)
def test_a_data_block_that_cannot_be_used_says_why(block: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        load(Scenario, None, [block])
    assert "data" in caught.value.where


def test_the_promised_keys_are_understood() -> None:
    promised = {
        "seed", "rounds", "clients", "data.source", "data.path", "partition.kind", "partition.alpha", "proxy.size",
        "features.kind", "students", "teacher.kind", "aggregate.kind", "codec", "privacy.mechanism", "privacy.epsilon",
        "privacy.delta", "data.label", "data.labels", "data.columns", "data.image", "data.size", "data.seed",
        "partition.classes_per_client", "partition.shards_per_client", "partition.growth", "partition.column",
    }  # fmt: skip
    assert promised <= set(keys(Scenario))


@pytest.mark.parametrize(
    ("mechanism", "kind"), [("gaussian", "median"), ("sum", "mean"), ("votes", "majority"), ("dp_sgd", "votes")]
)
def test_a_rule_that_has_no_use_for_the_mechanisms_answers_is_refused(mechanism: str, kind: str) -> None:
    settings = ["clients=50", "privacy.accept_low_utility=true", f"privacy.mechanism={mechanism}"]
    assert load(Scenario, None, settings).aggregation.kind in ("mean", "sum", "votes")
    with pytest.raises(ConfigError, match=r"needs aggregate\.kind"):
        load(Scenario, None, [*settings, f"aggregate.kind={kind}"])
