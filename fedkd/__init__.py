"""fedkd: private federated distillation. Clients share only differentially private answers on a public proxy set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedkd.distill.model import Model

__version__ = "0.1.0"


def load_student(path: str | Path, code: str | Path = ".") -> Model:
    """A trained student; ``.predict(x)`` gives probabilities. Raises DataError for a file that is not a model.

    ``code`` is the folder in which an architecture given as ``module:Class`` is looked for.
    """
    from fedkd.distill.model import Model

    return Model.open(Path(path), Path(code))


def load_teacher(path: str | Path, code: str | Path = ".") -> Model:
    """The trained teacher, used as a student is."""
    return load_student(path, code)
