"""The table of mutants still fits the code: each takes away a guard that is there, exactly once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "mutants.py"
_spec = importlib.util.spec_from_file_location("fedkd_mutants", FILE)
assert _spec is not None and _spec.loader is not None
mutants = importlib.util.module_from_spec(_spec)
sys.modules["fedkd_mutants"] = mutants  # dataclasses look their module up
_spec.loader.exec_module(mutants)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_still_applies_and_names_tests_that_exist(mutant: mutants.Mutant) -> None:
    assert mutants.applies(mutant)
    assert mutant.new != mutant.old
    text = (mutants.ROOT / mutant.tests[0]).read_text()
    names = [name.rpartition("::")[2].partition("[")[0] for name in mutant.tests[1:]]
    assert names and all(f"def {name}(" in text for name in names)


def test_mutants_have_names_of_their_own() -> None:
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
