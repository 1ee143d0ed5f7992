"""One encoding for all parties, fitted on the proxy set and on nothing else."""

from pathlib import Path

import numpy as np
import pytest

from client.learner import Learner
from fedkd import config
from fedkd.config import ClientConfig, Column, Data, Scenario, ServerConfig
from fedkd.data.encoding import agreed, describe, fitted
from fedkd.distill.model import ProxyView
from fedkd.errors import DataError
from server.serve import test_examples as server_test_examples
from simulations import split
from simulations.prepare import build_proxy

DATA = {
    "source": "csv",
    "path": "pool.csv",
    "label": "outcome",
    "labels": ["ill", "well"],
    "columns": ["age", {"name": "sex", "categories": ["f", "m"]}],
}
SETTINGS = ["proxy.size=40", "proxy.tune_size=10", "features.kind=none", "clients=2"]


def write(path: Path, rows: list[str]) -> None:
    path.write_text("age,sex,outcome\n" + "".join(f"{row}\n" for row in rows))


def pool(n: int = 200) -> list[str]:
    random = np.random.default_rng(0)
    ages, sexes, outcomes = random.normal(50, 12, n), random.integers(2, size=n), random.integers(2, size=n)
    return [f"{a:.6f},{'fm'[s]},{['ill', 'well'][o]}" for a, s, o in zip(ages, sexes, outcomes, strict=True)]


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    write(tmp_path / "pool.csv", pool())
    return Scenario.model_validate(config.load(Scenario, None, SETTINGS).model_dump() | {"data": DATA})


def test_numeric_columns_are_scaled_by_the_proxy_set(scenario: Scenario, tmp_path: Path) -> None:
    found = split.cut(scenario, tmp_path)
    assert found.proxy.x[:, 0].mean() == pytest.approx(0, abs=1e-6)
    assert found.proxy.x[:, 0].std() == pytest.approx(1, abs=1e-6)
    assert found.private.x[:, 0].mean() != pytest.approx(0, abs=1e-3)
    assert set(np.unique(found.proxy.x[:, 1:])) == {0, 1}


def test_no_private_row_changes_the_proxy_set_or_its_encoding(scenario: Scenario, tmp_path: Path) -> None:
    rows, before = pool(), build_proxy(scenario, tmp_path)
    public = {tuple(row) for row in before.examples.tolist()}
    found = split.cut(scenario, tmp_path)
    scale = found.data.columns[0]
    for at, row in enumerate(rows):
        age = np.float32((float(row.split(",")[0]) - scale.mean) / scale.sd)
        if (float(age), float(",f," in row), float(",m," in row)) not in public:
            rows[at] = "1000000,m,ill"
    write(tmp_path / "pool.csv", rows)
    assert build_proxy(scenario, tmp_path).hash == before.hash


def test_a_column_that_is_constant_on_the_proxy_set_is_only_centred() -> None:
    data = Data.model_validate(DATA)
    column = fitted(data, np.array([[5, 1, 0], [5, 0, 1]], np.float32)).columns[0]
    assert (column.mean, column.sd) == (5, 1)


def test_public_numbers_of_the_configuration_are_not_fitted_again() -> None:
    data = Data.model_validate({**DATA, "columns": [{"name": "age", "mean": 1, "sd": 2}]})
    assert fitted(data, np.array([[5], [6]], np.float32)) == data


@pytest.fixture
def deployed(scenario: Scenario, tmp_path: Path) -> tuple[ProxyView, ClientConfig]:
    """A client that reads its own file, in the folder of the proxy set."""
    build_proxy(scenario, tmp_path).save(tmp_path / "proxy.safetensors")
    write(tmp_path / "mine.csv", ["62.5,f,ill", "40,m,well"])
    mine = {"name": "a", "proxy": "proxy.safetensors", "data": {**DATA, "path": "mine.csv"}}
    return ProxyView.load(tmp_path / "proxy.safetensors", tmp_path), ClientConfig.model_validate(mine)


def changed(client: ClientConfig, **changes) -> ClientConfig:
    return ClientConfig.model_validate({**client.model_dump(), "data": {**client.data.model_dump(), **changes}})


def test_a_deployed_client_encodes_by_the_proxy_set(deployed, scenario: Scenario, tmp_path: Path) -> None:
    view, client = deployed
    learner = Learner(client, view, tmp_path, print)
    scale = split.cut(scenario, tmp_path).data.columns[0]
    raw = np.array([[(62.5 - scale.mean) / scale.sd, 1, 0], [(40 - scale.mean) / scale.sd, 0, 1]], np.float32)
    assert (learner.data.x == learner.model.inputs(raw)).all()
    assert learner.data.y.tolist() == [0, 1]


def test_a_record_of_the_proxy_set_has_the_same_bytes_at_a_client(deployed, tmp_path: Path) -> None:
    view, client = deployed
    write(tmp_path / "mine.csv", pool())
    told: list[str] = []
    learner = Learner(client, view, tmp_path, told.append)
    assert "40 records are also in the proxy set" in told[0]
    assert len(learner.data.y) == 160


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"labels": ("well", "ill")}, "the labels are"),
        ({"columns": (Column(name="age"), Column(name="sex", categories=("m", "f")))}, "'sex' has the categories"),
        ({"columns": (Column(name="sex", categories=("f", "m")), Column(name="age"))}, "the columns are"),
        ({"columns": (Column(name="age", mean=50, sd=1), Column(name="sex", categories=("f", "m")))}, "mean and sd"),
    ],
)
def test_a_client_with_another_encoding_does_not_start(deployed, tmp_path: Path, changes: dict, what: str) -> None:
    view, client = deployed
    with pytest.raises(DataError, match=what) as caught:
        Learner(changed(client, **changes), view, tmp_path, print)
    assert "client a" in caught.value.where


def test_private_rows_never_scale_themselves() -> None:
    with pytest.raises(DataError, match="no mean and sd") as caught:
        agreed(Data.model_validate(DATA), {}, "client a")
    assert "never those of private rows" in caught.value.fix


def test_what_is_no_encoding_is_refused() -> None:
    for described in ("text", {"columns": [1]}, {"columns": [{"nonsense": 1}]}, {"labels": 3}):
        with pytest.raises(DataError, match="no encoding that can be read"):
            agreed(Data.model_validate(DATA), described, "client a")


def test_old_sources_describe_nothing() -> None:
    assert describe(Data(source="idx", path="/secret", test_fraction=0.1)) == {}
    assert "pool.csv" not in str(describe(Data.model_validate(DATA)))


def test_the_servers_test_examples_are_encoded_and_checked_like_a_clients(deployed, tmp_path: Path) -> None:
    view, client = deployed
    settings = ServerConfig(proxy="proxy.safetensors", clients=1, test=client.data)
    found = server_test_examples(settings, tmp_path, view.proxy)
    assert found is not None and found.x[0, 0] == pytest.approx(1, abs=0.2)
    np.savez(tmp_path / "other.npz", x=np.zeros((3, 9)), y=[0, 1, 1])
    settings = ServerConfig(proxy="proxy.safetensors", clients=1, test=Data(source="npz", path="other.npz"))
    with pytest.raises(DataError, match=r"expected \[3\]") as caught:
        server_test_examples(settings, tmp_path, view.proxy)
    assert "key 'test'" in caught.value.where
