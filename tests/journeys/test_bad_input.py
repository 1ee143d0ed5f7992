"""What a user can get wrong: an error that says what, where and what to do, exit code not 0, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.journeys.conftest import sets, summary_of

Run = Callable[..., tuple[int, str, str]]
LINE = "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self, shape, classes):\n"


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code not in (0, None)
    assert "Traceback" not in out + err
    for word in words:
        assert word in err, f"{word!r} is not in: {err}"


def write_data(path: Path, n: int = 300, **changes: np.ndarray) -> Path:
    random = np.random.default_rng(0)
    arrays = {"x": random.random((n, 6), np.float32), "y": np.arange(n) % 3}
    np.savez(path, **{**arrays, **changes})
    return path


def test_an_unknown_key(tmp_path: Path, fedkd: Run) -> None:
    refused(fedkd("simulate", "--set", "privcy.epsilon=3"), "privcy", "privacy")


def test_a_missing_scenario(tmp_path: Path, fedkd: Run) -> None:
    refused(fedkd("simulate", tmp_path / "none.yaml"), "none.yaml", "does not exist")


def test_a_missing_data_folder(tmp_path: Path, fedkd: Run) -> None:
    folder = tmp_path / "nowhere"
    arguments = sets("data.source=idx", f"data.path={folder}")
    refused(fedkd("simulate", "--out", tmp_path / "run", *arguments), str(folder))


def test_nan_in_the_data(tmp_path: Path, fedkd: Run) -> None:
    x = np.zeros((300, 6), np.float32)
    x[17, 2] = np.nan
    file = write_data(tmp_path / "data.npz", x=x)
    refused(fedkd("simulate", "--out", tmp_path / "r", *sets("data.source=npz", f"data.path={file}")), "NaN", "17")


def test_labels_and_examples_of_different_lengths(tmp_path: Path, fedkd: Run) -> None:
    file = write_data(tmp_path / "data.npz", y=np.zeros(5, np.int64))
    refused(fedkd("simulate", "--out", tmp_path / "r", *sets("data.source=npz", f"data.path={file}")), str(file))


def test_liars_outside_a_simulation(tmp_path: Path, fedkd: Run) -> None:
    refused(fedkd("prepare", "--out", tmp_path / "f", *sets("poison.kind=random")), "'poison'", "simulated only")


def test_too_few_examples_for_the_proxy_set(tmp_path: Path, fedkd: Run) -> None:
    refused(fedkd("simulate", "--out", tmp_path / "r", *sets("proxy.size=5000")), "proxy.size")


def test_features_that_do_not_suit_the_data(tmp_path: Path, fedkd: Run) -> None:
    file = write_data(tmp_path / "data.npz")
    arguments = sets("data.source=npz", f"data.path={file}", "features.kind=scattering")
    refused(fedkd("simulate", "--out", tmp_path / "r", *arguments), "features.kind")


def test_user_code_that_is_not_there(tmp_path: Path, fedkd: Run) -> None:
    refused(fedkd("simulate", "--out", tmp_path / "r", *sets("data.source=no_such_module:load")), "no_such_module")
    refused(fedkd("simulate", "--out", tmp_path / "q", *sets("students=no_such_module:Net")), "no_such_module")


@pytest.mark.parametrize("layer", ["nn.BatchNorm1d(shape[0])", "nn.BatchNorm1d(shape[0], affine=False)"])
def test_an_architecture_that_dp_forbids(tmp_path: Path, fedkd: Run, layer: str) -> None:
    name = f"forbidden_{abs(hash(layer))}"
    (tmp_path / f"{name}.py").write_text(
        LINE + f"        super().__init__(nn.Flatten(), {layer}, nn.Linear(shape[0], classes))\n"
    )
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(f"students: ['{name}:Net']\n")
    arguments = ("simulate", scenario, "--workers", 1, "--out")
    refused(fedkd(*arguments, tmp_path / "run", *sets()), "BatchNorm", "GroupNorm", "client")
    code, _, err = fedkd(*arguments, tmp_path / "none", *sets("privacy.mechanism=none", "training.learning_rate=0.01"))
    assert code == 0, err


def test_a_network_of_the_wrong_width(tmp_path: Path, fedkd: Run) -> None:
    (tmp_path / "narrow_net.py").write_text(LINE + "        super().__init__(nn.Linear(shape[0], classes + 1))\n")
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("students: ['narrow_net:Net']\n")
    refused(fedkd("simulate", scenario, "--workers", 1, "--out", tmp_path / "run", *sets()), "narrow_net")


FAILING = """import torch
from torch import nn

class Net(nn.Linear):
    def __init__(self, shape, classes):
        super().__init__(shape[0], classes)

    def forward(self, x):
        if len(x) > 10 and torch.is_grad_enabled():
            raise RuntimeError("the cat ate client data 4711")
        return super().forward(x)
