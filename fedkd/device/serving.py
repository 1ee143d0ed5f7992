"""Which version a device serves: a stack of versions that were served, changed by one atomic write.

A crash at any moment leaves the stack that was or the one that is to be, and every file that it names. What is served
is for the device's user alone: nothing in here may reach the lineage that trains and answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedkd.device.versions import Version, read_checked, read_index
from fedkd.errors import ConfigError, DataError, FedkdError
from fedkd.locks import locked
from fedkd.state import write_atomic, write_json
from fedkd.tensors import digest

INDEX, GIVEN_UP = "serving.json", "given-up.json"
FORMAT = "fedkd.serving/1"


@dataclass(frozen=True)
class Served:
    """A version and the file that answers for it; ``measured`` is what the gate saw when it let the version pass."""

    version: Version
    file: str
    sha256: str
    measured: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """JSON-able form; ``from_record`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Served:
        """Inverse of ``record``."""
        return cls(**{**record, "version": Version.from_record(record["version"])})


class Serving:
    """What ``STATE/serving`` holds: the newest served version on top, at most ``keep`` in all."""

    def __init__(self, state: Path, keep: int = 5) -> None:
        self.folder, self._keep = state / "serving", keep

    def stack(self) -> list[Served]:
        """Oldest first; the last one is served. Raises DataError for an index that cannot be read."""
        return read_index(self.folder / INDEX, FORMAT, "stack", Served.from_record)

    def served(self) -> Served:
        """Raises FedkdError while nothing is served."""
        stack = self.stack()
        if not stack:
            raise FedkdError("no version is served yet", where=str(self.folder), fix="fedkd device promote")
        return stack[-1]

    def path(self, one: Served) -> Path:
        """The file that answers. Raises DataError when it is not the one that was promoted."""
        path = self.folder / one.file
        read_checked(path, one.sha256)
        return path

    def damaged(self) -> list[Served]:
        """Those of the stack whose files are not the ones that were promoted."""
        return [one for one in self.stack() if not self._whole(one)]

    def _whole(self, one: Served) -> bool:
        try:
            self.path(one)
        except DataError:
            return False
        return True

    def given_up(self) -> list[str]:
        """Ids of versions that were rolled back, the newest last: they are served again only by a promotion that asks
        for them by name."""
        return read_index(self.folder / GIVEN_UP, FORMAT, "versions", str)

    def switch(self, version: Version, content: bytes, suffix: str, measured: Mapping[str, Any]) -> Served:
        """Serve a version whose file is ``content``: the file first, then the one write that switches, then tidying."""
        sha256 = digest(content)
        one = Served(version, f"{version.id}-{sha256[:8]}.{suffix}", sha256, dict(measured))
        with locked(self.folder):
            if version.id in (given_up := self.given_up()):
                self._give_up([id for id in given_up if id != version.id])
            write_atomic(self.folder / one.file, content)
            self._write([*(old for old in self.stack() if old.file != one.file), one][-self._keep :])
        return one

    def rollback(self) -> Served:
        """Serve again what was served before. Raises ConfigError where there is nothing to go back to."""
        with locked(self.folder):
            stack = self.stack()
            if len(stack) < 2:
                raise ConfigError("there is no earlier version to go back to", where=str(self.folder))
            self.path(stack[-2])
            self._give_up([*self.given_up(), stack[-1].version.id])  # first: a crash must not bring it back
            self._write(stack[:-1])
            return stack[-2]

    def _give_up(self, ids: Sequence[str]) -> None:
        write_json(self.folder / GIVEN_UP, {"format": FORMAT, "versions": list(ids[-self._keep :])})

    def _write(self, stack: Sequence[Served]) -> None:
        write_json(self.folder / INDEX, {"format": FORMAT, "stack": [one.record() for one in stack]})
        kept = {INDEX, GIVEN_UP, "lock", *(one.file for one in stack)}
        for path in self.folder.iterdir():  # also what a crash has left behind
            if path.name not in kept:
                path.unlink()
