"""An exported file answers as the student does, and holds nothing that is private."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedkd.data import proxy
from fedkd.data.proxy import ProxySet
from fedkd.data.sources import Examples, as_float
from fedkd.device.export import export
from fedkd.device.graph import Deployable, example
from fedkd.device.measure import EagerRunner, latency, open_runner, parity, predict
from fedkd.distill.students import Network
from fedkd.errors import DataError, FedkdError
from tests.device.conftest import Made, digits, trained

KINDS = [
    *[("linear", "scattering"), ("mlp", "pca"), ("cnn", "none"), ("mlp", "none")],
    *[("rnn", "none"), ("transformer", "none"), ("linear", "patches"), ("linear", "pca+patches")],
]


@pytest.fixture(scope="session")
def files(mlp: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The student as fedkd has it, as ONNX, and as ONNX in int8."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("files")
    found = {name: folder / name for name in ("student.safetensors", "student.onnx", "int8.onnx")}
    mlp.model.save(found["student.safetensors"])
    found["student.onnx"].write_bytes(export(mlp.model, "onnx"))
    found["int8.onnx"].write_bytes(export(mlp.model, "onnx", mlp.public))
    return found


# -- the same answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "kind"), KINDS)
def test_the_graph_is_the_students_own_prediction(architecture: str, kind: str) -> None:
    made = trained(architecture, kind)
    x = digits(kind)[2].x
    with torch.no_grad():
        found = Deployable(made.model)(torch.from_numpy(as_float(x))).numpy()
    np.testing.assert_allclose(found, made.model.predict(x), atol=1e-5)


def test_an_onnx_file_answers_as_the_student_does(mlp: Made, files: dict[str, Path]) -> None:
    x = digits("scattering")[2].x
    found = parity(predict(open_runner(files["student.onnx"]), x), mlp.model.predict(x))
    assert found.max_difference < 1e-5 and found.agreement == 1 and found.examples == len(x)


def test_a_student_of_raw_images_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    made, x = trained("cnn", "none"), digits("none")[2].x
    (tmp_path / "cnn.onnx").write_bytes(export(made.model, "onnx"))
    assert parity(predict(open_runner(tmp_path / "cnn.onnx"), x), made.model.predict(x)).max_difference < 1e-5


def test_an_int8_file_is_smaller_and_answers_nearly_as_the_student_does(mlp: Made, files: dict[str, Path]) -> None:
    x = digits("scattering")[2].x
    rows = predict(open_runner(files["int8.onnx"]), x)
    assert parity(rows, mlp.model.predict(x)).agreement > 0.97
    assert files["int8.onnx"].stat().st_size < 0.6 * files["student.onnx"].stat().st_size


def test_a_file_says_what_it_is(mlp: Made, files: dict[str, Path]) -> None:
    said = open_runner(files["int8.onnx"]).description
    assert said["shape"] == [1, 8, 8] and said["classes"] == 10 and said["architecture"] == "mlp"
    assert said["int8"] is True and said["calibration"] == said["proxy"] == mlp.public.hash
    assert open_runner(files["student.onnx"]).description["int8"] is False
    assert open_runner(files["student.safetensors"]).description["proxy"] == mlp.public.hash


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "kind"), [("mlp", "scattering"), ("cnn", "none"), ("rnn", "none")])
def test_an_executorch_file_answers_as_the_student_does(architecture: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    made, x = trained(architecture, kind), digits(kind)[2].x[:300]
    (tmp_path / "f.pte").write_bytes(export(made.model, "executorch"))
    (tmp_path / "i.pte").write_bytes(export(made.model, "executorch", made.public))
    for name, agreement in (("f.pte", 1.0), ("i.pte", 0.97)):
        runner = open_runner(tmp_path / name)
        assert parity(predict(runner, x), made.model.predict(x)).agreement >= agreement
        assert runner.description["int8"] == (name == "i.pte")
        assert private_bytes(made.private, (tmp_path / name).read_bytes()) == 0
    assert (tmp_path / "i.pte").stat().st_size < (tmp_path / "f.pte").stat().st_size


def test_a_recurrent_student_has_int8_weights_and_a_state_that_is_not_rounded(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    made, x = trained("rnn", "none", 60), digits("none")[2].x[:200]
    expected, files = made.model.predict(x), (tmp_path / "rnn.onnx", tmp_path / "rnn8.onnx")
    for file, calibration, agreement, near in zip(files, (None, made.public), (1.0, 0.99), (1e-5, 0.1), strict=True):
        file.write_bytes(export(made.model, "onnx", calibration))
        found = parity(predict(open_runner(file), x), expected)
        assert found.agreement >= agreement and found.max_difference < near
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size
    said = open_runner(files[1]).description
    assert said["int8"] is True and said["calibration"] is None  # no range of any example is in it


# -- nothing private ---------------------------------------------------------------------------------------------------


def private_bytes(private: Examples, content: bytes) -> int:
    """How many examples have 16 pixels in the content, as float32 or as eight bits."""
    found = 0
    for row in as_float(private.x).reshape(len(private), -1):
        at = int(np.argmax(row != 0)) + 8  # where the digit begins, not in the empty border
        pieces = [row[at : at + 16], np.rint(row[at : at + 16] * 255).astype(np.uint8)]
        found += any(np.count_nonzero(p) > 6 and p.tobytes() in content for p in pieces)
    return found


def test_the_scan_would_find_a_private_example(mlp: Made) -> None:
    """What torch.export does by itself: it keeps the storage that the example input is a view of."""
    x = torch.from_numpy(as_float(mlp.private.x).copy())
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Deployable(mlp.model), (x[:1],), strict=False), buffer)
    assert private_bytes(mlp.private, buffer.getvalue()) > 0.8 * len(mlp.private)


def test_no_private_example_and_no_path_is_in_a_file(mlp: Made, files: dict[str, Path]) -> None:
    for name in ("student.onnx", "int8.onnx"):
        content = files[name].read_bytes()
        assert private_bytes(mlp.private, content) == 0
        assert b".py" not in content and str(Path.home()).encode() not in content


def own_zeros(x: Tensor) -> bool:
    return not x.any() and x.untyped_storage().nbytes() == 4 * x.numel()


def test_the_example_of_a_graph_is_zeros_in_storage_of_their_own(mlp: Made) -> None:
    assert tuple(example(mlp.model).shape) == (1, 1, 8, 8) and own_zeros(example(mlp.model))


def test_every_trace_is_of_that_example(mlp: Made, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    seen: list[Tensor] = []
    straight = torch.export.export

    def spy(module: nn.Module, args: tuple[Tensor, ...], **options: bool) -> torch.export.ExportedProgram:
        seen.extend(args)
        return straight(module, args, **options)

    monkeypatch.setattr(torch.export, "export", spy)
    assert export(mlp.model, "onnx") == files["student.onnx"].read_bytes()  # and gives the same bytes again
    assert seen and all(own_zeros(x) for x in seen)


def test_int8_is_calibrated_on_the_models_own_proxy_set_alone(mlp: Made) -> None:
    public = mlp.public
    parts = (None, 10, public.features_spec, public.features_arrays, {"source": "mine"})
    private: ProxySet = proxy.build(mlp.private.x, *parts)
    with pytest.raises(DataError, match="proxy set"):
        export(mlp.model, "onnx", private)


# -- what a user can get wrong -----------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :10] if float(x.sum()) > 0 else -x[:, :10]


def test_a_network_that_cannot_be_traced_is_told(mlp: Made) -> None:
    pytest.importorskip("onnxscript")
    made = trained("mlp", "pca")
    model = type(made.model)(
        Network(Branching(), "features", (made.model.features.dim,), 10),
        made.model.features,
        made.model.architecture,
        "",
        10,
    )
    with pytest.raises(FedkdError, match="cannot be traced"):
        export(model, "onnx")


def test_a_missing_package_is_named(mlp: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(FedkdError) as caught:
        export(mlp.model, "onnx")
    assert "onnxscript" in caught.value.what and "fedkd[onnx]" in caught.value.fix


def test_files_that_are_no_exports_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk that is long enough")
    for name in ("junk.onnx", "nowhere.onnx"):
        with pytest.raises(DataError) as caught:
            open_runner(tmp_path / name)
        assert name in caught.value.where
    with pytest.raises(DataError, match="shape"):
        predict(open_runner(files["student.onnx"]), np.zeros((2, 28, 28), np.float32))


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_latency_is_the_median_and_the_95th_percentile_of_what_the_clock_says(mlp: Made) -> None:
    # call number i takes i microseconds
    starts = (tick for i in range(1000) for tick in (0, 1000 * i))
    found = latency(EagerRunner(mlp.model), 101, lambda: next(starts))
    assert (found.p50_us, found.p95_us, found.runs) == (50.0, 95.0, 101)


def test_an_empty_batch_has_no_answers(mlp: Made) -> None:
    assert predict(EagerRunner(mlp.model), np.zeros((0, 1, 8, 8), np.float32)).shape == (0, 10)


def test_the_commands_print_one_json_object(
    files: dict[str, Path], mlp: Made, tmp_path: Path, fedkd: Callable[..., tuple[int, str, str]]
) -> None:
    mlp.public.save(tmp_path / "proxy.safetensors")
    test = digits("scattering")[2]
    np.savez(tmp_path / "test.npz", x=test.x, y=test.y)
    options = ("--int8", "--calibrate", tmp_path / "proxy.safetensors", "--json")
    code, out, err = fedkd("device", "export", files["student.safetensors"], "--out", tmp_path / "a.onnx", *options)
    told = json.loads(out)
    assert code == 0 and told["int8"] and told["compared_on"] == "proxy set" and told["agreement"] > 0.97, err
    assert told["bytes"] == (tmp_path / "a.onnx").stat().st_size and 0 < told["p50_us"] <= told["p95_us"]
    code, out, err = fedkd("device", "measure", tmp_path / "a.onnx", "--examples", tmp_path / "test.npz",
                           "--against", files["student.safetensors"], "--runs", 5, "--json")  # fmt: skip
    told = json.loads(out)
    assert code == 0 and told["accuracy"] > 0.85 and told["examples"] == len(test) and told["runs"] == 5, err


def test_int8_without_a_proxy_set_is_refused(
    files: dict[str, Path], tmp_path: Path, fedkd: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = fedkd("device", "export", files["student.safetensors"], "--int8", "--out", tmp_path / "a.onnx")
    assert code == 1 and "--calibrate" in err and not (tmp_path / "a.onnx").exists()


def test_an_export_does_not_take_the_place_of_its_student(
    files: dict[str, Path], tmp_path: Path, fedkd: Callable[..., tuple[int, str, str]]
) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(files["student.safetensors"].read_bytes())
    code, _, err = fedkd("device", "export", own, "--out", own)
    assert code == 1 and "another --out" in err and own.read_bytes() == files["student.safetensors"].read_bytes()


def test_no_examples_are_no_comparison(
    files: dict[str, Path], tmp_path: Path, fedkd: Callable[..., tuple[int, str, str]]
) -> None:
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 1, 8, 8)), y=np.zeros(0, int), classes=10)
    code, _, err = fedkd("device", "measure", files["student.safetensors"], "--examples", tmp_path / "none.npz")
    assert code == 1 and "no examples" in err
