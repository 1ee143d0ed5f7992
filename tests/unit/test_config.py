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


def test_the_promised_keys_are_understood() -> None:
    promised = {
        "seed", "rounds", "clients", "data.source", "data.path", "partition.kind", "partition.alpha", "proxy.size",
        "features.kind", "students", "teacher.kind", "aggregate.kind", "codec", "privacy.mechanism", "privacy.epsilon",
        "privacy.delta",
    }  # fmt: skip
    assert promised <= set(keys(Scenario))
