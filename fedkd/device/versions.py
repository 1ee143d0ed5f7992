"""The versions of a device's student, as its lineage makes them: the registry's input side.

What trains and answers adds versions here, and may read them again. Nothing in here depends on which version is served,
on any measurement, or on the gate: a choice among students that is made on private data must not reach the lineage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from fedkd.errors import ConfigError, DataError
from fedkd.locks import locked
from fedkd.state import write_atomic, write_json
from fedkd.tensors import digest, unpack

INDEX = "versions.json"
FORMAT = "fedkd.versions/1"

T = TypeVar("T")
Epsilon = float | Literal["inf"] | None


@dataclass(frozen=True)
class Version:
    """One student; its labels are 0 .. classes - 1. ``id`` begins its file's SHA-256. ``epsilon``, at ``delta`` and for
    one example, is what its lineage had spent: None where nobody has said, "inf" without privacy."""

    id: str
    number: int
    parent: str | None
    sha256: str
    bytes: int
    architecture: str
    shape: tuple[int, ...]
    classes: int
    proxy: str
    epsilon: Epsilon
    delta: float | None

    def record(self) -> dict[str, Any]:
        """JSON-able form; ``from_record`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Version:
        """Inverse of ``record``."""
        return cls(**{**record, "shape": tuple(record["shape"])})


class Versions:
    """The newest ``keep`` versions below ``STATE/versions``, one file each and an index."""

    def __init__(self, state: Path, keep: int = 5) -> None:
        self.folder, self._keep = state / "versions", keep

    def add(
        self,
        content: bytes,
        *,
        parent: str | None = None,
        epsilon: Epsilon = None,
        delta: float | None = None,
    ) -> Version:
        """Register a student's file; ``parent`` is the version that it was trained from, if not the newest.

        The same bytes are one version, however often they are added. Raises DataError for what is not a student.
        """
        said, sha256 = _description(content), digest(content)
        with locked(self.folder):
            known = self.all()
            self._tidy(known)
            if found := [version for version in known if version.sha256 == sha256]:
                write_atomic(self.path(found[0].id), content)  # its file may have been damaged meanwhile
                return found[0]
            version = Version(
                sha256[:16],
                known[-1].number + 1 if known else 1,
                parent or (known[-1].id if known else None),
                sha256,
                len(content),
                said["architecture"]["kind"],
                tuple(said["features"]["shape"]),
                said["classes"],
                said["proxy"],
                epsilon,
                delta,
            )
            write_atomic(self.path(version.id), content)
            kept = [*known, version][-self._keep :]
            write_json(self.folder / INDEX, {"format": FORMAT, "versions": [one.record() for one in kept]})
            self._tidy(kept)
        return version

    def known(self, content: bytes) -> Version | None:
        """The version that these bytes are, if they are one that is kept."""
        return next((version for version in self.all() if version.sha256 == digest(content)), None)

    def all(self) -> list[Version]:
        """Oldest first. Raises DataError for an index that cannot be read."""
        return read_index(self.folder / INDEX, FORMAT, "versions", Version.from_record)

    def find(self, id: str) -> Version:
        """By id, or by its beginning where that is enough. Raises ConfigError."""
        found = [version for version in self.all() if version.id.startswith(id)]
        if len(found) != 1 or not id:
            known = ", ".join(version.id for version in self.all()) or "none"
            raise ConfigError(f"there is no one version {id!r}", where=str(self.folder), fix=f"versions kept: {known}")
        return found[0]

    def path(self, id: str) -> Path:
        """The version's file."""
        return self.folder / f"{id}.safetensors"

    def read(self, version: Version) -> bytes:
        """The version's bytes. Raises DataError when they are not the ones that were added."""
        return read_checked(self.path(version.id), version.sha256)

    def _tidy(self, kept: Sequence[Version]) -> None:
        """Remove what is not kept, and what a crash has left behind."""
        files = {self.path(version.id).name for version in kept}
        for path in self.folder.glob("*.safetensors*"):
            if path.name not in files:
                path.unlink()


def read_index(path: Path, format: str, key: str, build: Callable[[Any], T]) -> list[T]:
    """What an index of that format lists under ``key``; nothing where there is none. Raises DataError."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != format:
            raise ValueError(f"its format is {found['format']}")
        return [build(record) for record in found[key]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the index cannot be read: {error}", where=str(path)) from None


def read_checked(path: Path, sha256: str) -> bytes:
    """A file's bytes. Raises DataError when it is missing, or its hash is another."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path)) from None
    if digest(content) != sha256:
        raise DataError("the file is damaged: its hash is not the registered one", where=str(path))
    return content


def _description(content: bytes) -> dict[str, Any]:
    _, said = unpack(content)
    if said.get("format") != "fedkd.model/1":
        raise DataError("not a fedkd model", fix="give a student's .safetensors file")
    return said
