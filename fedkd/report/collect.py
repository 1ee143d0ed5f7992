"""Finds the ledgers below paths that a user names, and what is known about their proxy sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedkd.config import ClientConfig, load
from fedkd.data.proxy import ProxySet
from fedkd.errors import ConfigError, DataError
from fedkd.privacy.ledger import Ledger
from fedkd.report.audit import AuditResult
from fedkd.report.comparisons import LABELS

LEDGER = "ledger.sqlite"
AUDIT = "audit.json"


def files(path: Path) -> list[Path]:
    """A ledger, or all below a folder. Raises ConfigError if there is none."""
    found = [path] if path.is_file() else sorted(path.rglob(LEDGER))
    if not found:
        raise ConfigError("there is no ledger here", where=str(path), fix="give a run directory or a client's folder")
    return found


def ledgers(path: Path) -> dict[Path, dict[str, Any]]:
    """Verified exports by file: of a ledger, or of all below a folder. Raises ConfigError if there is none."""
    return {file: Ledger.read(file) for file in files(path)}


def exports(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Exports by client name; where two ledgers have one name, the names are paths, so that none is lost."""
    found = {file: export for path in paths for file, export in ledgers(path).items()}
    names = [export["client"] for export in found.values()]
    return {
        export["client"] if names.count(export["client"]) == 1 else f"{export['client']} ({file})": export
        for file, export in found.items()
    }


def provenance(paths: Sequence[Path]) -> dict[str, str]:
    """What the proxy sets beside the ledgers say of themselves, by hash."""
    files = {file for path in paths if path.is_dir() for file in path.rglob("proxy.safetensors")}
    return dict(_provenance(file) for file in sorted(files))


def config_hash(paths: Sequence[Path]) -> str | None:
    """Hash of the configuration, where exactly one run directory is named."""
    try:
        return str(json.loads((paths[0] / "versions.json").read_text())["config"]) if len(paths) == 1 else None
    except (OSError, ValueError, KeyError):
        return None


def public_weights(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of the files that networks started from, as the run directories and client folders named say."""
    found: set[str] = set()
    for path in paths:
        versions, client = path / "versions.json", path / "client.yaml"
        if versions.exists():
            found |= _named(versions)
        if client.exists():
            found |= {load(ClientConfig, client).student.init_hash or ""} - {""}
    return sorted(found)


def _named(versions: Path) -> set[str]:
    try:
        return set(json.loads(versions.read_text(encoding="utf-8")).get("public_weights", {}).values())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"not the versions of a run: {error}", where=str(versions), fix="run it again") from None


def compared(paths: Sequence[Path]) -> list[str]:
    """What the simulations in these run directories were compared with, in words; but for students alone."""
    names = {file.stem for path in paths if path.is_dir() for file in path.glob("baselines/*.json")}
    return [label for name, label in LABELS.items() if name in names - {"local"}]


def audits(paths: Sequence[Path]) -> list[AuditResult]:
    """Results of ``fedkd audit`` that lie in the folders. Raises DataError for a file that is none."""
    return [_audit(path / AUDIT) for path in paths if (path / AUDIT).is_file()]


def _audit(file: Path) -> AuditResult:
    try:
        return AuditResult.model_validate_json(file.read_bytes())
    except ValidationError:
        raise DataError("not a result of fedkd audit", where=str(file), fix="write it again, or remove it") from None


def _provenance(file: Path) -> tuple[str, str]:
    try:
        proxy = ProxySet.load(file)
    except DataError as error:
        return str(file), f"unreadable: {error.what}"
    return proxy.hash, "; ".join(f"{key}: {value}" for key, value in sorted(proxy.provenance.items()))
