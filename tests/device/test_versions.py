"""A crash at any moment leaves a working served version, and the lineage never sees what is served."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedkd.config import Device, Gate
from fedkd.data.sources import Examples
from fedkd.device import gate
from fedkd.device.gate import Measured, Row, judge, promote
from fedkd.device.measure import open_runner, predict
from fedkd.device.serving import Serving
from fedkd.device.versions import Version, Versions
from fedkd.distill.model import Model
from fedkd.errors import ConfigError, DataError, FedkdError
from tests.device.conftest import Made, digits, trained

Run = Callable[..., tuple[int, str, str]]
HELD_OUT = digits("pca")[2]
MEASURED = {"row": {"accuracy": 0.5}}


def student(path: Path, shift: float = 0.0, architecture: str = "linear") -> bytes:
    """A trained student whose first logit is ``shift`` too large."""
    model = trained(architecture, "pca").model
    path.parent.mkdir(parents=True, exist_ok=True)
    last = [p for p in model.network.parameters() if p.dim() == 1][-1]
    with torch.no_grad():
        last[0] += shift
        model.save(path)
        last[0] -= shift
    return path.read_bytes()


@pytest.fixture
def contents(tmp_path: Path) -> list[bytes]:
    return [student(tmp_path / "made.safetensors", shift) for shift in (0.0, 0.01, 0.02, 0.03, 0.04, 0.05)]


# -- the registry ------------------------------------------------------------------------------------------------------


def test_a_version_says_where_it_comes_from(tmp_path: Path, contents: list[bytes]) -> None:
    versions = Versions(tmp_path)
    first = versions.add(contents[0], epsilon=1.5, delta=1e-5)
    second = versions.add(contents[1], epsilon="inf")
    public = trained("linear", "pca").public
    assert (first.number, first.parent, first.epsilon, first.delta) == (1, None, 1.5, 1e-5)
    assert (second.number, second.parent, second.epsilon) == (2, first.id, "inf")
    assert (first.proxy, first.classes, first.shape) == (public.hash, 10, (1, 8, 8))
    assert Versions(tmp_path).all() == [first, second] and versions.read(first) == contents[0]
    assert versions.find(first.id[:6]) == first


def test_the_same_student_is_one_version(tmp_path: Path, contents: list[bytes]) -> None:
    versions = Versions(tmp_path)
    first = versions.add(contents[0])
    versions.add(contents[1])
    assert versions.add(contents[0]) == first and len(versions.all()) == 2


def test_only_the_newest_versions_are_kept(tmp_path: Path, contents: list[bytes]) -> None:
    versions = Versions(tmp_path, keep=3)
    made = [versions.add(content) for content in contents]
    assert versions.all() == made[-3:]
    assert {path.stem for path in versions.folder.glob("*.safetensors")} == {one.id for one in made[-3:]}


def test_what_is_no_student_or_was_changed_is_refused(tmp_path: Path, contents: list[bytes]) -> None:
    versions = Versions(tmp_path)
    with pytest.raises(DataError):
        versions.add(b"junk")
    first = versions.add(contents[0])
    versions.path(first.id).write_bytes(contents[1])
    with pytest.raises(DataError, match="damaged"):
        versions.read(first)
    with pytest.raises(ConfigError, match="no one version"):
        versions.find("0000")
    (versions.folder / "versions.json").write_text("{}")
    with pytest.raises(DataError, match="index"):
        versions.all()


# -- serving -----------------------------------------------------------------------------------------------------------


def test_rolling_back_serves_what_was_served_before(tmp_path: Path, contents: list[bytes]) -> None:
    versions, serving = Versions(tmp_path), Serving(tmp_path)
    made = [versions.add(content) for content in contents[:3]]
    for version, content in zip(made, contents, strict=False):
        serving.switch(version, content, "safetensors", MEASURED)
    assert serving.served().version == made[2]
    assert serving.rollback().version == made[1] == serving.served().version
    serving.switch(made[2], contents[2], "safetensors", MEASURED)
    assert [serving.rollback().version for _ in range(2)] == [made[1], made[0]]
    with pytest.raises(ConfigError, match="no earlier"):
        serving.rollback()
    assert serving.path(serving.served()).read_bytes() == contents[0]


def test_a_bounded_number_of_served_versions_is_kept(tmp_path: Path, contents: list[bytes]) -> None:
    versions, serving = Versions(tmp_path, keep=2), Serving(tmp_path, keep=3)
    for content in contents:
        serving.switch(versions.add(content), content, "safetensors", MEASURED)
    files = {path.name for path in serving.folder.iterdir()}
    assert files == {"serving.json", "lock", *(one.file for one in serving.stack())} and len(serving.stack()) == 3


def test_nothing_is_served_before_the_first_promotion(tmp_path: Path) -> None:
    with pytest.raises(FedkdError, match="no version is served"):
        Serving(tmp_path).served()


def test_a_damaged_file_is_not_served(tmp_path: Path, contents: list[bytes]) -> None:
    serving = Serving(tmp_path)
    one = serving.switch(Versions(tmp_path).add(contents[0]), contents[0], "safetensors", MEASURED)
    (serving.folder / one.file).write_bytes(contents[1])
    with pytest.raises(DataError, match="damaged"):
        serving.path(one)


# -- crashes -----------------------------------------------------------------------------------------------------------


def killed_at(moment: int, work: Callable[[], object]) -> bool:
    """Do the work in a process that is killed (SIGKILL) right before its ``moment``-th change of the file system, or
    half way through a write; whether it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: the child only touches files
        child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = moment

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.remove") or (event == "open" and isinstance(args[2], int) and args[2] & 3):
            step()

    straight = os.fsync

    def torn(fd: int) -> None:
        step()
        straight(fd)

    sys.addaudithook(hook)
    os.fsync = torn
    try:
        work()
    finally:
        os._exit(0)


