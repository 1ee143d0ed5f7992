"""Every kind of process is killed during one run: it completes, with the bytes of a run that nobody has disturbed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/chaos.py"


@pytest.mark.process
@pytest.mark.long
def test_a_run_survives_the_death_of_each_kind_of_process_with_the_bytes_of_the_simulation(tmp_path: Path) -> None:
    with (tmp_path / "console").open("w") as console:
        done = subprocess.run(
            [sys.executable, str(BENCHMARK), "--kills", "1", "--seed", "7"], stdout=console, stderr=console, check=False
        )
    told = (tmp_path / "console").read_text()
    assert done.returncode == 0, told
    assert "killed 8 processes; different from the simulation: nothing" in told
