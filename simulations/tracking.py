"""A run's metrics where a tracking tool looks for them: scalars by round, beside the run."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedkd.errors import FedkdError


class Tracker(Protocol):
    """Hears of every round, and of the summary."""

    def row(self, row: Mapping[str, Any]) -> None:
        """One round, as metrics.jsonl has it."""

    def end(self, summary: Mapping[str, Any]) -> None:
        """What has come of it all."""

    def close(self) -> None:
        """Nothing more comes."""


class TensorBoard:
    """Event files in ``folder``, made anew from the rows so far, so that a run that is resumed has each once."""

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer: Any = SummaryWriter(str(folder))
        self._round = 0
        for row in rows:
            self.row(row)

    def row(self, row: Mapping[str, Any]) -> None:
        """Every finite number of the round."""
        self._round = int(row["round"])
        for name, value in row.items():
            if name != "round" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, self._round)
        self._writer.flush()

    def end(self, summary: Mapping[str, Any]) -> None:
        """The comparisons' accuracies, at the last round."""
        for name, found in summary["baselines"].items():
            if found["accuracy"] is not None:
                self._writer.add_scalar(f"baselines/{name}", found["accuracy"], self._round)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


TRACKERS: dict[str, Callable[[Path, Sequence[Mapping[str, Any]]], Tracker]] = {"tensorboard": TensorBoard}
"""By name; each writes to a folder of its name in the run directory."""


def check_installed(name: str) -> None:
    """Before a run begins. Raises FedkdError where what the tracker needs is not installed."""
    if importlib.util.find_spec(name) is None:
        raise FedkdError(
            f"tracking needs {name}, which is not installed",
            where=f"--track {name}",
            fix=f"pip install 'fedkd[{name}]'",
        )