def every_crash(state: Callable[[], Path], work: Callable[[Path], object], check: Callable[[Path], object]) -> int:
    """Kill the work at its first, second, ... step until it comes through; check what each crash has left."""
    moment = 0
    while True:
        folder = state()
        crashed = killed_at(moment, lambda folder=folder: work(folder))
        check(folder)
        if not crashed:
            return moment
        moment += 1


def test_a_crash_while_switching_leaves_the_old_version_or_the_new_one(tmp_path: Path, contents: list[bytes]) -> None:
    number = iter(range(1000))

    def state() -> Path:
        folder = tmp_path / str(next(number))
        serve(folder, contents[0]), serve(folder, contents[1])
        return folder

    def serve(folder: Path, content: bytes) -> None:
        Serving(folder, keep=2).switch(Versions(folder).add(content), content, "safetensors", MEASURED)

    def check(folder: Path) -> None:
        serving = Serving(folder, keep=2)
        served = serving.path(serving.served())
        assert served.read_bytes() in (contents[1], contents[2])
        assert predict(open_runner(served), HELD_OUT.x[:2]).shape == (2, 10)
        serve(folder, contents[3])  # and the next promotion finds nothing in its way
        assert serving.path(serving.served()).read_bytes() == contents[3]
        assert len(list(serving.folder.iterdir())) == 4

    assert every_crash(state, lambda folder: serve(folder, contents[2]), check) > 8


def test_a_crash_while_rolling_back_leaves_one_of_the_two(tmp_path: Path, contents: list[bytes]) -> None:
    number = iter(range(1000))

    def state() -> Path:
        folder = tmp_path / str(next(number))
        for content in contents[:2]:
            Serving(folder).switch(Versions(folder).add(content), content, "safetensors", MEASURED)
        return folder

    def check(folder: Path) -> None:
        serving = Serving(folder)
        assert serving.path(serving.served()).read_bytes() in contents[:2]

    assert every_crash(state, lambda folder: Serving(folder).rollback(), check) > 3


def test_a_crash_while_registering_loses_at_most_the_new_version(tmp_path: Path, contents: list[bytes]) -> None:
    number = iter(range(1000))

    def state() -> Path:
        folder = tmp_path / str(next(number))
        Versions(folder, keep=2).add(contents[0]), Versions(folder, keep=2).add(contents[1])
        return folder

    def check(folder: Path) -> None:
        versions = Versions(folder, keep=2)
        assert [versions.read(one) for one in versions.all()] in (contents[0:2], contents[1:3])
        versions.add(contents[2])
        assert [versions.read(one) for one in versions.all()] == contents[1:3]
        assert len(list(versions.folder.glob("*.safetensors*"))) == 2

    assert every_crash(state, lambda folder: Versions(folder, keep=2).add(contents[2]), check) > 5


# -- the gate ----------------------------------------------------------------------------------------------------------


def measured(*by_class: float, counts: tuple[int, ...] = (), **changes: Any) -> Measured:
    accuracy = sum(by_class) / len(by_class)
    row = Row(accuracy, by_class, counts or (100,) * len(by_class))
    return replace(Measured(row, accuracy, 1000, 10.0, 20.0), **changes)


LIMITS = Gate(max_bytes=2000, max_p95_us=50.0)


