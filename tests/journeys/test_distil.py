"""``fedkd distil``, and federations whose students and teachers learn by more than soft labels."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.journeys.conftest import sets, summary_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with a teacher that has a hidden layer."""
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = sets("proxy.labelled=true", "teacher.kind=mlp", "baselines=false")
    command = [sys.executable, "-m", "fedkd", "simulate", "--workers", "1", "--out", str(out), *settings]
    subprocess.run(command, capture_output=True, check=True)
    return out


def files(run: Path) -> tuple[Path, Path]:
    return run / "teacher.safetensors", run / "proxy.safetensors"


def test_a_teacher_is_compressed_and_the_student_predicts(finished: Path, tmp_path: Path, fedkd: Run) -> None:
    student = ("--student", "{kind: mlp, hidden: [8]}", "--term", "kl=1", "--term", "hint=0.5")
    out, test = tmp_path / "student.safetensors", finished / "test.npz"
    code, text, err = fedkd("distil", *files(finished), *student, "--steps", 20, "--test", test, "--out", out)
    assert code == 0, err
    assert "agreement" in text and "178" in text  # 10 x 8 + 8 and 8 x 10 + 10 parameters
    assert err.count("· step") == 10 and "step 20 of 20" in err
    code, text, _ = fedkd("predict", out, test)
    assert code == 0 and len(text.split()) == len(np.load(test)["x"])


def test_json_is_one_object_and_the_same_command_gives_the_same_bytes(
    finished: Path, tmp_path: Path, fedkd: Run
) -> None:
    teacher, proxy = files(finished)
    teachers = (f"{teacher}=3", finished / "students" / "client-0.safetensors", proxy)
    digests = set()
    for name in ("one", "two"):
        out = tmp_path / name
        code, text, err = fedkd("distil", *teachers, "--student", "linear", "--steps", 10, "--json", "--out", out)
        assert code == 0, err
        found = summary_of(text)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1
    assert set(found) == {"student", "teachers", "proxy", "out"}
    assert [row["weight"] for row in found["teachers"]] == [3.0, 1.0]
    assert found["student"]["accuracy"] is None and found["out"]["bytes"] == out.stat().st_size
    assert found["student"]["weight_bytes"] == 4 * found["student"]["parameters"] == 4 * 110


def test_ctrl_c_leaves_the_file_as_it_was(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.safetensors"
    out.write_bytes(b"precious")
    command = [sys.executable, "-m", "fedkd", "distil", *map(str, files(finished)), "--steps", "1000000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--out", str(out), "--set", "batch_size=1", "--student", "transformer"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        assert "learning" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert "as it was" in process.stderr.read()
    assert process.returncode == 130
    assert out.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--term", "klx=1"), ("klx", "'kl'")),
        (("--term", "kl"), ("--term", "kl=1")),
        (("--term", "kl=-1"), ("terms.kl",)),
        (("--term", "kl=0"), ("learns from nothing",)),
        (("--student", "gpt"), ("gpt", "transformer")),
        (("--student", "linear", "--term", "hint=1"), ("no hidden layer",)),
        (("--steps", "0"), ("steps",)),
        (("--set", "batchsize=3"), ("did you mean 'batch_size'",)),
        (("--test", "nowhere.npz"), ("nowhere.npz",)),
    ],
)
def test_what_a_user_can_get_wrong(
    finished: Path, tmp_path: Path, fedkd: Run, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, out, err = fedkd("distil", *files(finished), "--out", tmp_path / "student", *arguments)
    assert code == 1 and "Traceback" not in out + err and not (tmp_path / "student").exists()
    for word in words:
        assert word in err


def test_test_examples_that_do_not_fit_are_refused_before_any_training(
    finished: Path, tmp_path: Path, fedkd: Run
) -> None:
    np.savez(tmp_path / "other.npz", x=np.ones((3, 12), np.float32), y=np.zeros(3, int))
    code, _, err = fedkd("distil", *files(finished), "--test", tmp_path / "other.npz", "--out", tmp_path / "student")
    assert code == 1 and "other.npz" in err and "shape" in err and "· step" not in err


def test_files_that_are_exchanged_or_would_be_overwritten(finished: Path, tmp_path: Path, fedkd: Run) -> None:
    teacher, proxy = files(finished)
    code, _, err = fedkd("distil", proxy, teacher, "--out", tmp_path / "student")
    assert code == 1 and "not a fedkd model" in err
    for taken in (teacher, proxy):
        code, _, err = fedkd("distil", teacher, proxy, "--out", taken)
        assert code == 1 and "take the place" in err
    code, _, err = fedkd("distil", f"{teacher}=often", proxy, "--out", tmp_path / "student")
    assert code == 1 and "'often'" in err


def test_students_that_start_from_public_weights_say_so_in_the_report(
    finished: Path, tmp_path: Path, fedkd: Run
) -> None:
    weights = tmp_path / "public.safetensors"
    weights.write_bytes(files(finished)[0].read_bytes())
    mark = hashlib.sha256(weights.read_bytes()).hexdigest()
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(f"students: [{{kind: mlp, init: public.safetensors, init_hash: {mark}}}]\n")
    # the same proxy set, and so the same public features
    settings = sets("proxy.labelled=true", "baselines=false", "rounds=1")
    code, _, err = fedkd("simulate", scenario, "--workers", 1, "--out", tmp_path / "run", *settings)
    assert code == 0, err
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert versions["public_weights"] == {"students[0]": mark}
    for place in (tmp_path / "run", tmp_path / "run" / "clients" / "client-0"):
        code, out, _ = fedkd("report", place)
        assert code == 0 and "public weights" in out and mark[:40] in out
    weights.write_bytes(b"others")
    code, _, err = fedkd("simulate", scenario, "--workers", 1, "--out", tmp_path / "again", *settings)
    assert code == 1 and "SHA-256" in err and "client-0" in err


def test_every_term_takes_part_in_a_federation(tmp_path: Path, fedkd: Run) -> None:
    soft = "{kl: 1, mse: 0.1, dkd: 0.1, tckd: 0.1, nckd: 0.1, denoise: 0.5, self: 0.2}"
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(
        f"training: {{terms: {soft}}}\nfeatures: {{kind: scattering+patches}}\n"
        "teacher: {kind: mlp, terms: {kl: 1, denoise: 1, self: 0.5, hint: 0.5, hint_norm: 0.5}}\n"
    )
    code, out, err = fedkd(
        "simulate", scenario, "--json", "--workers", 1, "--out", tmp_path / "run", *sets("baselines=false")
    )
    assert code == 0, err
    assert summary_of(out)["teacher_accuracy"] > 0.3