"""


def test_a_client_that_raises_in_training_does_not_stop_the_others(tmp_path: Path, fedkd: Run) -> None:
    (tmp_path / "failing_net.py").write_text(FAILING)
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("students: [linear, linear, 'failing_net:Net']\n")
    code, out, err = fedkd("simulate", scenario, "--json", "--workers", 1, "--out", tmp_path / "run", *sets())
    assert code == 0 and summary_of(out)["rounds"] == 2
    assert err.count("Traceback") == 1 and "the cat ate client data" in err and "client-2" in err
    assert b"4711" not in b"".join(p.read_bytes() for p in (tmp_path / "run" / "server").rglob("*") if p.is_file())


def test_without_a_quorum_the_run_stops_and_can_go_on(tmp_path: Path, fedkd: Run) -> None:
    (tmp_path / "failing_too.py").write_text(FAILING)
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("students: ['failing_too:Net']\n")
    code, _, err = fedkd("simulate", scenario, "--workers", 1, "--out", tmp_path / "run", *sets())
    assert code == 1 and "client-0" in err and "quorum" in err
    (tmp_path / "failing_too.py").write_text(FAILING.replace("len(x) > 10", "False"))
    # the same process has the module in memory; a user would start anew
    import failing_too

    failing_too.Net.forward = __import__("torch").nn.Linear.forward
    code, _, err = fedkd("simulate", "--resume", "--workers", 1, "--out", tmp_path / "run")
    assert code == 0, err


def test_a_run_directory_in_use_is_not_overwritten(tmp_path: Path, fedkd: Run) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious").write_text("data")
    refused(fedkd("simulate", "--out", out, *sets()), "not empty", "--resume")
    assert (out / "precious").read_text() == "data"


def test_resuming_another_configuration(tmp_path: Path, fedkd: Run) -> None:
    out = tmp_path / "run"
    assert fedkd("prepare", "--out", out, *sets("privacy.nominal_examples=300"))[0] == 0
    refused(fedkd("simulate", "--resume", "--out", out, *sets("rounds=9")), "another configuration")
    refused(fedkd("simulate", "--resume", *sets()), "--out")


def test_a_damaged_or_exchanged_proxy_set(tmp_path: Path, fedkd: Run) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert fedkd("proxy", "build", "--out", one, *sets())[0] == 0
    code, out, _ = fedkd("proxy", "build", "--out", two, *sets("seed=5"))
    assert code == 0
    refused(fedkd("proxy", "verify", one, "--hash", out.split()[-1]), "another proxy set", "one.safetensors")
    data = bytearray(one.read_bytes())
    data[-3] ^= 1
    one.write_bytes(data)
    refused(fedkd("proxy", "verify", one), "damaged or altered", "one.safetensors")


def test_a_client_whose_policy_does_not_allow_the_proxy_set(tmp_path: Path, fedkd: Run) -> None:
    out = tmp_path / "run"
    assert fedkd("prepare", "--out", out, *sets("privacy.nominal_examples=300"))[0] == 0
    policy = out / "clients" / "client-1" / "policy.yaml"
    text = policy.read_text()
    start = text.index("proxies:")
    policy.write_text(text[:start] + "proxies: ['" + "0" * 64 + "']\n" + text[text.index("max_rounds") :])
    refused(fedkd("simulate", "--resume", "--workers", 1, "--out", out), "policy.yaml", "proxies")


def test_a_deployed_policy_takes_no_count_from_the_data(tmp_path: Path, fedkd: Run) -> None:
    refused(fedkd("prepare", "--out", tmp_path / "run", *sets()), "privacy.nominal_examples")
    assert not (tmp_path / "run").exists()
    assert fedkd("prepare", "--noise", "simulation", "--out", tmp_path / "run", *sets())[0] == 0


@pytest.mark.parametrize("terms", ["{}", "{kl: 0}"])
def test_a_teacher_that_would_learn_from_nothing(tmp_path: Path, fedkd: Run, terms: str) -> None:
    refused(fedkd("simulate", "--out", tmp_path / "run", *sets(f"teacher.terms={terms}")), "teacher.terms")


def test_a_path_that_nothing_reads(tmp_path: Path, fedkd: Run) -> None:
    refused(fedkd("simulate", "--out", tmp_path / "run", *sets("data.path=mine")), "digits", "path")


def test_an_output_directory_that_cannot_be(tmp_path: Path, fedkd: Run) -> None:
    (tmp_path / "file").write_text("here")
    refused(fedkd("simulate", "--out", tmp_path / "file" / "run", *sets()), str(tmp_path / "file"))


def test_labels_that_cannot_be_counted(tmp_path: Path, fedkd: Run) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((500, 4), np.float32), y=np.arange(500) * 2**30)
    arguments = sets("data.source=npz", f"data.path={tmp_path}/data.npz")
    refused(fedkd("simulate", "--out", tmp_path / "run", *arguments), "label")


def test_files_that_are_no_models_or_ledgers(tmp_path: Path, fedkd: Run) -> None:
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a model")
    refused(fedkd("predict", junk, tmp_path / "x.npz"), "junk.safetensors")
    refused(fedkd("ledger", "export", junk), "junk.safetensors")
    refused(fedkd("report", tmp_path), "no ledger")


def test_a_ledger_that_was_edited_is_reported(tmp_path: Path, fedkd: Run) -> None:
    import sqlite3

    out = tmp_path / "run"
    assert fedkd("simulate", "--workers", 1, "--out", out, *sets("baselines=false", "rounds=1"))[0] == 0
    file = out / "clients" / "client-0" / "state" / "ledger.sqlite"
    with sqlite3.connect(file) as db:
        db.execute("DROP TRIGGER entries_keep")
        db.execute("""UPDATE entries SET body = replace(body, '"steps":3', '"steps":1') WHERE seq = 2""")
    db.close()
    refused(fedkd("ledger", "verify", out), "altered", "ledger.sqlite")
    refused(fedkd("report", out), "altered")