@pytest.mark.parametrize(
    ("new", "word"),
    [
        (measured(0.9, 0.9), None),
        (measured(0.89, 0.9), None),
        (measured(0.85, 0.9), "accuracy drop: 0.025"),
        (measured(0.79, 1.0), "forgetting of class 0: 0.11"),
        (measured(0.9, 0.9, student_accuracy=0.92), "exported file: 0.02"),
        (measured(0.9, 0.9, bytes=2001), "size"),
        (measured(0.9, 0.9, p95_us=51.0), "latency"),
    ],
)
def test_each_limit_of_the_gate_refuses_on_its_own(new: Measured, word: str | None) -> None:
    reasons = list(judge(LIMITS, new, [measured(0.9, 0.9).row]))
    assert len(reasons) == (word is not None) and (word is None or word in reasons[0])


def test_a_drop_that_is_the_limit_passes() -> None:
    """0.9 - 0.89 and 0.8 - 0.7 come out above 0.01 and 0.1 in binary."""
    even = {"max_accuracy_drop": 0.01, "max_int8_drop": 0.01, "max_class_forgetting": 0.1}
    assert list(judge(Gate(**even), measured(0.89, student_accuracy=0.9), [measured(0.9).row])) == []
    assert list(judge(Gate(max_class_forgetting=0.1), measured(0.7, 0.9), [measured(0.8, 0.8).row])) == []


def test_small_losses_of_a_class_do_not_add_up(tmp_path: Path) -> None:
    rows = [measured(0.9, 0.7).row, measured(0.84, 0.77).row]
    assert list(judge(LIMITS, measured(0.83, 0.78), rows[1:])) == []
    assert "class 0" in next(judge(LIMITS, measured(0.79, 0.83), rows))


def test_a_class_with_few_examples_is_not_judged_on_its_own() -> None:
    served = measured(0.9, 0.9, counts=(100, 5)).row
    assert list(judge(Gate(max_accuracy_drop=1), measured(0.9, 0.2, counts=(100, 5)), [served])) == []


def test_a_worse_student_is_not_served_and_a_good_one_is(tmp_path: Path, contents: list[bytes]) -> None:
    versions, serving = Versions(tmp_path), Serving(tmp_path)
    good = versions.add(contents[0])
    assert promote(tmp_path, good.id, HELD_OUT, Device()).promoted
    bad = versions.add(student(tmp_path / "bad.safetensors", 1000.0))
    verdict = promote(tmp_path, bad.id, HELD_OUT, Device())
    assert not verdict.promoted and any("class" in reason for reason in verdict.reasons)
    assert verdict.measured.row.accuracy < 0.2 and serving.served().version == good
    better = versions.add(contents[1])
    assert promote(tmp_path, better.id, HELD_OUT, Device()).promoted and serving.served().version == better


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_served_file_stops_no_promotion_and_is_named(
    tmp_path: Path, contents: list[bytes], damaged: int
) -> None:
    versions, serving = Versions(tmp_path), Serving(tmp_path)
    for content in contents[:2]:
        assert promote(tmp_path, versions.add(content).id, HELD_OUT, Device()).promoted
    broken = serving.stack()[damaged]
    (serving.folder / broken.file).write_bytes(b"")
    verdict = promote(tmp_path, versions.add(contents[2]).id, HELD_OUT, Device())
    assert verdict.promoted and verdict.damaged == (broken.file,)
    again = promote(tmp_path, broken.version.id, HELD_OUT, Device())
    assert again.promoted and serving.damaged() == [], "the same version, promoted anew, is whole again"


def test_a_damaged_version_is_mended_by_its_own_student(tmp_path: Path, contents: list[bytes]) -> None:
    versions = Versions(tmp_path)
    one = versions.add(contents[0])
    versions.path(one.id).write_bytes(b"")
    assert versions.add(contents[0]) == one and versions.read(one) == contents[0]


def test_examples_with_labels_that_no_version_has_are_refused(tmp_path: Path, contents: list[bytes]) -> None:
    version = Versions(tmp_path).add(contents[0])
    for label in (-1, 10):
        with pytest.raises(DataError, match="labels outside"):
            promote(tmp_path, version.id, Examples(HELD_OUT.x[:2], np.array([0, label]), 11), Device())


def test_a_version_that_was_given_up_is_served_again_when_it_is_asked_for(
    tmp_path: Path, contents: list[bytes]
) -> None:
    versions, serving = Versions(tmp_path), Serving(tmp_path)
    made = [versions.add(content) for content in contents[:2]]
    for version in made:
        promote(tmp_path, version.id, HELD_OUT, Device())
    serving.rollback()
    assert serving.given_up() == [made[1].id]
    assert promote(tmp_path, made[1].id, HELD_OUT, Device()).promoted and serving.given_up() == []


def test_a_student_with_other_labels_is_not_served(tmp_path: Path, contents: list[bytes], mlp: Made) -> None:
    versions = Versions(tmp_path)
    promote(tmp_path, versions.add(contents[0]).id, HELD_OUT, Device())
    other = Model(mlp.model.network, mlp.model.features, mlp.model.architecture, mlp.model.proxy, 12)
    other.save(tmp_path / "other.safetensors")
    stack = Serving(tmp_path).stack()
    version = versions.add((tmp_path / "other.safetensors").read_bytes())
    assert "labels" in next(gate._other_kind(stack, version))
    assert list(gate._other_kind(stack, stack[0].version)) == []


def test_the_lineage_is_the_same_whatever_the_gate_decides(tmp_path: Path, contents: list[bytes]) -> None:
    """The registry's bytes, what it keeps and what it throws away do not depend on what is served."""

    def registry(folder: Path, device: Device | None) -> dict[str, bytes]:
        versions = Versions(folder, keep=2)
        for content in contents:
            version = versions.add(content)
            if device is not None:
                promote(folder, version.id, HELD_OUT, device)
        return {path.name: path.read_bytes() for path in versions.folder.iterdir()}

    never = registry(tmp_path / "never", None)
    assert registry(tmp_path / "always", Device(keep=2)) == never
    assert registry(tmp_path / "refused", Device(keep=2, gate=Gate(max_bytes=1))) == never


def test_what_adds_versions_knows_nothing_of_serving() -> None:
    source = Path(sys.modules[Versions.__module__].__file__ or "").read_text()
    assert "import" in source and not any(f"device.{name}" in source for name in ("serving", "gate", "measure"))


def test_the_gate_needs_examples(tmp_path: Path, contents: list[bytes]) -> None:
    version = Versions(tmp_path).add(contents[0])
    empty = Examples(HELD_OUT.x[:0], HELD_OUT.y[:0], 10)
    with pytest.raises(ConfigError, match="held-out"):
        promote(tmp_path, version.id, empty, Device())
    with pytest.raises(ConfigError, match="proxy set"):
        promote(tmp_path, version.id, HELD_OUT, Device(format="onnx", int8=True))


def test_an_exported_version_is_served_as_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    made = trained("linear", "pca")
    version: Version = Versions(tmp_path).add(student(tmp_path / "made.safetensors"))
    device = Device(format="onnx", int8=True, gate=Gate(max_int8_drop=0.05))
    verdict = promote(tmp_path, version.id, HELD_OUT, device, proxy=made.public)
    served = Serving(tmp_path).served()
    rows = predict(open_runner(Serving(tmp_path).path(served)), HELD_OUT.x)
    assert verdict.promoted and served.file.endswith(".onnx")
    assert (rows.argmax(axis=1) == HELD_OUT.y).mean() == verdict.measured.row.accuracy


# -- the commands ------------------------------------------------------------------------------------------------------


def test_promote_refuse_and_roll_back_on_the_command_line(tmp_path: Path, fedkd: Run) -> None:
    np.savez(tmp_path / "held-out.npz", x=HELD_OUT.x, y=HELD_OUT.y, classes=10)
    for name, shift in (("good", 0.0), ("better", 0.01), ("bad", 1000.0)):
        student(tmp_path / f"{name}.safetensors", shift)
    data = ("--data", tmp_path / "held-out.npz")
    state = tmp_path / "state"
    for name in ("good", "better"):
        code, out, err = fedkd("device", "promote", state, tmp_path / f"{name}.safetensors", *data)
        assert code == 0 and "serves" in out, err
    code, out, err = fedkd("device", "promote", state, tmp_path / "bad.safetensors", *data, "--json")
    assert code == 1 and "gate" in err and json.loads(out)["promoted"] is False
    code, out, _ = fedkd("device", "versions", state, "--json")
    told = json.loads(out)
    assert code == 0 and [one["number"] for one in told["versions"]] == [1, 2, 3]
    assert told["served"] == told["versions"][1]["id"] and len(told["stack"]) == 2
    assert "unknown" in fedkd("device", "versions", state)[1]
    code, out, _ = fedkd("device", "rollback", state)
    assert code == 0 and told["versions"][0]["id"] in out
    assert fedkd("device", "rollback", state)[0] == 1
    assert fedkd("device", "promote", state, told["versions"][1]["id"][:8], *data)[0] == 0
